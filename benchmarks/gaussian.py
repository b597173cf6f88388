"""Error against cost on natural-image statistics, in closed form.

A Gaussian is fitted to 32x32 grey patches of two photographs; with its exact score every
solver's samples have a distribution known exactly. Error: ``W2^2 / trace``; cost: full-resolution
evaluations. Plans are made for these patches, then used as they are, noise scales included, on
grey patches of other images: those in the folder or zip file given as ``--data``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.beds import cost, relative_w2, sample_moments
from benchmarks.images import grey_patches
from estimators import Gaussian
from scoresde import DiagonalSDE, Haar, LogLinear, Solver
from scoresde.data import patches
from scoresde.planning import equal, kurtosis, plan, spectra
from solvers import DDIM, EulerMaruyama, ExponentialMultistep

SECOND = ExponentialMultistep(order=2, corrected=False, grid="log_snr")
"""The multistep solver in general use is of this kind."""


def run(quick: bool = False, data: Path | None = None) -> dict[str, Any]:
    """All rows; with ``quick`` those that take seconds."""
    torch.manual_seed(0)
    x = patches(32, stride=4).values.double() / 127.5 - 1
    basis, schedule = Haar((1, 32, 32), levels=3), LogLinear()
    bands = spectra(basis, x)
    std = basis.blocks.mean(basis(x).var(0)).sqrt()
    uniform, normalised = DiagonalSDE(schedule, basis), DiagonalSDE(schedule, basis, scale=std)
    photographs = moments(x)
    rows: list[dict[str, Any]] = []

    def measure(
        name: str, sde: DiagonalSDE, solver: Solver, steps: str, bed: tuple[Tensor, Tensor]
    ) -> None:
        start = time.perf_counter()
        mean, covariance = bed
        moments = sample_moments(Gaussian(sde, mean.reshape(1, 32, 32), covariance), solver)
        row = {
            "schedule": name,
            "solver": f"{type(solver).__name__}, order {solver.order:g}, eta = {solver.eta:g}",
            "steps": steps,
            "cost": cost(sde, solver),
            "error": relative_w2(mean, covariance, moments),
        }
        rows.append(row)
        text = "{schedule:36} {solver:42} {steps:>12} cost {cost:7.2f} error {error:.2e}"
        print(text.format(**row), f"({time.perf_counter() - start:.0f} s)", flush=True)

    for steps in (24, 48):
        second = attrs.evolve(SECOND, steps=steps)
        measure("uniform", uniform, second, str(steps), photographs)
        for solver in (second, ExponentialMultistep(steps)):
            measure("uniform, band-normalised", normalised, solver, str(steps), photographs)
    for steps in (4, 8) if quick else (4, 8, 16, 32):
        for name, scale in (("the paper's multi-scale", 1.0), ("multi-scale, normalised", std)):
            staged = equal(basis, schedule, steps, scale)
            second = attrs.evolve(SECOND, steps=len(staged.times) - 1, grid=staged.grid)
            measure(name, staged.sde, second, f"4 x {steps}", photographs)
    if not quick:
        maruyama = EulerMaruyama(128, eta=1.0, grid="uniform_time")
        measure("uniform", uniform, maruyama, "128", photographs)
        measure("uniform", uniform, DDIM(128), "128", photographs)
        for steps in (4, 8, 16, 32):
            staged = equal(basis, schedule, steps)
            maruyama = EulerMaruyama(len(staged.times) - 1, eta=1.0, grid=staged.grid)
            measure(
                "the paper's multi-scale",
                staged.sde,
                maruyama,
                f"4 x {steps}",
                photographs,
            )
    beds = {"planned": photographs}
    if data is not None:
        beds["planned for photographs, other images"] = moments(grey_patches(data, 32))
    planner = ExponentialMultistep(order=2)
    tails = kurtosis(basis, x)
    budgets = [(4.0, None)] if quick else [(v, k) for k in (None, tails) for v in (3.0, 4.0, 8.0)]
    for budget, known in budgets:
        staged = plan(basis, schedule, bands, planner, cost=budget, kurtosis=known)
        solver = attrs.evolve(planner, steps=sum(staged.steps), grid=staged.grid)
        for name, bed in beds.items():
            kind = name if known is None else f"{name}, heavy tails"
            measure(kind, staged.sde, solver, ",".join(map(str, staged.steps)), bed)
    for name, bed in list(beds.items())[1:]:
        second = attrs.evolve(SECOND, steps=24)
        measure(f"uniform, {name.split(', ')[-1]}", uniform, second, "24", bed)
    return {"rows": rows}


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of flattened events."""
    return x.mean(0).flatten(), torch.cov(x.flatten(1).mT)
