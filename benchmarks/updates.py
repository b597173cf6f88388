"""What an update costs: of `Training.fit`, and of a loop by hand that does the same work.

The same network, batches, optimiser, clipping and average; the loop by hand knows nothing of this
library, has its data in one tensor and looks at no number. Both are run in turn in one process,
several updates at a time; figures are medians. Any device will do.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity, ScoreEstimator
from scoresde.training import Training

LR, CLIP, DECAY = 1e-3, 1.0, 0.998


@attrs.frozen(eq=False)
class Case:
    """A network and data to train it with.

    Args:
        network: Makes it: two equal ones are trained.
        x: Events, ``(N, *event_shape)``.
        batch_size: Events of an update.
        device: Where both are.
        dtype: Of the network's products, by `torch.autocast`; that of the weights if None.
        options: Further settings of `Training`; by hand the network is compiled, and its weights
            are last by channels, if they say so.
        estimator: What `Training` is given; a plain `Denoising` of the network if None.
    """

    network: Callable[[], nn.Module]
    x: Tensor
    batch_size: int
    device: torch.device = attrs.field(default="cpu", converter=torch.device)
    dtype: torch.dtype | None = None
    options: dict[str, Any] = attrs.field(factory=dict)
    estimator: Callable[[], ScoreEstimator] | None = None

    def made(self) -> nn.Module:
        """The network, always the same one."""
        torch.manual_seed(0)
        return self.network().to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """What the network's products are computed in."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def bare_update(case: Case) -> Callable[[], None]:
    """One update after the other, written by hand: the loss of `Denoising` with its defaults."""
    network: Any = case.made()
    if case.options.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    if case.options.get("compile"):
        network = torch.compile(network)
    x, size = case.x.to(case.device), (case.batch_size,)
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.01, fused=True)
    low, high = _levels(math.prod(x.shape[1:]))
    one = (case.batch_size, *[1] * (x.ndim - 1))
    strata = torch.arange(case.batch_size, device=case.device) / case.batch_size

    def update() -> None:
        clean = x[torch.randint(len(x), size, device=case.device)]
        u = (torch.rand((), device=case.device) + strata) % 1
        level = low + (high - low) * u
        sigma = torch.sigmoid(2 * level).sqrt()
        alpha = torch.sigmoid(-2 * level).sqrt()
        alpha, sigma = alpha.view(one), sigma.view(one)
        noisy = alpha * clean + sigma * torch.randn_like(clean)
        with case.autocast():
            prediction = network(noisy, level / 4)
        target = (clean - alpha * noisy) / sigma
        loss = (prediction - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - DECAY)

    return update


def _levels(dim: int) -> tuple[float, float]:
    """``log(sigma / alpha)`` at the first and the last time."""
    sde = DiagonalSDE(VP(), Identity((dim,)))
    ends = torch.tensor([[sde.eps], [sde.T]], dtype=torch.float64)
    alpha, sigma = sde.kernel(ends)
    low, high = (sigma / alpha).log().flatten().tolist()
    return low, high


def estimator(case: Case) -> ScoreEstimator:
    """What `Training` is given."""
    if case.estimator is not None:
        return case.estimator().to(case.device)
    sde = DiagonalSDE(VP(), Identity(tuple(case.x.shape[1:])))
    return Denoising(sde, case.made()).to(case.device)


def fit_updates(case: Case, updates: int, between: Callable[[int], None]) -> None:
    """Trains by `Training.fit` without a folder, and with no measurement but the last.

    Args:
        case: What is trained.
        updates: How many.
        between: Called before every update with the number of those done, and is part of none.
    """
    precision = {None: "float32"}.get(case.dtype) or str(case.dtype).removeprefix("torch.")
    options = {"precision": precision, "measurements": 1, "warmup": 0.0, **case.options}
    training = Training(steps=updates, batch_size=case.batch_size, lr=LR, clip=CLIP, **options)
    training.fit(estimator(case), case.x, progress=False, on_step=between)


def compare(case: Case, seconds: float = 20.0, each: int = 8) -> dict[str, float]:
    """Median seconds of an update: ``"fit"``, ``"bare"``, run in turn, and ``"ratio"``.

    Args:
        case: What is trained.
        seconds: How long.
        each: Updates between two looks at the clock, for which a device is waited.
    """
    bare = bare_update(case)
    elapsed: dict[str, list[float]] = {"fit": [], "bare": []}
    since = 0.0

    def timed(count: int, job: Callable[[], None]) -> float:
        start = _clock(case.device)
        for _ in range(count):
            job()
        return (_clock(case.device) - start) / count

    def between(step: int) -> None:
        nonlocal since
        if step % each:
            return
        if since:
            elapsed["fit"].append((_clock(case.device) - since) / each)
        elapsed["bare"].append(timed(each, bare))
        if time.perf_counter() > end:
            raise StopIteration
        since = _clock(case.device)

    timed(each, bare)  # what is first is slower
    end = time.perf_counter() + seconds
    with suppress(StopIteration):
        fit_updates(case, 2**30, between)
    medians = {name: statistics.median(values) for name, values in elapsed.items()}
    return {**medians, "ratio": medians["fit"] / medians["bare"]}


def _clock(device: torch.device) -> float:
    """Seconds, once a device has done what it was asked for; of a CPU those of this process."""
    if device.type in ("cpu", "meta"):
        return time.process_time()
    torch.get_device_module(device).synchronize(device)  # type: ignore[no-untyped-call]
    return time.perf_counter()


class Convolutions(nn.Module):
    """A U-Net of two resolutions, with nothing in it that is not torch's.

    Args:
        channels: Of events.
        width: Of the finer resolution, a multiple of 8.
    """

    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        wide = 2 * width
        self.level = nn.Sequential(nn.Linear(1, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_block(wide) for _ in range(2))
        self.up = nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1)
        self.conv_out = nn.Sequential(
            _block(2 * width), nn.Conv2d(2 * width, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` and noise levels ``(batch,)``."""
        fine = self.conv_in(x)
        hidden = self.down(fine) + self.level(noise_level.to(x.dtype)[:, None])[..., None, None]
        for block in self.middle:
            hidden = hidden + block(hidden)
        out: Tensor = self.conv_out(torch.cat([fine, self.up(hidden)], 1))
        return out


def _block(width: int) -> nn.Module:
    convolution = nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), convolution)


def cases(device: str = "cpu") -> dict[str, Case]:
    """The small ones, for processors."""
    table = torch.randn(4096, 8, generator=torch.Generator("cpu").manual_seed(0))
    images = torch.randn(1024, 3, 16, 16, generator=torch.Generator("cpu").manual_seed(0))
    return {
        "table, 8 columns, batch 256": Case(lambda: ResidualMLP((8,), 128, 3), table, 256, device),
        "images, 3x16x16, batch 64": Case(Convolutions, images, 64, device),
    }


def run(quick: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Milliseconds of an update and the ratio, for every case."""
    torch.set_num_threads(1)
    rows = []
    for name, case in cases(device).items():
        medians = compare(case, seconds=6.0 if quick else 30.0)
        row = {"case": name, "fit_ms": 1e3 * medians["fit"], "bare_ms": 1e3 * medians["bare"]}
        rows.append({**row, "ratio": round(medians["ratio"], 3)})
        print(f"{name:28} {row['fit_ms']:8.2f} {row['bare_ms']:8.2f} {medians['ratio']:6.2f}")
    return {"ratios": {row["case"]: row["ratio"] for row in rows}, "rows": rows}
