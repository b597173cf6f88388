"""Trained on real images: uniform against multi-scale diffusion, nothing else different.

Fashion-MNIST at 32x32; both arms have the same data, number of parameters, network family,
weighting, batch size, optimiser, schedule, preconditioning per band and solver. Two budgets:

- ``equal updates``: every parameter has seen the same number of updates;
- ``equal time``: the multi-scale model, whose updates are cheaper, gets as many more as fit.
  Updates are timed side by side, so that a busy machine does not favour an arm.

A third arm, ``uniform, packed``, is uniform diffusion whose network sees 4x16x16 coefficients
instead of 1x32x32 pixels: what packing alone would gain. Quality is the Frechet distance in the
features of a small classifier to held-out images, beside that of other real images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.images import FASHION, Classifier, fashion
from benchmarks.unets import UNet, parameters
from estimators import Denoising, MultiScale, measure
from scoresde import Basis, DiagonalSDE, Haar, Hutchinson, LogLinear, Packed, log_prob
from scoresde.app import plots
from scoresde.data import Dataset, bits_per_dim, dequantize, quantize
from scoresde.likelihood.variational import bound
from scoresde.metrics import extract, frechet_distance
from scoresde.planning import Plan, plan, spectra
from scoresde.training import Training
from solvers import ExponentialMultistep

UNIFORM = (32, 64, 96)
PACKED = (32, 64, 96)
STAGES = ((32, 56), (24, 48), (32, 72))  # coarse first
BATCH = 32
SOLVER = ExponentialMultistep(order=2, corrected=False, grid="log_snr")


def run(
    quick: bool = False, data: Path | None = None, pictures: Path | None = None
) -> dict[str, Any]:
    """Rows and medians; ``quick`` trains for a moment only, to show that it runs."""
    updates, count, seeds = (20, 64, 1) if quick else (600, 1000, 3)
    images = fashion(data or FASHION)
    train = Dataset("Fashion-MNIST", images["train"][0], 256)
    real = images["test"][0] / 127.5 - 1
    classifier = Classifier()
    classifier.fit(train.values[: 60 * count] / 127.5 - 1, images["train"][1][: 60 * count])
    accuracy = float((classifier(real).argmax(1) == images["test"][1]).double().mean())
    reference = real[:count]
    floor = _frechet(classifier, real[count : 2 * count], reference)
    print(f"classifier: accuracy {accuracy:.3f}, real against real {floor:.2f}", flush=True)

    basis = Haar((1, 32, 32), 2)
    x = dequantize(train.values[:5000], 256, torch.Generator().manual_seed(0))
    scales = measure(DiagonalSDE(LogLinear(), basis), x)
    bands = spectra(basis, x)
    staged = plan(basis, LogLinear(), bands, SOLVER, cost=5.0)
    print(f"plan: {staged.steps} steps, stages from {staged.sde.drop}, error {staged.error:.1e}")
    arms = _arms(basis, staged, scales)
    seconds = _seconds_per_update(arms, train, 2 if quick else 6)
    print("seconds per update:", {k: round(v, 3) for k, v in seconds.items()}, flush=True)
    rows: list[dict[str, Any]] = []
    panels = {"real": reference[:32]}
    for seed in range(seeds):
        jobs = [("uniform", updates, "both")]
        for name in ("uniform, packed", "multi-scale"):
            more = round(updates * seconds["uniform"] / seconds[name])
            jobs += [(name, updates, "equal updates"), (name, more, "equal time")]
        for name, steps, budget in jobs:
            if name == "uniform, packed" and (seed or budget == "equal updates"):
                continue
            torch.manual_seed(seed)
            model = arms[name]()
            training = Training(steps=steps, batch_size=BATCH, measurements=1, ema=0.99)
            history = training.fit(model, train, seed=seed, progress=False)
            solver = _solver(name, staged)
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(seed)
            parts = [
                solver.sample(model, (part,), generator=generator)
                for part in [min(100, count)] * max(1, count // 100)
            ]
            elapsed = time.perf_counter() - start
            samples = quantize(torch.cat(parts), 256) / 127.5 - 1
            row = {
                "arm": name,
                "budget": budget,
                "seed": seed,
                "parameters": parameters(model),
                "updates": steps,
                "seconds_train": round(history.seconds, 1),
                "solver": f"ExponentialMultistep, {solver.steps} steps",
                "seconds_sample": round(elapsed, 2),
                "frechet": round(_frechet(classifier, samples, reference), 2),
                **_likelihood(model, images["test"][0], quick),
            }
            rows.append(row)
            print(row, flush=True)
            if seed == 0:
                panels[f"{name}, {budget}"] = samples[:32]
    if pictures is not None:
        plots.save(plots.image_grid(panels), pictures)
    return {
        "data": train.name,
        "samples": count,
        "floor": round(floor, 2),
        "classifier_accuracy": round(accuracy, 4),
        "seconds_per_update": {k: round(v, 4) for k, v in seconds.items()},
        "summary": _summary(rows),
        "rows": rows,
    }


def _arms(
    basis: Haar, staged: Plan, scales: dict[str, Tensor]
) -> dict[str, Callable[[], Denoising | MultiScale]]:
    """Untrained models by name."""
    flat = DiagonalSDE(LogLinear(), basis)
    packed = Packed(basis.coarse(0))
    views: list[Basis] = [basis.coarse(2), Packed(basis.coarse(1)), packed]

    def multiscale() -> MultiScale:
        networks = [UNet(v.event_shape, w) for v, w in zip(views, STAGES, strict=True)]
        return MultiScale(staged.sde, networks, network_bases=views, **scales)

    return {
        "uniform": lambda: Denoising(flat, UNet((1, 32, 32), UNIFORM), **scales),
        "uniform, packed": lambda: Denoising(
            flat, UNet(packed.event_shape, PACKED), network_basis=packed, **scales
        ),
        "multi-scale": multiscale,
    }


def _solver(name: str, staged: Plan) -> ExponentialMultistep:
    if name == "multi-scale":
        return attrs.evolve(SOLVER, steps=sum(staged.steps), grid=staged.grid)
    return attrs.evolve(SOLVER, steps=16)


def _frechet(classifier: Classifier, a: Tensor, b: Tensor) -> float:
    return frechet_distance(*(extract(classifier.features, x) for x in (a, b)))


def _seconds_per_update(
    arms: dict[str, Callable[[], Denoising | MultiScale]], data: Dataset, repeats: int
) -> dict[str, float]:
    """Medians of interleaved updates."""
    models = {name: make() for name, make in arms.items()}
    elapsed: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, model in models.items():
            history = Training(steps=2, batch_size=BATCH, measurements=1).fit(
                model, data, progress=False
            )
            elapsed[name].append(history.seconds / 2)
    return {name: statistics.median(values) for name, values in elapsed.items()}


def _likelihood(model: Denoising | MultiScale, test: Tensor, quick: bool) -> dict[str, Any]:
    """Bits per dimension of held-out images: the bound, and the flow with random probes."""
    generator = torch.Generator().manual_seed(0)
    x = dequantize(test[: 16 if quick else 512], 256, generator)
    with torch.no_grad():
        bounds = torch.stack([bound(model, x, generator=generator) for _ in range(4)]).mean(0)
    few, trace = x[: 2 if quick else 32], Hutchinson(1)
    solver = ExponentialMultistep(8 if quick else 64, grid="log_snr")
    flow = log_prob(model, few, solver, trace=trace, generator=generator).value
    values = {"bits_per_dim_bound": -bounds, "bits_per_dim_flow": flow.detach()}
    found = {}
    for key, nats in values.items():
        value = bits_per_dim(nats, 1024, 256)
        found[key] = round(float(value.mean()), 3)
        found[f"{key}_stderr"] = round(float(value.std() / len(value) ** 0.5), 3)
    return found


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["budget"], row["solver"]), []).append(row)
    return [
        {
            "arm": arm,
            "budget": budget,
            "solver": solver,
            **{
                key: {
                    "mean": statistics.mean(values),
                    "low": min(values),
                    "high": max(values),
                }
                for key in group[0]
                if key not in ("arm", "budget", "solver", "seed")
                for values in [[row[key] for row in group if key in row]]
            },
        }
        for (arm, budget, solver), group in groups.items()
    ]
