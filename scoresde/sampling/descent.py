"""The way of samples from prior to data: what a solver does is between what an SDE does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self

from scoresde.checks import all_finite, finite
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Noise
from scoresde.precision import precision
from scoresde.reverse import ReverseSDE
from scoresde.sampling.batches import sample_shape_of, samples_like
from scoresde.sampling.churn import churning
from scoresde.sampling.grid import Grid, restrict
from scoresde.sampling.tape import EagerWalk, Move, Walker
from scoresde.sdes.sde import SDE, Stage

Corrector = Callable[[ReverseSDE, Tensor, Tensor, Noise], Tensor]
"""``(reverse equation, state, time of the SDE itself, noise) -> state``."""


class Settings(Walker, Protocol):
    """The methods of a solver that a descent uses; see `scoresde.Solver`."""

    @property
    def steps(self) -> int:
        """See `scoresde.Solver`."""

    @property
    def grid(self) -> Grid:
        """See `scoresde.Solver`."""

    @property
    def planned(self) -> bool:
        """See `scoresde.Solver.planned`."""

    @property
    def eta(self) -> float:
        """See `scoresde.Solver`."""

    @property
    def churn(self) -> float:
        """See `scoresde.Solver`."""

    @property
    def corrector(self) -> Corrector | None:
        """See `scoresde.Solver`."""

    @property
    def final_denoise(self) -> bool:
        """See `scoresde.Solver`."""

    def times(self, sde: SDE) -> Tensor:
        """See `scoresde.Solver.times`."""


@attrs.frozen(eq=False)
class Descent:
    """A walk of a solver from prior to data.

    Args:
        solver: Walks the reverse equation.
        estimator: Knows the score and its SDE.
        condition: Passed on to the estimator.
        start: Samples without components, ``(*sample_shape, 0)``.
    """

    solver: Settings
    estimator: ScoreEstimator
    condition: Any
    start: Tensor

    @classmethod
    def of(
        cls,
        solver: Settings,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int],
        condition: Any,
        dtype: torch.dtype | None,
    ) -> Self:
        """The descent of samples in a shape, which is checked; see `scoresde.Solver.sample`."""
        shape = sample_shape_of(estimator, sample_shape)
        start = samples_like(estimator, dtype).new_empty(*shape, 0)
        return cls(solver, estimator, condition, start)

    def events(self, noise: Noise, tape: EagerWalk | None = None, progress: bool = False) -> Tensor:
        """The samples, ``(*sample_shape, *event_shape)``; the estimator's mode is not changed."""
        solver, sde, tape = self.solver, self.estimator.sde, EagerWalk() if tape is None else tape
        times, z = solver.times(sde), self.start
        every = bool(solver.churn) or solver.corrector is not None
        walk: Iterable[tuple[float, Tensor]] = self.states(times, noise, tape, every)
        if progress:
            walk = tqdm(walk, desc="sampling", total=len(times) - 1 + len(sde.stages()))
        for _, z in walk:  # noqa: B007
            pass
        if solver.final_denoise:
            z, _ = tape.take(partial(self._denoise, times[-1:], z), z, noise, None)
        return tape.take(self._invert, z, noise, None)[0]

    def states(
        self, times: Tensor, noise: Noise, tape: EagerWalk, every: bool
    ) -> Iterator[tuple[float, Tensor]]:
        """Times and states on the way; with ``every``, step by step, else as the solver walks."""
        solver, sde = self.solver, self.estimator.sde
        z, memory = self.start, None
        reverse = ReverseSDE(self.estimator, solver.eta, self.condition)
        for stage in sde.stages():
            z, memory = tape.take(partial(self._append, stage, z), z, noise, memory)
            yield stage.start, z
            if not z.shape[:-1].numel():  # solvers of others need not know what to do with nothing
                continue
            ts = restrict(times, stage)
            for part in ts.unfold(0, 2, 1) if every else [ts]:
                if solver.churn:
                    part, churn = churning(sde, part, stage, solver.churn)
                    z, memory = tape.take(partial(churn, z), z, noise, memory)
                for state in tape.walk(solver, reverse, z, -part, noise, memory):
                    z, memory = state
                    if not every:
                        yield stage.start, z
                if solver.corrector is not None:
                    correct = partial(_correct, solver.corrector, reverse, part[-1], z)
                    z, memory = tape.take(correct, z, noise, memory)
                if every:
                    yield float(part[-1]), z

    def _append(self, stage: Stage, like: Tensor) -> Move:
        append = self.estimator.sde.appender(like, stage)
        return lambda z, noise, memory: (append(z, noise), memory)

    def _denoise(self, t: Tensor, like: Tensor) -> Move:
        at = self.estimator.sde.at(t.unsqueeze(-1), like)
        (denoise,) = at.denoisers(self.estimator, self.condition)
        return lambda z, noise, memory: (denoise(z), memory)

    def _invert(self) -> Move:
        sde = self.estimator.sde
        return lambda z, noise, memory: (sde.events(z), memory)


def checked_samples(x: Tensor, solver: Settings) -> Tensor:
    """Samples, if they are finite: a ``ValueError`` names the solver that has diverged."""
    if not all_finite(x):  # asked of every sample: solvers take long to say what they are
        help_ = "more steps, or an exponential solver, may help"
        finite("samples", x, f"from {solver!r} ({help_})")
    return x


def _correct(corrector: Corrector, reverse: ReverseSDE, t: Tensor, like: Tensor) -> Move:
    t = t.to(like.device, precision(like.device), non_blocking=True)
    return lambda z, noise, memory: (corrector(reverse, z, t, noise), memory)
