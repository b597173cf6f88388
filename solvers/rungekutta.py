"""A third-order exponential method without memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.equation import Coefficients, Equation, Forcing, expect_ode
from scoresde.noise import Noise
from scoresde.propagator import Propagator
from scoresde.sampling.discontinuities import at_discontinuity, one_sided
from scoresde.sampling.grid import fractions
from scoresde.sampling.tape import Move
from scoresde.solver import Solver


class Tableau(NamedTuple):
    """Weights of one step with nodes at a third and two thirds, each ``(*, 1 | n)``.

    The step goes ``y -> y1 -> y2 -> end``; with ``rough`` it would be of second order, using the
    first node alone. (The second alone is of third order where all components are alike.)
    """

    first: Propagator
    second: Propagator
    whole: Propagator
    slope: Tensor
    fine: Sequence[Tensor]
    rough: Tensor


def tableau(at: Coefficients) -> Tableau:
    """Coefficients of steps between times, with two nodes on the way.

    Components whose clocks differ have their nodes at other fractions of their steps: the
    polynomial through the three forcings is integrated exactly for each.

    Args:
        at: The equation at start, first node, second node and end.
    """
    ahead = at[:1].propagator(at[1:])
    steps = [Propagator(*(None if v is None else at.cast(v[i]) for v in ahead)) for i in range(3)]  # type: ignore[arg-type]
    first, second, whole = steps
    (m1, m2), middle = whole.moments, second.moments[0]

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return (a / b).nan_to_num(0.0, 0.0, 0.0)  # of a component that stands still

    bend = ratio(m2 * whole.h**2 - m1 * whole.h * first.h, second.h - first.h)
    return Tableau(
        first,
        second,
        whole,
        ratio(middle * second.h, first.h),
        (ratio(m1 * whole.h - bend, first.h), ratio(bend, second.h)),
        ratio(m1 * whole.h, first.h),
    )


def step(
    y: Tensor, f0: Tensor, forcings: Sequence[Forcing], weights: Tableau
) -> tuple[Tensor, Tensor]:
    """One step, and its distance to the second-order result.

    Args:
        y: State at its start.
        f0: The forcing there.
        forcings: The forcing at both nodes.
        weights: Its coefficients.
    """
    y1 = torch.addcmul(weights.first.decay * y, weights.first.gain, f0)
    d1 = forcings[0](y1) - f0
    y2 = torch.addcmul(weights.second.decay * y, weights.second.gain, f0 + weights.slope * d1)
    d2 = forcings[1](y2) - f0
    change = weights.fine[0] * d1 + weights.fine[1] * d2
    end = torch.addcmul(weights.whole.decay * y, weights.whole.gain, f0 + change)
    return end, weights.whole.gain * (change - weights.rough * d1)


@attrs.frozen
class ExponentialRungeKutta(Solver):
    """Third order with three evaluations a step (DPM-Solver-3, Lu et al. 2022, for any clocks).

    For ODEs. On smooth problems `solvers.ExponentialMultistep` needs fewer evaluations for the same
    error; this one suits steps of very different lengths.

    Takes the arguments of `scoresde.Solver`.

    Raises:
        ValueError: On integrating, if the equation has noise (``eta`` above 0).

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import ExponentialRungeKutta
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = ExponentialRungeKutta(8).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "lu2022"

    order = 3.0
    weak_order = None
    planned = True

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, None]]:
        """See `scoresde.Solver.walk`; yields after every step."""
        for move in self.moves(equation, ts, y):
            y, _ = move(y, noise, None)
            yield y, None

    def moves(
        self, equation: Equation, ts: Tensor, like: Tensor, memory: Any = None
    ) -> Iterator[Move]:
        """See `scoresde.Solver.moves`."""
        expect_ode(equation, "this solver")
        precision = torch.finfo(like.dtype).eps
        starts, ends = one_sided(ts, at_discontinuity(equation, ts), precision)
        one, two = fractions(equation, starts, ends, (1 / 3, 2 / 3))
        for times in torch.stack([starts, one, two, ends], -1).unsqueeze(-1):
            at = equation.at(times, like)
            yield partial(_move, [field.forcing for field in at[:3].fields()], tableau(at))


def _move(
    forcings: Sequence[Forcing], weights: Tableau, y: Tensor, noise: Noise, memory: Any
) -> tuple[Tensor, None]:
    first, *others = forcings
    return step(y, first(y), others, weights)[0], None
