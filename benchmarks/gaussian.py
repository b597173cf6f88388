"""Error against cost on natural-image statistics, in closed form.

A Gaussian is fitted to 32x32 grey patches of two photographs; with its exact score every
solver's samples have a law known exactly. Error: ``W2^2 / trace``; cost: full-resolution
evaluations. Plans are made from one photograph's patches and the other's as well (tuned), then
used unchanged on other images (untuned): each photograph alone.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.beds import cost, relative_w2, sample_law
from estimators import Gaussian
from scoresde import DiagonalSDE, Haar, LogLinear, Solver
from scoresde.data import patches
from scoresde.planning import equal, plan, spectra
from solvers import DDIM, EulerMaruyama, ExponentialMultistep


def run(quick: bool = False) -> dict[str, Any]:
    """All rows; with ``quick`` those that take seconds."""
    torch.manual_seed(0)
    x = patches(32, stride=4).values.double() / 127.5 - 1
    basis, schedule = Haar((1, 32, 32), levels=3), LogLinear()
    mean, covariance = x.mean(0), torch.cov(x.flatten(1).mT)
    bands = spectra(basis, x)
    std = basis.blocks.mean(basis(x).var(0)).sqrt()
    uniform, normalised = DiagonalSDE(schedule, basis), DiagonalSDE(schedule, basis, scale=std)
    rows: list[dict[str, Any]] = []

    def measure(schedule_name: str, sde: DiagonalSDE, solver: Solver, steps: str = "") -> None:
        start = time.perf_counter()
        law = sample_law(Gaussian(sde, mean, covariance), solver)
        row = {
            "schedule": schedule_name,
            "solver": f"{type(solver).__name__}, eta = {solver.eta:g}",
            "steps": steps or str(solver.steps),
            "cost": cost(sde, solver),
            "error": relative_w2(mean.flatten(), covariance, law),
        }
        rows.append(row)
        seconds = time.perf_counter() - start
        print(
            "{schedule:28} {solver:30} {steps:>12} cost {cost:7.2f} error {error:.2e}".format(
                **row
            ),
            f"({seconds:.0f} s)",
            flush=True,
        )

    for steps in (24, 48):
        measure("uniform", uniform, ExponentialMultistep(steps))
        measure("uniform, band-normalised", normalised, ExponentialMultistep(steps))
    for steps in (4, 8) if quick else (4, 8, 16, 32):
        paper = equal(basis, schedule, steps)
        solver = ExponentialMultistep(len(paper.times) - 1, grid=paper.grid)
        measure("the paper's multi-scale", paper.sde, solver, f"4 x {steps}")
        scaled = equal(basis, schedule, steps, std)
        solver = ExponentialMultistep(len(scaled.times) - 1, grid=scaled.grid)
        measure("multi-scale, normalised", scaled.sde, solver, f"4 x {steps}")
    if not quick:
        measure("uniform", uniform, EulerMaruyama(128, eta=1.0, grid="uniform_time"))
        measure("uniform", uniform, DDIM(128))
        for steps in (4, 8, 16, 32):
            paper = equal(basis, schedule, steps)
            solver = EulerMaruyama(len(paper.times) - 1, eta=1.0, grid=paper.grid)
            measure("the paper's multi-scale", paper.sde, solver, f"4 x {steps}")
    for budget in (4.5, 8.0):
        planned = plan(basis, schedule, bands, ExponentialMultistep(), cost=budget)
        solver = ExponentialMultistep(sum(planned.steps), grid=planned.grid)
        measure("planned", planned.sde, solver, ",".join(map(str, planned.steps)))
    return {"rows": rows}
