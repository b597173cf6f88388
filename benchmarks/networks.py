"""U-Nets of several libraries: the same number of weights, data, updates' time and loss.

Each is sized to as many weights as allowed, then trained for the same processor time on grey
patches of photographs. What is compared is the loss of patches held out, at the same times and with
the same noise for all, and what an update takes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.equal_time import training, updates
from benchmarks.unets import PlainUNet, parameters
from estimators import Denoising, DiffusersUNet, NetworkAdapter, UNet
from estimators.budget import widths
from scoresde import VP, DiagonalSDE, Identity
from scoresde.data import dequantize, patches, split

SIZE, ATTENTION = 16, 8
SHAPE = (1, SIZE, SIZE)


class _Embed(nn.Module):
    """A vector of a noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise_level: Tensor) -> Tensor:
        """``(batch,)`` to ``(batch, width)``."""
        out: Tensor = self.layers(noise_level.unsqueeze(-1))
        return out


def _azula(width: int) -> nn.Module:
    from azula.nn.unet import UNet as Theirs

    told = 4 * width
    channels, blocks = (width, 2 * width), (2, 2)
    network = Theirs(1, 1, hid_channels=channels, hid_blocks=blocks, mod_features=told)
    return NetworkAdapter(network, _Embed(told))


def _of(kind: Callable[..., nn.Module], width: int) -> nn.Module:
    return kind(SHAPE, (width, 2 * width), attention=ATTENTION)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "unet (MONAI)": partial(_of, UNet),
    "diffusers-unet": partial(_of, DiffusersUNet),
    "azula, adapted": _azula,
    "torch's layers": lambda width: PlainUNet(SHAPE, (width, 2 * width)),
}
"""Makers by width. The last two attend nowhere."""


def run(
    quick: bool = False, seconds: float = 60.0, weights: int = 1_130_000, seeds: int = 1
) -> dict[str, Any]:
    """A row for every network that is installed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    train, held_out = split(patches(SIZE), 0.8)
    x = dequantize(held_out.read(slice(256)), 256, torch.Generator().manual_seed(0))
    width: dict[str, int] = {}
    for name, make in NETWORKS.items():
        with suppress(ImportError):
            (width[name],) = widths([make], weights)

    def made(name: str) -> Denoising:
        return Denoising(DiagonalSDE(VP(), Identity(SHAPE)), NETWORKS[name](width[name]))

    models = {name: made(name) for name in width}
    steps = updates(models, train, 1.0 if quick else seconds, 1 if quick else 5)
    rows = []
    for name in width:
        for seed in range(1 if quick else seeds):
            torch.manual_seed(seed)
            model = made(name)
            start = time.thread_time()
            training(steps[name]).fit(model, train, seed=seed, progress=False)
            elapsed = time.thread_time() - start
            with torch.no_grad():
                generator = torch.Generator().manual_seed(1)
                loss = torch.stack([model.loss(x, generator=generator).mean() for _ in range(8)])
            row = {
                "network": name,
                "seed": seed,
                "width": width[name],
                "parameters": parameters(model.network),
                "updates": steps[name],
                "milliseconds": round(1000 * elapsed / steps[name], 1),
                "loss": round(float(loss.mean()), 4),
            }
            rows.append(row)
            print(row, flush=True)
    return {"rows": rows}
