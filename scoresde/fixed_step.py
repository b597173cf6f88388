"""Solvers with given steps."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.equation import Coefficients, Equation, Field
from scoresde.noise import Noise
from scoresde.propagator import Propagator
from scoresde.sampling.discontinuities import at_discontinuity, one_sided
from scoresde.sampling.tape import Move
from scoresde.solver import Solver


class Step(NamedTuple):
    """What is known of a step before it is taken: coefficients and fields.

    Attributes:
        fields: The equation at the solver's nodes; slightly inside the step where rates jump at
            its end.
        decay: See `scoresde.propagator.Propagator`, ``(1 | m)``.
        gain: See there.
        noise_std: See there; None for an ODE.
        length: Of the step in time, ``(1,)``.
        weights: Of the solver, see `FixedStep.weights`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ReverseSDE
        >>> from solvers import DDIM
        >>> sde, z = DiagonalSDE(EDM(1.0, 4.0), Identity((1,))), torch.zeros(5, 1)
        >>> reverse = ReverseSDE(Gaussian(sde, torch.zeros(1), torch.eye(1)), eta=0.0)
        >>> step = next(DDIM().prepare(reverse, torch.tensor([-4.0, -1.0]), z))
        >>> step.length, step.decay
        (tensor([3.]), tensor([0.2500]))
    """

    fields: Sequence[Field]
    decay: Tensor
    gain: Tensor
    noise_std: Tensor | None
    length: Tensor
    weights: Any


_AHEAD = 2**18
"""How many coefficients of a kind are computed at once: many steps, in memory that is near."""


@attrs.frozen
class FixedStep(Solver):
    """A solver that takes the given steps, one after the other.

    Subclasses implement `step`, and may set `nodes`, at which the equation is evaluated.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, FixedStep, Identity
        >>> class Exponential(FixedStep):
        ...     order, weak_order = 1.0, None
        ...     def step(self, y, step, noise, memory):
        ...         return step.decay * y + step.gain * step.fields[0].forcing(y), None
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> Exponential(steps=20).sample(model, (5,)).shape
        torch.Size([5, 2])
    """

    planned = True

    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    """Parts of a step, 0 its start and 1 its end, at which ``Step.fields`` are."""

    @abstractmethod
    def step(self, y: Tensor, step: Step, noise: Noise, memory: Any) -> tuple[Tensor, Any]:
        """One step.

        Args:
            y: State at the start of the step.
            step: What is known of it.
            noise: Random numbers; not to be used if ``step.noise_std`` is None.
            memory: Second result of the last step, None at the first.

        Returns:
            The state at its end, and the memory of the next step.
        """

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """See `Solver.walk`; yields after every step."""
        size = max(1, _AHEAD // y.shape[-1])
        for i in range(0, len(ts) - 1, size):
            for step in self.prepare(equation, ts[i : i + size + 1], y, memory):
                y, memory = self.step(y, step, noise, memory)
                yield y, memory

    def moves(
        self, equation: Equation, ts: Tensor, like: Tensor, memory: Any = None
    ) -> Iterator[Move]:
        """See `Solver.moves`."""
        return map(partial(partial, self._move), self.prepare(equation, ts, like, memory))

    def _move(self, step: Step, y: Tensor, noise: Noise, memory: Any) -> tuple[Tensor, Any]:
        return self.step(y, step, noise, memory)

    def prepare(
        self, equation: Equation, ts: Tensor, like: Tensor, memory: Any = None
    ) -> Iterator[Step]:
        """The steps between times, with all that does not depend on states.

        Args:
            equation: What to integrate.
            ts: Increasing times.
            like: A state.
            memory: What the last step returned, None if none was taken.
        """
        ts = ts.double()
        discontinuous = at_discontinuity(equation, ts)
        starts, ends = one_sided(ts, discontinuous, torch.finfo(like.dtype).eps)
        inner = [starts + part * (ends - starts) for part in self.nodes]
        at = equation.at(torch.cat([ts, *inner]).unsqueeze(-1), like)
        steps = len(starts)
        ahead = at[:steps].propagator(at[1 : steps + 1])
        first = range(steps + 1, len(at.t), steps)
        fields = zip(*(at[i : i + steps].fields() for i in first), strict=True)
        known = [v for v in (ahead.decay, ahead.gain, ahead.noise_std) if v is not None]
        lengths, *known = at.together((ends - starts).unsqueeze(-1), *known)
        noise_std = itertools.repeat(None) if ahead.noise_std is None else known.pop().unbind()
        return map(
            Step,
            fields,
            *(v.unbind() for v in known),
            noise_std,
            lengths.unbind(),
            self.weights(ahead, discontinuous[:-1], at, memory),
        )

    def run(self, y: Tensor, steps: Iterable[Step], noise: Noise) -> Tensor:
        """The state after prepared steps: the loop alone, which can be compiled as a whole.

        Example:
            >>> import torch
            >>> from estimators import Gaussian
            >>> from scoresde import VP, DiagonalSDE, Identity, Noise, ReverseSDE
            >>> from solvers import DDIM
            >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
            >>> reverse, solver, z = ReverseSDE(model, 0.0), DDIM(4), torch.zeros(3, 2)
            >>> steps = solver.prepare(reverse, -solver.times(model.sde), z)
            >>> solver.run(z, steps, Noise()).shape
            torch.Size([3, 2])
        """
        memory = None
        for step in steps:
            y, memory = self.step(y, step, noise, memory)
        return y

    def weights(
        self, ahead: Propagator, discontinuous: Tensor, at: Coefficients, memory: Any
    ) -> Iterable[Any]:
        """Weights of each step besides its propagator, from those of many steps at once.

        Args:
            ahead: Coefficients of the steps, ``(steps, 1 | blocks | m)``, in full precision.
            discontinuous: Whether rates jump at the start of each step, ``(steps,)``.
            at: Makes factors of states of them: see `scoresde.equation.Coefficients.each`.
            memory: Second result of the last step, None if none was taken.

        Returns:
            ``Step.weights``, step by step.
        """
        return itertools.repeat(None)
