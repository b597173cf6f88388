"""What benchmarks share that train several models on photographs for the same time."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import ScoreEstimator, Solver, bound
from scoresde.data import Dataset, bits_per_dim, dequantize, load, split
from scoresde.metrics import EfficientNetLite0, compare, extract
from scoresde.precision import device_of
from scoresde.training import Training
from scoresde.training.precisions import autocast, autocast_dtype

BATCH = 32
CPU = torch.device("cpu")
TOGETHER = 100
"""Samples that are drawn at a time."""


class Photographs(NamedTuple):
    """What samples of several models are compared with.

    Attributes:
        name: Of all of them.
        train: To learn from.
        held_out: The others.
        features: Of images in [-1, 1].
        real: Those of as many held-out images as samples are compared with.
        floor: Frechet distance of as many training images to them.
    """

    name: str
    train: Dataset
    held_out: Dataset
    features: Callable[[Tensor], Tensor]
    real: Tensor
    floor: float

    @classmethod
    def of(
        cls, data: Path | None, size: int, count: int, place: torch.device = CPU, **options: Any
    ) -> Photographs:
        """Of a folder or a zip file, mirrored at random; ``options`` of reading them."""
        if data is None:
            raise ValueError("data: expected a folder or a zip file of photographs, got none")
        images = load(data, size=size, flip=True, **options)
        train, held_out = split(images, 1 - max(0.2, 1.2 * count / len(images)))
        if place.type != "cpu":  # which waits for no file
            train = Dataset(train.name, train.read(slice(None)), bins=256, flip=True)
        features = partial(extract, EfficientNetLite0().to(place), device=place)
        real, others = (features(shades(part.read(slice(count)))) for part in (held_out, train))
        floor = compare(real, others).frechet
        print(f"{len(train)} images; real against real: {floor:.2f}", flush=True)
        return cls(images.name, train, held_out, features, real, floor)


def training(steps: int, lr: float = 2e-3, batch_size: int = BATCH) -> Training:
    """So many updates, the same of all models; accelerators capture them."""
    return Training(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        precision="auto",
        measurements=1,
        warmup=0.1,
        capture=True,
    )


def clock(device: torch.device) -> float:
    """Seconds: of an accelerator when it has done what it was asked for, of a processor alone."""
    if device.type == "cpu":
        return time.thread_time()
    torch.get_device_module(device).synchronize(device)  # type: ignore[no-untyped-call]
    return time.perf_counter()


def updates(
    models: Mapping[str, ScoreEstimator],
    data: Any,
    seconds: float,
    repeats: int,
    batch_size: int = BATCH,
) -> dict[str, int]:
    """How many fit into a time, by the medians of interleaved ones: a busy machine favours none."""
    elapsed: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            elapsed[name].append(_update(copy.deepcopy(model), data, batch_size))
    medians = {name: statistics.median(values) for name, values in elapsed.items()}
    print("seconds per update:", {k: round(v, 4) for k, v in medians.items()}, flush=True)
    return {name: max(1, round(seconds / value)) for name, value in medians.items()}


def _update(model: ScoreEstimator, data: Any, batch_size: int) -> float:
    """Seconds of an update: not of the first ones, of which an accelerator is told what comes."""
    device = device_of(model)
    first, last = (1, 3) if device.type == "cpu" else (8, 40)
    start = taken = 0.0

    def between(step: int) -> None:
        nonlocal start, taken
        if step == first:
            start = clock(device)
        if step == last:
            taken = (clock(device) - start) / (last - first)
            raise StopIteration

    with suppress(StopIteration):
        run = training(last + 1, batch_size=batch_size)
        run.fit(model, data, progress=False, on_step=between)
    return taken


@torch.no_grad()
def draw(model: ScoreEstimator, solver: Solver, count: int, seed: int) -> tuple[Tensor, float]:
    """Images, and the seconds that they took, on an accelerator without those of preparing."""
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    with autocast(autocast_dtype("auto", device), device):  # as in training
        if device.type == "cpu":
            start = clock(device)
            images = solver.sample(model, (count,), batch_size=TOGETHER, generator=generator)
            return images, clock(device) - start
        sampler = solver.compiled(model, (min(count, TOGETHER),))
        start = clock(device)
        samples = [sampler(generator) for _ in range(0, count, TOGETHER)]
        taken = clock(device) - start
    return torch.cat(samples)[:count], taken


def shades(values: Tensor) -> Tensor:
    """Stored images in [-1, 1]."""
    return values / 127.5 - 1


def bound_in_bits(model: ScoreEstimator, data: Dataset, count: int) -> float:
    """Bits per dimension of held-out images, at most."""
    generator = torch.Generator().manual_seed(0)
    x = dequantize(data.read(slice(count)), 256, generator).to(device_of(model))
    with torch.no_grad():
        nats = torch.stack([bound(model, x, generator=generator) for _ in range(4)]).mean()
    return round(float(bits_per_dim(nats, x[0].numel(), 256)), 3)


def over_seeds(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Means and ranges over the seeds of rows that have the same names."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        {
            **dict(zip(names, values, strict=True)),
            **{
                key: {"mean": round(statistics.mean(v), 4), "low": min(v), "high": max(v)}
                for key in keys
                for v in [[row[key] for row in group]]
            },
        }
        for values, group in groups.items()
    ]
