"""Wall-clock time of sampling: uniform against multi-scale diffusion.

U-Nets of one family with the same number of parameters in all; weights are random, since time
does not depend on them. Ratios are uniform time over multi-scale time, medians of interleaved
repetitions:

- ``equal_split_SIZE``: the same number of evaluations, shared equally between the stages;
- ``planned_SIZE``: the same number, shared as the planner says;
- ``equal_error_SIZE``: uniform Euler-Maruyama at 128 steps against a plan with no larger
  closed-form error on photographs' statistics (see the ``gaussian`` benchmark).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.unets import parameters
from estimators import Denoising, MultiScale, UNet
from scoresde import DiagonalSDE, Haar, LogLinear, Packed, ScoreEstimator, Solver
from scoresde.data import patches
from scoresde.planning import Plan, equal, plan, spectra
from solvers import ExponentialMultistep

UNIFORM = (72, 144, 216)
STAGES = {
    4: ((40, 80, 120), (40, 80), (40, 80), (48, 96, 144)),
    5: ((56, 104), (48, 88), (40, 80), (32, 64), (48, 96, 144)),
}  # coarse first
ERROR_OF_UNIFORM_EULER_MARUYAMA = 2.9e-3
"""At 128 steps, by the ``gaussian`` benchmark."""


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios and rows; ``quick`` has fewer evaluations, one image and one repetition."""
    torch.manual_seed(0)
    bands = spectra(Haar((1, 32, 32), 3), patches(32, stride=4).values.double() / 127.5 - 1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for size, levels in ((128, 3), (256, 4)):
        total = 2 * (levels + 1) if quick else 8 * (levels + 1)
        repeats, batch = (1, 1) if quick else (3, 4)
        basis = Haar((3, size, size), levels)
        uniform = Denoising(DiagonalSDE(LogLinear(), basis), _unet((3, size, size), UNIFORM))
        plans = {"equal_split": equal(basis, LogLinear(), total // (levels + 1))}
        photographs = dict(zip(basis.blocks.sizes, _pyramid(bands, levels), strict=True))
        solver = ExponentialMultistep(order=2)
        plans["planned"] = plan(basis, LogLinear(), photographs, solver, evaluations=total)
        if size == 128:
            plans["equal_error"] = plan(
                basis, LogLinear(), photographs, solver, error=ERROR_OF_UNIFORM_EULER_MARUYAMA
            )
        jobs: dict[str, tuple[ScoreEstimator, Solver]] = {
            # one uniform evaluation costs what any other does: count a few, scale up
            "uniform": (uniform, ExponentialMultistep(2))
        }
        for name, staged in plans.items():
            jobs[name] = (_multiscale(staged, levels), _walk(staged))
        seconds = _interleaved(
            {name: _sampling(*job, batch) for name, job in jobs.items()}, repeats
        )
        each = seconds["uniform"] / 2
        for name, staged in plans.items():
            evaluations = 128 if name == "equal_error" else sum(staged.steps)
            key = f"{name}_{size}"
            ratios[key] = round(evaluations * each / seconds[name], 2)
            rows.append(
                {
                    "name": key,
                    "steps": list(staged.steps),
                    "uniform_evaluations": evaluations,
                    "uniform_seconds": evaluations * each,
                    "seconds": seconds[name],
                    "parameters_uniform": parameters(uniform.network),
                    "parameters": parameters(jobs[name][0]),
                }
            )
            print(rows[-1], flush=True)
    return {"ratios": ratios, "rows": rows}


def _pyramid(bands: dict[str, torch.Tensor], levels: int) -> list[torch.Tensor]:
    """Spectra of photographs for a taller pyramid: coarse bands repeat the power law."""
    coarse, *details = bands.values()
    while len(details) < levels:
        details.insert(0, 4 * details[0])
    return [coarse, *details]


def _unet(shape: Sequence[int], widths: Sequence[int]) -> UNet:
    return UNet(shape, widths, blocks=1, attention=0)


def _multiscale(staged: Plan, levels: int) -> MultiScale:
    basis = staged.sde.basis
    assert isinstance(basis, Haar)
    views = [basis.coarse(levels), *(Packed(basis.coarse(k)) for k in reversed(range(levels)))]
    networks = [
        _unet(view.event_shape, widths)
        for view, widths in zip(views, STAGES[levels + 1], strict=True)
    ]
    return MultiScale(staged.sde, networks, network_bases=views)


def _walk(staged: Plan) -> Solver:
    return ExponentialMultistep(len(staged.times) - 1, order=2, grid=staged.grid)


def _sampling(model: ScoreEstimator, solver: Solver, batch: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    model.eval()

    def sample() -> object:
        with torch.no_grad():
            return solver.rsample(model, (batch,), generator=generator)

    return sample


def _interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of every job, run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}
