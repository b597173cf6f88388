"""A third-order exponential method that remembers nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.grid import at_discontinuity, fractions, one_sided
from scoresde.noise import Noise
from scoresde.sde import SDE, Forcing, Propagator
from scoresde.solver import Solver
from solvers.exponential import moments


class Stages(NamedTuple):
    """Weights of one step with nodes at a third and two thirds, each ``(*, 1 | n)``.

    The step goes ``y -> y1 -> y2 -> end``; with ``rough`` it would be of second order, using the
    first node alone. (The second alone is of third order where all components are alike.)

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.rungekutta import stages
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow = model.sde.probability_flow(model)
        >>> times = [torch.tensor([t]).double() for t in (0.1, 0.2, 0.3, 0.4)]
        >>> stages(flow, times, torch.zeros(1, 1))._fields
        ('first', 'second', 'whole', 'slope', 'fine', 'rough')
    """

    first: Propagator
    second: Propagator
    whole: Propagator
    slope: Tensor
    fine: Sequence[Tensor]
    rough: Tensor


def stages(sde: SDE, times: Sequence[Tensor], like: Tensor) -> Stages:
    """Coefficients of steps between times, with two nodes on the way.

    Components whose clocks differ have their nodes at other fractions of their steps: the
    polynomial through the three forcings is integrated exactly for each.

    Args:
        sde: What to integrate.
        times: Start, first node, second node and end, each ``(*, 1)``.
        like: A state.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.rungekutta import stages
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow = model.sde.probability_flow(model)
        >>> times = [torch.tensor([t]).double() for t in (0.1, 0.2, 0.3, 0.4)]
        >>> stages(flow, times, torch.zeros(1, 1)).whole.noise is None
        True
    """
    start, one, two, end = times
    first, second, whole = (sde.propagator(start, t, like) for t in (one, two, end))
    (m1, m2), middle = moments(whole.damping), moments(second.damping)[0]

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return (a / b).nan_to_num(0.0, 0.0, 0.0)  # of a component that stands still

    bend = ratio(m2 * whole.h**2 - m1 * whole.h * first.h, second.h - first.h)
    return Stages(
        first,
        second,
        whole,
        ratio(middle * second.h, first.h),
        (ratio(m1 * whole.h - bend, first.h), ratio(bend, second.h)),
        ratio(m1 * whole.h, first.h),
    )


def step(y: Tensor, f0: Tensor, forces: Sequence[Forcing], with_: Stages) -> tuple[Tensor, Tensor]:
    """One step, and how far the second-order result is from it.

    Args:
        y: State at its start.
        f0: The forcing there.
        forces: The forcing at both nodes.
        with_: Its coefficients.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.rungekutta import stages, step
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow, z = model.sde.probability_flow(model), torch.ones(1, 1)
        >>> times = [torch.tensor([t]).double() for t in (0.3, 0.31, 0.32, 0.33)]
        >>> first, *forces = flow.forcings(torch.stack(times[:3]).to(z), z)
        >>> end, error = step(z, first(z), forces, stages(flow, times, z))
        >>> end.round(decimals=3)  # standard normal data stay as they are
        tensor([[1.]])
    """
    y1 = torch.addcmul(with_.first.decay * y, with_.first.gain, f0)
    d1 = forces[0](y1) - f0
    y2 = torch.addcmul(with_.second.decay * y, with_.second.gain, f0 + with_.slope * d1)
    d2 = forces[1](y2) - f0
    change = with_.fine[0] * d1 + with_.fine[1] * d2
    end = torch.addcmul(with_.whole.decay * y, with_.whole.gain, f0 + change)
    return end, with_.whole.gain * (change - with_.rough * d1)


@attrs.frozen
class ExponentialRungeKutta(Solver):
    """Third order with three evaluations a step (DPM-Solver-3, Lu et al. 2022, for any clocks).

    For ODEs. On a smooth problem `solvers.ExponentialMultistep` does better for its money; this
    one needs no past, so it does not mind steps of very different lengths.

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

    def walk(
        self, sde: SDE, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, None]]:
        """See `scoresde.Solver.walk`; yields after every step."""
        starts, ends = one_sided(ts, at_discontinuity(sde, ts), torch.finfo(y.dtype).eps)
        one, two = fractions(sde, starts, ends, (1 / 3, 2 / 3))
        for times in zip(starts, one, two, ends, strict=True):
            with_ = stages(sde, [t.reshape(1) for t in times], y)
            deterministic(with_.whole)
            first, *forces = sde.forcings(torch.stack(times[:3]).to(y), y)
            y, _ = step(y, first(y), forces, with_)
            yield y, None


def deterministic(propagator: Propagator) -> None:
    """Raises ``ValueError`` if there is noise.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers.rungekutta import deterministic
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> ends = torch.tensor([[0.1], [0.2]]).double()
        >>> deterministic(model.sde.probability_flow(model).propagator(*ends, torch.zeros(1, 1)))
    """
    expect(propagator.noise is None, "eta", "0: this solver takes ODEs", "an SDE with noise")
