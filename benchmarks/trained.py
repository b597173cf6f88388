"""Trained on photographs: uniform diffusions against multi-scale, at equal training time.

All arms have the same images (mirrored at random), family of networks, number of parameters,
optimiser, batch size and time of training; updates are timed side by side, so that a busy machine
favours none. Quality is the Frechet distance of samples to held-out images in the features of
EfficientNet-Lite0, beside that of as many training images. A uniform arm is sampled with whichever
of several numbers of steps is best for it.

``--set table="changes"`` changes one thing at a time instead, with one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from benchmarks.equal_time import (
    BATCH,
    Photographs,
    bound_in_bits,
    draw,
    over_seeds,
    shades,
    training,
    updates,
)
from benchmarks.unets import Patched, parameters
from estimators import Denoising, MultiScale, UNet, measure
from scoresde import EDM, SDE, DiagonalSDE, Identity, LogLinear, Wavelet
from scoresde.app import devices, plots
from scoresde.data import dequantize
from scoresde.metrics import compare
from scoresde.sampling.grid import Grid
from solvers import ExponentialMultistep

FEWER = 4
"""For choosing numbers of steps, by how much fewer samples are drawn."""


@attrs.frozen
class Arm:
    """What is trained; every field is one thing that may be changed.

    Attributes:
        wavelet: Of the SDE's basis; pixels if None.
        colour: Whether channels are turned, and measured by themselves.
        one_scale: Whether the network's inputs and outputs have one scale instead of measured ones.
        weighting: Of the loss.
        times: Density of training times.
        drop: When each of the bands is dropped: uniform diffusion if never.
        wide: Whether what enters has the width of the data.
        patches: Sides of the squares of pixels that every stage's network sees as one.
        widths: Of every stage's network.
        shares: Which part of a batch each is trained on.
        steps: Of every stage, coarse first; what is tried, the cheapest first.
    """

    wavelet: str | None = "db4"
    colour: bool = True
    one_scale: bool = False
    weighting: str = "balanced"
    times: str = "log_snr"
    drop: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    wide: bool = True
    patches: tuple[int, ...] = (1,)
    widths: tuple[tuple[int, ...], ...] = ((32, 64, 128),)
    shares: tuple[float, ...] = (1.0,)
    steps: tuple[tuple[int, ...], ...] = ((12,), (16,), (24,), (32,))

    def model(self, x: Tensor) -> Denoising | MultiScale:
        """Untrained, for images like ``x``."""
        shape = x.shape[1:]
        if self.wavelet is None:
            basis: Any = Identity(shape)
        else:
            basis = Wavelet(shape, len(self.drop) - 1, self.wavelet, colour=self.colour)
        mean, std = basis.moments(x)
        staged = self.drop[-1] < 1.0
        known = {"mean": mean, "std": std if self.wide else 0.0} if staged else {}
        schedule = EDM() if self.wavelet is None else LogLinear()
        sde = DiagonalSDE(schedule, basis, drop=self.drop if staged else None, **known)
        scales = measure(sde, x)
        if self.one_scale:
            scales["data_std"] = (x - x.mean(0)).square().mean().sqrt()
        options: dict[str, Any] = {"weighting": self.weighting, "times": self.times, **scales}
        if not staged:
            return Denoising(sde, _network(shape, self.patches[0], self.widths[0]), **options)
        pairs = zip(
            self.patches * (len(self.widths) // len(self.patches)), self.widths, strict=True
        )
        makers = [partial(_network, side=side, widths=widths) for side, widths in pairs]
        return MultiScale(sde, makers, network_bases="events", shares=self.shares, **options)

    def solver(self, steps: tuple[int, ...]) -> ExponentialMultistep:
        """With so many steps in every stage, equal ones in its noise level."""
        grid: str | Grid = "karras" if self.wavelet is None else "log_snr"
        if len(steps) > 1:
            grid = partial(_equal_in_stages, each=steps)
        return ExponentialMultistep(sum(steps), order=2, corrected=False, grid=grid)


def _equal_in_stages(sde: SDE, steps: int, each: tuple[int, ...]) -> Tensor:
    """Of an SDE whose noise levels are linear in time."""
    parts = [
        torch.linspace(stage.start, stage.end, count + 1, dtype=torch.float64)
        for stage, count in zip(sde.stages(), each, strict=True)
    ]
    return torch.cat([*(part[:-1] for part in parts), parts[-1][-1:]])


def _network(shape: torch.Size, side: int, widths: Sequence[int]) -> nn.Module:
    def make(seen: Sequence[int]) -> UNet:
        return UNet(seen, widths, blocks=1)

    return make(shape) if side == 1 else Patched(shape, side, make)


MULTISCALE = Arm(
    drop=(1.0, 1.0, 0.69, 0.5),
    widths=((48, 96), (32, 64), (24, 48)),
    shares=(1.0, 1.0, 0.5),
    steps=((4, 2, 2), (8, 4, 4)),
)
EDM_RECIPE: dict[str, Any] = {
    "wavelet": None,
    "one_scale": True,
    "weighting": "prediction",
    "times": "log_normal",
}
ARMS = {
    "uniform, EDM's recipe": Arm(**EDM_RECIPE),
    "uniform, measured": Arm(),
    "multi-scale": MULTISCALE,
}
CHANGES = {
    "multi-scale": MULTISCALE,
    "Haar": attrs.evolve(MULTISCALE, wavelet="db1"),
    "channels as they are": attrs.evolve(MULTISCALE, colour=False),
    "one scale": attrs.evolve(MULTISCALE, one_scale=True),
    "weighting: prediction": attrs.evolve(MULTISCALE, weighting="prediction"),
    "weighting: denoised": attrs.evolve(MULTISCALE, weighting="denoised"),
    "times: log_normal": attrs.evolve(MULTISCALE, times="log_normal"),
    "enters as noise": attrs.evolve(MULTISCALE, wide=False),
}
KEYS = ("frechet", "kernel", "seconds_train", "seconds_sample", "bits_per_dim_bound")
"""What is summed up over seeds."""

PACKED = Arm(patches=(2,), widths=((96, 192, 384),))
LARGE = {
    "uniform, EDM's recipe": attrs.evolve(PACKED, **EDM_RECIPE),
    "multi-scale": Arm(
        drop=(1.0, 1.0, 1.0, 0.7, 0.56, 0.38),
        patches=(1, 2, 2, 2),
        widths=((64, 128, 256), (96, 192), (48, 96, 144), (32, 64, 128)),
        shares=(1.0, 1.0, 1.0, 0.5),
        steps=((4, 2, 2, 3), (6, 3, 3, 4), (12, 6, 6, 8)),
    ),
    "uniform, measured": attrs.evolve(PACKED, drop=(1.0,) * 6),
    "uniform, EDM's recipe, with attention": attrs.evolve(
        PACKED, widths=((80, 160, 240, 320),), **EDM_RECIPE
    ),
}
"""Of 128x128: 22 million parameters, all but the coarsest in squares of four pixels."""

TABLES = {"arms": ARMS, "changes": CHANGES, "large": LARGE}


def run(
    quick: bool = False,
    data: Path | None = None,
    pictures: Path | None = None,
    table: str = "arms",
    seconds: float = 300.0,
    seeds: int = 3,
    count: int = 1500,
    lr: float = 2e-3,
    only: str = "",
    size: int = 32,
    device: str = "cpu",
    batch_size: int = BATCH,
) -> dict[str, Any]:
    """Rows and their summary.

    Args:
        quick: Trains for a moment only, to show that it runs.
        data: Folder or zip file of photographs.
        pictures: Where to write samples.
        table: One of `TABLES`.
        seconds: That training may take, of a processor or an accelerator.
        seeds: Of models; one for ``"changes"``.
        count: How many samples are compared.
        lr: Of all arms.
        only: What is in the names of those that are run.
        size: Of images; 128 for ``table="large"``.
        device: What trains and draws; accelerators capture both.
        batch_size: Of updates.
    """
    if quick:
        seconds, seeds, count = 2.0, 1, 40
    place = devices.device("--set device", device)
    if place.type == "cpu":
        torch.set_num_threads(1)
    name_of_all, train, held_out, features, real, floor = Photographs.of(data, size, count, place)
    x = dequantize(train.read(slice(4000)), 256, torch.Generator().manual_seed(0))
    arms = {name: arm for name, arm in TABLES[table].items() if only in name}
    models = {name: arm.model(x).to(place) for name, arm in arms.items()}
    repeats = 1 if place.type != "cpu" else 2 if quick else 8
    steps_of = updates(models, train, seconds, repeats, batch_size)
    rows: list[dict[str, Any]] = []
    panels = {"photographs": shades(held_out.read(slice(32)))}
    chosen: dict[str, list[tuple[int, ...]]] = {}
    for seed in range(seeds if table == "arms" else 1):
        for name, arm in arms.items():
            torch.manual_seed(seed)
            model = arm.model(x).to(place)
            run = training(steps_of[name], lr, batch_size)
            history = run.fit(model, train, seed=seed, progress=False)
            bits = bound_in_bits(model, held_out, 8 if quick else 256)
            if name not in chosen:
                tried = {}
                for steps in arm.steps:
                    drawn, _ = draw(model, arm.solver(steps), count // FEWER, seed)
                    tried[steps] = compare(real[: len(drawn)], features(drawn)).frechet
                print(f"{name}: {tried}", flush=True)
                best = min(tried, key=tried.__getitem__)
                chosen[name] = [best] if len(best) == 1 else [*arm.steps]
            for steps in chosen[name]:
                samples, elapsed = draw(model, arm.solver(steps), count, seed)
                row = {
                    "arm": f"{name}, {' + '.join(map(str, steps))} steps",
                    "seed": seed,
                    "parameters": parameters(model),
                    "updates": steps_of[name],
                    "seconds_train": round(history.seconds, 1),
                    "seconds_sample": round(elapsed, 2),
                    "out_of_range": round(float((samples.abs() > 1).float().mean()), 3),
                    **_rounded(attrs.asdict(compare(real, features(samples)))),
                    "bits_per_dim_bound": bits,
                }
                rows.append(row)
                print(row, flush=True)
            if seed == 0:
                panels[name] = samples[:32].cpu()
                if pictures is not None:
                    plots.save(plots.image_grid(panels, columns=4), pictures)
    return {
        "data": name_of_all,
        "floor": round(floor, 2),
        "summary": over_seeds(rows, ["arm"], KEYS),
        "rows": rows,
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) for key, value in values.items()}
