"""What benchmarks share that train several models on photographs for the same time."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde import ScoreEstimator, Solver, bound
from scoresde.data import Dataset, bits_per_dim, dequantize
from scoresde.training import Training

BATCH = 32


def training(steps: int, lr: float = 2e-3) -> Training:
    """So many updates, the same of all models."""
    return Training(
        steps=steps, batch_size=BATCH, lr=lr, precision="bfloat16", measurements=1, warmup=0.1
    )


def updates(
    models: Mapping[str, ScoreEstimator], data: Dataset, seconds: float, repeats: int
) -> dict[str, int]:
    """How many fit into a time, by the medians of interleaved ones: a busy machine favours none."""
    elapsed: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            start = time.thread_time()
            training(3).fit(copy.deepcopy(model), data, progress=False)
            one = time.thread_time()
            training(1).fit(copy.deepcopy(model), data, progress=False)
            elapsed[name].append((2 * one - start - time.thread_time()) / 2)
    found = {name: statistics.median(values) for name, values in elapsed.items()}
    print("seconds per update:", {k: round(v, 3) for k, v in found.items()}, flush=True)
    return {name: max(1, round(seconds / value)) for name, value in found.items()}


@torch.no_grad()
def draw(model: ScoreEstimator, solver: Solver, count: int, seed: int) -> tuple[Tensor, float]:
    """Images, and the processor time that they took."""
    generator, start = torch.Generator().manual_seed(seed), time.thread_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = solver.sample(model, (count,), batch_size=100, generator=generator)
    return samples, time.thread_time() - start


def shades(values: Tensor) -> Tensor:
    """Stored images in [-1, 1]."""
    return values / 127.5 - 1


def bound_in_bits(model: ScoreEstimator, data: Dataset, count: int) -> float:
    """Bits per dimension of held-out images, at most."""
    generator = torch.Generator().manual_seed(0)
    x = dequantize(data.read(slice(count)), 256, generator)
    with torch.no_grad():
        nats = torch.stack([bound(model, x, generator=generator) for _ in range(4)]).mean()
    return round(float(bits_per_dim(nats, x[0].numel(), 256)), 3)


def spread(rows: Sequence[Mapping[str, Any]], name: str, keys: Sequence[str]) -> list[Any]:
    """Means and ranges over the seeds of rows that have one name."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return [
        {
            name: value,
            **{
                key: {"mean": round(statistics.mean(v), 3), "low": min(v), "high": max(v)}
                for key in keys
                for v in [[row[key] for row in group]]
            },
        }
        for value, group in groups.items()
    ]
