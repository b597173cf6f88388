"""Multi-scale plans from data: when blocks are dropped, and where steps are.

For data with independent coefficients the error of a deterministic solver's samples is known
without sampling. A plan minimises it: bands are replaced by distributions of the same power and
tails, steps are added where they reduce the error most, and ends of stages are optimised. Coarse
stages are cheap, and so get most of the steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.bases import Basis
from scoresde.checks import expect, instance, real
from scoresde.planning.bands import Spectra
from scoresde.planning.denoising_errors import DenoisingErrors
from scoresde.planning.draft_evaluator import DraftEvaluator
from scoresde.planning.independent_gaussian import expect_data_alone
from scoresde.planning.search import Search
from scoresde.schedules import Schedule
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver

_WORTH = 0.05
"""By how much an evaluation must lower the logarithm of the error: what is within 5% of what there
is without it is not worth the time. One at full resolution, unless evaluations are counted."""


@attrs.frozen(eq=False)
class Plan:
    """A multi-scale SDE and the times at which to sample it.

    Use as ``Solver(steps=sum(plan.steps), grid=plan.grid)`` on an estimator of ``plan.sde``.

    Attributes:
        sde: Drops every block at the start of the stage that it enters.
        times: Decreasing, from ``T`` to ``eps``.
        steps: Steps per stage, coarse first; of an SDE whose clocks start or stop within one
            (`replan`), between every two of its breakpoints.
        cost: Sum over steps of active over all components: full-resolution evaluations.
        error: ``W2^2 / trace`` between samples and Gaussian data of these spectra; NaN, as what
            follows, of a plan that was made without any (`equal`).
        prior_loss: Bound on the divergence of what stages append from the data, in nats:
            ``sum_k SNR_k(T_k) E|d_k|^2 / 2``.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> from solvers import DDIM
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> DDIM(sum(made.steps), grid=made.grid).times(made.sde).shape
        torch.Size([9])
    """

    sde: DiagonalSDE
    times: Tensor
    steps: tuple[int, ...]
    cost: float
    error: float
    prior_loss: float

    def grid(self, sde: SDE, steps: int) -> Tensor:
        """The plan's times, as a `scoresde.sampling.grid.Grid`."""
        return self.times


@torch.no_grad()  # a schedule may be one that is learned
def plan(
    basis: Basis,
    schedule: Schedule,
    bands: Spectra,
    solver: Solver,
    *,
    error: float = 0.0,
    cost: float = math.inf,
    evaluations: float = math.inf,
    kurtosis: Mapping[str, float] | None = None,
    learned: DenoisingErrors | None = None,
    delays: bool = False,
) -> Plan:
    """The cheapest plan found that reaches an error, or the best within a budget.

    The search is among integers, so that plans are the same on every machine, and nearly the same
    for other data of the kind.

    Args:
        basis: Its blocks are dropped one by one, the last one first.
        schedule: Read by every band on a clock that stops when the band is dropped.
        bands: What is known of the data, see `spectra`.
        solver: A deterministic solver, whose grid is planned.
        error: Wanted ``W2^2 / trace`` on Gaussian data.
        cost: Allowed cost, in full-resolution evaluations.
        evaluations: Allowed number of steps in all.
        kurtosis: Of the bands, see `scoresde.planning.kurtosis`: where it is above 3, as of images,
            steps are placed for coefficients with tails as heavy, which need more of them than
            Gaussian ones.
        learned: Errors of an estimator on data of the kind: no step is spent where they are larger
            than what it would gain.
        delays: Whether clocks of coarse bands may be delayed, too: in reverse such a band is
            finished before those that enter after it. Stages and steps are found without, and then
            moved; where no delay helps, all are 0.

    Raises:
        ValueError: If neither an error nor a budget is given, or the solver is stochastic, or
            the budget does not allow one step per stage.

    Example:
        >>> import torch
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import plan, spectra
        >>> from solvers import DDIM
        >>> _ = torch.manual_seed(0)
        >>> basis = Haar((1, 4, 4), 1)
        >>> bands = spectra(basis, torch.randn(100, 1, 1, 1) + 0.1 * torch.randn(100, 1, 4, 4))
        >>> made = plan(basis, LogLinear(), bands, DDIM(), evaluations=5)
        >>> sum(made.steps), made.cost < 5
        (5, True)
    """
    _check(basis, bands, solver, kurtosis)
    expect(schedule.width == 1, "schedule", "one that all blocks share", schedule)
    evaluator = DraftEvaluator(basis, schedule, bands, solver, kurtosis=kurtosis, learned=learned)
    return _searched(evaluator, error, cost, evaluations, delays)


