"""Error of log-densities against evaluations and time, on mixtures with exact scores.

Ours against the usual practice, the whole field by RK45 at 1e-5: torchdiffeq's dopri5, and scipy's
RK45 over the flattened batch as in the score-SDE code (Song et al. 2021), all with the same exact
trace; on a rectified flow also against ``flow_matching``'s likelihood (dopri5) and, on its trace,
zuko's free-form flow (its own adaptive integrator), both with the exact velocity. Error: mean
absolute difference per dimension from the closed form, in nats. Time: the fastest of some runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import mixture
from estimators import GaussianMixture
from scoresde import (
    VP,
    DiagonalSDE,
    ExactTrace,
    Identity,
    LogLinear,
    Noise,
    ProbabilityFlow,
    Quadrature,
    RectifiedFlow,
    log_prob,
)
from scoresde.likelihood import DensityFlow
from solvers import Adaptive, ExponentialMultistep, TorchDiffEq

TARGET = 1e-3
"""Nats per dimension."""
USUAL = 1e-5
"""Tolerances, relative and absolute, of the usual practice."""
STEPS = (10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 33, 36, 40, 45, 50, 60, 80, 100)
BEDS: dict[str, tuple[Callable[[int], DiagonalSDE], int, int, float, int]] = {
    "VP, 2-D": (lambda n: DiagonalSDE(VP(), Identity((n,))), 2, 3, 0.1, 256),
    "non-uniform VP, 2-D": (
        lambda n: DiagonalSDE(VP(), Identity((n,)), torch.linspace(0.6, 1.0, n)), 2, 3, 0.1, 256,
    ),
    "VP, 16-D": (lambda n: DiagonalSDE(VP(), Identity((n,))), 16, 4, 0.3, 128),
    "non-uniform VP, 16-D": (
        lambda n: DiagonalSDE(VP(), Identity((n,)), torch.linspace(0.6, 1.0, n)), 16, 4, 0.3, 128,
    ),
    "VP, 256-D": (lambda n: DiagonalSDE(VP(), Identity((n,))), 256, 4, 0.3, 4),
    "non-uniform VP, 256-D": (
        lambda n: DiagonalSDE(VP(), Identity((n,)), torch.linspace(0.6, 1.0, n)), 256, 4, 0.3, 4,
    ),
    "log-linear, clocks that stop, 2-D": (
        lambda n: DiagonalSDE(LogLinear(), Identity((n,)), [1.0, 1.5]), 2, 3, 0.1, 256,
    ),
    "rectified flow, 2-D": (
        lambda n: DiagonalSDE(RectifiedFlow(), Identity((n,))), 2, 3, 0.1, 256,
    ),
    "rectified flow, 16-D": (
        lambda n: DiagonalSDE(RectifiedFlow(), Identity((n,))), 16, 4, 0.3, 128,
    ),
}  # fmt: skip
"""SDE, dimension, modes, their width, and the number of events."""

Found = tuple[Tensor, float]
"""Log-densities, and the number of evaluations."""


def run(quick: bool = False) -> dict[str, Any]:
    """Rows, and theirs over ours at 1e-3 nats per dimension on every bed."""
    rows: list[dict[str, Any]] = []
    evaluations: dict[str, float] = {}
    seconds: dict[str, float] = {}
    names = list(BEDS)[:2] + list(BEDS)[-2:-1] if quick else list(BEDS)
    for bed in names:
        make, n, modes, width, count = BEDS[bed]
        torch.manual_seed(0)
        model = mixture(make(n), modes, width)
        marginal, model.sde.prior = (
            model.marginal(torch.tensor([t], dtype=torch.float64))
            for t in (model.sde.eps, model.sde.T)
        )
        x = marginal.sample((count // 4 if quick else count,))
        truth = marginal.log_prob(x)

        def measure(
            name: str,
            find: Callable[[], Found],
            repeats: int = 1 if quick or n > 100 else 3,
            bed: str = bed,
            truth: Tensor = truth,
            n: int = n,
        ) -> dict[str, Any]:
            spent = []
            for _ in range(repeats):
                start = time.perf_counter()
                value, used = find()
                spent.append(time.perf_counter() - start)
            error = (value - truth).abs() / n
            row = {
                "bed": bed,
                "method": name,
                "evaluations": used,
                "seconds": min(spent),
                "error": float(error.mean()),
                "median_error": float(error.median()),
            }
            rows.append(row)
            return row

        def ours(method: Any, model: GaussianMixture = model, x: Tensor = x) -> Callable[[], Found]:
            def find() -> Found:
                estimate = log_prob(model, x, method, errors=False)
                return estimate.value, estimate.evaluations

            return find

        reached = None
        for steps in STEPS[5::2] if quick else STEPS[4 :: 1 + (n > 100)]:
            row = measure(f"ours: Quadrature({steps})", ours(Quadrature(steps)))
            if row["error"] <= TARGET:
                reached = row
                break
        theirs = [
            measure("dopri5 (torchdiffeq)", ours(TorchDiffEq(rtol=USUAL, atol=USUAL))),
            measure("RK45 (scipy)", lambda model=model, x=x: scipy_rk45(model, x)),
        ]
        if not quick and n < 100:
            measure("ours: ExponentialMultistep(60)", ours(ExponentialMultistep(60)))
            measure("ours: Adaptive", ours(Adaptive(rtol=1e-3, atol=1e-3)))
        if bed.startswith("rectified"):
            theirs += peers(model, x, measure)
        if reached is not None:
            # the best of them, each as its users run it
            evaluations[bed] = round(
                min(row["evaluations"] for row in theirs) / reached["evaluations"], 2
            )
            seconds[bed] = round(min(row["seconds"] for row in theirs) / reached["seconds"], 2)
        for row in [*([reached] if reached else []), *theirs]:
            print(
                "{bed:34} {method:28} {evaluations:6.1f} evaluations {seconds:7.3f} s  "
                "error {error:.1e} (median {median_error:.0e})".format(**row),
                flush=True,
            )
    for estimate in (evaluations, seconds):
        estimate["geometric mean"] = round(geometric_mean(estimate.values()), 2)
    ratios = {"evaluations_at_1e-3": evaluations, "seconds_at_1e-3": seconds}
    return {"ratios": ratios, "rows": rows}


def field(model: GaussianMixture, x: Tensor) -> DensityFlow:
    """Velocity and the diagonal of its Jacobian."""
    flow, trace = ProbabilityFlow(model), ExactTrace()
    return DensityFlow(flow, trace, trace.draw(x, Noise()))


def scipy_rk45(model: GaussianMixture, x: Tensor) -> Found:
    """As the published score-SDE code: all samples one system, tolerances for all of them."""
    from scipy.integrate import solve_ivp

    density, shape = field(model, x), x.shape

    def right(t: float, y: Any) -> Any:
        z = torch.from_numpy(y[: x.numel()]).reshape(shape)
        rate = density.f(torch.tensor(t, dtype=torch.float64), density.start(z))
        velocity, trace = density.split(rate)
        return torch.cat([velocity.flatten(), trace.flatten()]).numpy()

    start = torch.cat([x.flatten(), x.new_zeros(len(x))]).numpy()
    span = (model.sde.eps, model.sde.T)
    end = solve_ivp(right, span, start, method="RK45", rtol=USUAL, atol=USUAL).y[:, -1]
    z = torch.from_numpy(end[: x.numel()]).reshape(shape)
    assert model.sde.prior is not None
    return model.sde.prior.log_prob(z) + torch.from_numpy(
        end[x.numel() :]
    ), density.evaluated // len(x)


def peers(model: GaussianMixture, x: Tensor, measure: Callable[..., Any]) -> list[dict[str, Any]]:
    """flow_matching's and zuko's likelihoods of the same flow, where they are installed.

    Their time runs from 0 to 1, from noise to data and from data to noise.
    """
    density, evaluations_so_far = field(model, x), [0]
    low, high = model.sde.eps, model.sde.T
    span, prior = high - low, model.sde.prior
    assert prior is not None
    rows = []
    try:
        from flow_matching.solver import ODESolver
        from flow_matching.utils import ModelWrapper

        class Velocity(ModelWrapper):  # type: ignore[misc]
            def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
                evaluations_so_far[0] += 1
                return -span * density.flow(high - span * t, x)

        def matched() -> Found:
            evaluations_so_far[0] = 0
            solver = ODESolver(Velocity(torch.nn.Identity()))
            _, value = solver.compute_likelihood(
                x, prior.log_prob, None, "dopri5", USUAL, USUAL,
                torch.tensor([1.0, 0.0], dtype=x.dtype), exact_divergence=True,
            )  # fmt: skip
            return value.detach(), evaluations_so_far[0]

        rows.append(measure("flow_matching, dopri5", matched))
    except ImportError:
        print("flow_matching is not installed")
    try:
        from zuko.transforms import FreeFormJacobianTransform

        def free() -> Found:
            evaluations_so_far[0] = 0

            def velocity(t: Tensor, z: Tensor) -> Tensor:
                evaluations_so_far[0] += 1
                return density.flow(t, z)

            low_t, high_t = (x.new_tensor(v) for v in (low, high))
            transform = FreeFormJacobianTransform(
                velocity, low_t, high_t, atol=USUAL, rtol=USUAL, exact=True
            )
            with torch.no_grad():
                z, gained = transform.call_and_ladj(x)
                return prior.log_prob(z) + gained, evaluations_so_far[0]

        rows.append(measure("zuko, free-form", free))
    except ImportError:
        print("zuko is not installed")
    return rows
