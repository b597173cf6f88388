"""Recommended solvers by task."""

from __future__ import annotations

from typing import Literal

import attrs

from scoresde.checks import expect
from scoresde.sampling.grid import log_snr
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver
from solvers.adaptive import Adaptive
from solvers.exponential import ExponentialMultistep
from solvers.heun import Heun

Task = Literal["samples", "stochastic samples", "likelihood", "reference"]


@attrs.frozen
class Recommendation:
    """A solver, and the reason for it.

    Attributes:
        solver: Ready to use.
        reason: One sentence, with the benchmark that it rests on.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.recommendation import recommend
        >>> recommend(DiagonalSDE(VP(), Identity((2,))), "reference").reason
        'every sample takes the steps that its own error wants'
    """

    solver: Solver
    reason: str


def recommend(sde: SDE, task: Task = "samples", evaluations: int | None = None) -> Recommendation:
    """A solver for a task, by the benchmarks.

    Args:
        sde: The equation; its clocks, stages and linear part matter.
        task: ``"samples"``, ``"stochastic samples"`` (of the reverse SDE), ``"likelihood"``,
            or ``"reference"`` (a solution to trust, whatever it costs).
        evaluations: Of the network; a sensible number if None.

    Raises:
        ValueError: If the task is unknown, or fewer than one evaluation is asked for.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.recommendation import recommend
        >>> recommended = recommend(DiagonalSDE(VP(), Identity((2,))), "samples", 20)
        >>> recommended.solver.steps, recommended.solver.order
        (20, 3)
    """
    tasks = ("samples", "stochastic samples", "likelihood", "reference")
    expect(task in tasks, "task", f"one of {', '.join(tasks)}", repr(task))
    expect(evaluations is None or evaluations >= 1, "evaluations", "at least 1", evaluations)
    eta = 1.0 if task == "stochastic samples" else 0.0
    if task == "reference":
        return Recommendation(
            Adaptive(rtol=1e-7, atol=1e-7, max_steps=100_000),
            "every sample takes the steps that its own error wants",
        )
    if not sde.linear:
        steps = (evaluations or (400 if eta else 200)) // 2
        return Recommendation(
            Heun(max(1, steps), eta=eta),
            "nothing is known of this SDE but its rates: second order, and more stable than "
            "multistep methods",
        )
    multistep, stages = ExponentialMultistep, len(sde.stages())
    if task == "likelihood":
        return Recommendation(
            multistep(max(evaluations or 60, stages), grid=log_snr),
            "a divergence is integrated as well as the state, to the lowest noise: even steps",
        )
    order = 2 if stages > 1 else 3
    steps = evaluations or (100 if eta else 20)
    return Recommendation(
        multistep(max(steps, stages), order=order, eta=eta),
        "lowest error at every budget from 8 evaluations on (benchmark accuracy)"
        if order == 3
        else "order 2 does best within short stages (benchmark gaussian); plan the steps",
    )