@torch.no_grad()
def replan(
    sde: DiagonalSDE,
    bands: Spectra,
    solver: Solver,
    *,
    error: float = 0.0,
    cost: float = math.inf,
    evaluations: float = math.inf,
    kurtosis: Mapping[str, float] | None = None,
    learned: DenoisingErrors | None = None,
) -> Plan:
    """Other steps for the SDE that a model was trained on, whose stages stay as they are.

    Steps are between its breakpoints, whatever its clocks: stages are divided where one starts
    (delays, `scoresde.front`) or stops.

    Args:
        sde: With or without stages.
        bands: As of `plan`, as the others.
        solver: As there.
        error: As there.
        cost: As there.
        evaluations: As there.
        kurtosis: As there.
        learned: As there; measured on held-out data by `DenoisingErrors.of`.

    Raises:
        TypeError: If ``sde`` is no `scoresde.DiagonalSDE`.
        ValueError: As of `plan`, or if states have velocities (`scoresde.PhaseSDE`).

    Example:
        >>> import torch
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal, replan
        >>> from solvers import DDIM
        >>> sde = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4).sde
        >>> bands = {"a1": torch.tensor([9.0, 1.0]), "d1": torch.tensor([1.0, 0.5])}
        >>> made = replan(sde, bands, DDIM(), evaluations=6)
        >>> made.sde is sde, sum(made.steps), len(made.times)
        (True, 6, 7)
    """
    instance("sde", sde, DiagonalSDE)
    expect_data_alone(sde)
    expect(sde.schedule.width == 1, "schedule", "one that all blocks share", sde.schedule)
    width, wanted = sde.clock.width, "a clock that all have, or one for each block"
    expect(width in (1, len(sde.blocks)), "sde", wanted, f"{width} clocks")
    _check(sde.basis, bands, solver, kurtosis)
    options: dict[str, Any] = {"kurtosis": kurtosis, "learned": learned}
    evaluator = DraftEvaluator(sde.basis, sde.schedule, bands, solver, sde=sde, **options)
    return _searched(evaluator, error, cost, evaluations)


def _check(
    basis: Basis, bands: Spectra, solver: Solver, kurtosis: Mapping[str, float] | None
) -> None:
    expect(solver.eta == 0, "solver", "a deterministic one (eta = 0)", solver)
    expect(list(bands) == list(basis.blocks.sizes), "bands", f"{basis.blocks}", list(bands))
    for name, band in bands.items():
        good = len(band) > 0 and bool(band.isfinite().all() and (band >= 0).all())
        expect(good, f"bands[{name!r}]", "variances, at least 0", band)
    expect(any(bool(band.any()) for band in bands.values()), "bands", "data that vary", "zeros")
    for name, value in (kurtosis or {}).items():
        expect(name in bands, "kurtosis", f"those of {list(bands)}", name)
        real(f"kurtosis[{name!r}]", value, 0)


def _searched(
    evaluator: DraftEvaluator, error: float, cost: float, evaluations: float, delays: bool = False
) -> Plan:
    wanted, budget = error > 0, min(cost, evaluations) < math.inf
    expect(wanted or budget, "error, cost, evaluations", "one of them", (error, cost, evaluations))
    least, stages = sum(evaluator.active) / evaluator.active[-1], len(evaluator.active)
    expect(least <= cost, "cost", f"at least {least:.3g}", cost)
    expect(stages <= evaluations, "evaluations", f"at least {stages}", evaluations)
    by_cost = wanted or cost < math.inf
    search = Search(
        evaluator,
        allowed=lambda draft: evaluator.cost(draft) <= cost and sum(draft.steps) <= evaluations,
        price=evaluator.cost if by_cost else lambda draft: sum(draft.steps),
        worth=_WORTH,
    )
    best = search.run(lambda draft: wanted and evaluator.exact(draft) <= error)
    if delays:
        best = search.delayed(best)
    sde, times = evaluator.sde(best)
    loss = evaluator.prior_loss(best)
    return Plan(sde, times, best.steps, evaluator.cost(best), evaluator.exact(best), loss)


def equal(basis: Basis, schedule: Schedule, steps: int, scale: Any = 1.0) -> Plan:
    """The paper's plan: ``T_k = k/K``, the same number of steps in every stage.

    Source:
        Batzolis et al. 2022 (arXiv 2207.09786), section 5.

    Args:
        basis: Its ``K`` blocks are dropped one by one.
        schedule: Read by every band on a clock that stops when the band is dropped.
        steps: Steps per stage, equal in time.
        scale: Unit of the noise, along the component axis.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> made.steps, made.cost
        ((4, 4), 5.0)
    """
    count = len(basis.blocks)
    drop = [schedule.T * (count - k) / count for k in range(count)]
    sde = DiagonalSDE(schedule, basis, [schedule.T / t for t in drop], scale, drop)
    edges = [*drop, schedule.eps]
    pieces = [
        torch.linspace(a, b, steps + 1, dtype=torch.float64, device="cpu")[:-1]
        for a, b in itertools.pairwise(edges)
    ]
    times = torch.cat([*pieces, torch.tensor([schedule.eps], dtype=torch.float64, device="cpu")])
    sizes = list(itertools.accumulate(basis.blocks.sizes.values()))
    cost = steps * sum(sizes) / sizes[-1]
    return Plan(sde, times, (steps,) * count, cost, math.nan, math.nan)
