"""Solvers that take the steps they are given."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.grid import at_discontinuity, one_sided
from scoresde.noise import Noise
from scoresde.sde import SDE, Forcing, Propagator
from scoresde.solver import Solver


class Step(NamedTuple):
    """What is known of a step before it is taken.

    Times are 0-dimensional, in the dtype of the state, and a hair inside the step where rates
    jump at its end. Coefficients are `Propagator`'s, ``(1 | n)``.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from solvers import DDIM
        >>> sde, z = DiagonalSDE(EDM(1.0, 4.0), Identity((1,))), torch.zeros(5, 1)
        >>> reverse = sde.reverse(Gaussian(sde, torch.zeros(1), torch.eye(1)), eta=0.0)
        >>> step = next(DDIM().prepare(reverse, torch.tensor([-4.0, -1.0]), z))
        >>> step.t, step.s, step.decay
        (tensor(-4.), tensor(-1.), tensor([0.2500]))
    """

    t: Tensor
    s: Tensor
    force: Forcing
    decay: Tensor
    gain: Tensor
    noise: Tensor | None
    weights: Any


_AHEAD = 2**18
"""How many coefficients of a kind are computed at once: many steps, in bounded memory."""


@attrs.frozen
class FixedStep(Solver):
    """A solver that takes the given steps, one after the other.

    Subclasses implement `step`.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, FixedStep, Identity
        >>> class Exponential(FixedStep):
        ...     order, weak_order = 1.0, None
        ...     def step(self, sde, y, step, noise, memory):
        ...         return step.decay * y + step.gain * step.force(y), None
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> Exponential(steps=20).sample(model, (5,)).shape
        torch.Size([5, 2])
    """

    @abstractmethod
    def step(
        self, sde: SDE, y: Tensor, step: Step, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """One step.

        Args:
            sde: What to integrate.
            y: State at the start of the step.
            step: What is known of it.
            noise: Where random numbers come from; not to be asked if ``step.noise`` is None.
            memory: What the last step returned, None at the first.

        Returns:
            The state at ``s``, and what the next step is to remember.
        """

    def walk(
        self, sde: SDE, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """See `Solver.walk`; yields after every step."""
        size = max(1, _AHEAD // y.shape[-1])
        for i in range(0, len(ts) - 1, size):
            for step in self.prepare(sde, ts[i : i + size + 1], y, memory):
                y, memory = self.step(sde, y, step, noise, memory)
                yield y, memory

    def prepare(self, sde: SDE, ts: Tensor, like: Tensor, memory: Any = None) -> Iterator[Step]:
        """Everything about the steps between times that does not depend on the state.

        Args:
            sde: What to integrate.
            ts: Increasing times.
            like: A state.
            memory: What the last step returned, None if none was taken.
        """
        kinks = at_discontinuity(sde, ts)
        starts, ends = (side.to(like) for side in one_sided(ts, kinks, torch.finfo(like.dtype).eps))
        ahead = sde.propagator(ts[:-1].unsqueeze(-1), ts[1:].unsqueeze(-1), like)
        return map(
            Step,
            starts.unbind(),
            ends.unbind(),
            sde.forcings(starts, like),
            ahead.decay.unbind(),
            ahead.gain.unbind(),
            itertools.repeat(None) if ahead.noise is None else ahead.noise.unbind(),
            self.weights(ahead, kinks[:-1], like, memory),
        )

    def run(self, sde: SDE, y: Tensor, steps: Iterable[Step], noise: Noise) -> Tensor:
        """The state after steps prepared before: the loop alone, to be compiled as a whole.

        Example:
            >>> import torch
            >>> from scoresde import VP, DiagonalSDE, Identity, Noise
            >>> from estimators import Denoising, ResidualMLP
            >>> from solvers import DDIM
            >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
            >>> reverse, solver, z = model.sde.reverse(model, 0.0), DDIM(4), torch.zeros(3, 2)
            >>> steps = list(solver.prepare(reverse, -solver.times(model.sde), z))
            >>> def loop(z): return solver.run(reverse, z, steps, Noise())
            >>> torch.compile(loop, fullgraph=True, backend="eager")(z).shape
            torch.Size([3, 2])
        """
        memory = None
        for step in steps:
            y, memory = self.step(sde, y, step, noise, memory)
        return y

    def weights(self, ahead: Propagator, kinks: Tensor, like: Tensor, memory: Any) -> Iterable[Any]:
        """What each step needs besides its propagator, from those of many steps at once.

        Args:
            ahead: Coefficients of the steps to come, ``(steps, 1 | n)``.
            kinks: At the start of which steps rates jump, ``(steps,)``.
            like: A state.
            memory: What the last step returned, None if none was taken.

        Returns:
            What becomes `Step.weights`, step by step.
        """
        return itertools.repeat(None)
