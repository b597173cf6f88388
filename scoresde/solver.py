"""What integrates an SDE.

A solver walks increasing times, in the SDE's own clock: it does not know whether it samples
(`ReverseSDE`), diffuses data, follows the probability flow or carries a log-density along.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde import grid as grids
from scoresde.checks import expect, real, sizes, validator, whole
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.grid import Grid
from scoresde.noise import Generators, Noise
from scoresde.sde import SDE, Forcing, Propagator, ReverseSDE, Stage

if TYPE_CHECKING:
    from scoresde.likelihood import DensityFlow

_MOST_STEPS = 10**6
"""Of a walk: the grid and the coefficients of more would fill memory before the first of them."""

_MOST_NOISE = 1e3
"""Times the reverse SDE's own: far beyond use, and its square is still a number."""

Corrector = Callable[[ReverseSDE, Tensor, Tensor, Noise], Tensor]
"""``(reverse equation, state, time of the SDE itself, noise) -> state``."""


def grid_field(default: Grid) -> Any:
    """The field ``grid`` of a solver, with a default of its own.

    Example:
        >>> import attrs
        >>> from scoresde import Solver
        >>> from scoresde.grid import karras
        >>> from scoresde.solver import grid_field
        >>> @attrs.frozen
        ... class Mine(Solver):
        ...     order, weak_order = 1.0, None
        ...     grid = grid_field(karras)
        ...     def integrate(self, sde, y, ts, noise):
        ...         return y
        >>> Mine(5).grid.__name__
        'karras'
    """
    return attrs.field(
        default=default,
        kw_only=True,
        converter=grids.grid,
        repr=lambda grid: getattr(grid, "__name__", repr(grid)),
    )


@attrs.frozen
class Solver(ABC):
    """Integrates any `SDE` over increasing times, and samples with it.

    Subclasses implement `integrate` or `walk`, and declare their orders.

    Args:
        steps: Number of steps when sampling, at most a million.
        eta: Noise of the reverse equation: 0 for the probability-flow ODE, 1 for the reverse
            SDE, at most 1000.
        grid: Where the steps are: a name in `scoresde.grid.GRIDS` or a function
            ``(sde, steps) -> times``.
        corrector: What is done to samples after every step, for instance `solvers.Langevin`.
        churn: Share by which noise is raised, by diffusing forward, before every step (Karras
            et al. 2022, algorithm 2); a solver's memory of earlier steps is lost by it.
        final_denoise: Whether samples end as denoised means of the states at the last time,
            which costs one evaluation more.

    Raises:
        TypeError: If ``grid`` or ``corrector`` cannot be called; on subclassing, if neither
            method is there.
        ValueError: If ``steps`` is not a whole number from 1 to a million, a number is out of its
            range, or the grid's name is unknown.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Solver
        >>> class Euler(Solver):
        ...     order, weak_order = 1.0, None
        ...     def integrate(self, sde, y, ts, noise):
        ...         for t, s in zip(ts, ts[1:]):
        ...             y = y + (s - t) * sde.f(t, y)
        ...         return y
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> Euler(steps=20).sample(model, (5,)).shape
        torch.Size([5, 2])
    """

    steps: int = attrs.field(default=50, validator=validator(whole, 1, _MOST_STEPS))
    eta: float = attrs.field(default=0.0, kw_only=True, validator=validator(real, 0, _MOST_NOISE))
    grid: Grid = grid_field(grids.log_snr)
    corrector: Corrector | None = attrs.field(
        default=None,
        kw_only=True,
        validator=attrs.validators.optional(attrs.validators.is_callable()),
    )
    churn: float = attrs.field(default=0.0, kw_only=True, validator=validator(real, 0))
    final_denoise: bool = attrs.field(default=False, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.integrate is Solver.integrate and cls.walk is Solver.walk:
            raise TypeError(f"{cls.__name__}: expected an integrate or a walk method, got neither")

    @property
    @abstractmethod
    def order(self) -> float:
        """Order of convergence on an ODE; a class attribute where it depends on nothing."""

    @property
    @abstractmethod
    def weak_order(self) -> float | None:
        """Of the law on an SDE with additive noise; None if the solver takes ODEs only."""

    @property
    def strong_order(self) -> float | None:
        """Of paths that follow one Brownian motion, noise being additive; None if not claimed."""
        return None

    def integrate(self, sde: SDE, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """The state at the last time.

        Args:
            sde: What to integrate.
            y: State at the first time, ``(*batch, n)``.
            ts: Increasing times in the SDE's clock, float64 on the CPU.
            noise: Where random numbers come from.
        """
        end = y
        for end, _ in self.walk(sde, y, ts, noise):  # noqa: B007
            pass
        return end

    def walk(
        self, sde: SDE, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """As `integrate`, showing states on the way and keeping what the solver remembers.

        Args:
            sde: What to integrate.
            y: State at the first time.
            ts: Increasing times.
            noise: Where random numbers come from.
            memory: What was yielded last if this goes on where another walk has ended; the
                state may have gained components since.

        Yields:
            A state, the last one that at the last time, and the solver's memory.
        """
        yield self.integrate(sde, y, ts, noise), None

    def transport(
        self, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """A state taken up its flow, and what its log-density loses on the way.

        Args:
            density: The flow.
            z: State at the first time, ``(*batch, n)``.
            ts: Increasing times.
            noise: Not asked for anything, as a flow has none.

        Returns:
            The state at the last time, and estimates of the integral of the flow's divergence,
            ``(*batch, estimates)``.
        """
        return density.split(self.integrate(density, density.start(z), ts, noise))

    def path(self, sde: SDE, y: Tensor, ts: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states at every time after the first, as they come."""
        alone = type(self).walk is Solver.walk  # one that shows no states on the way
        for part in ts.unfold(0, 2, 1) if alone else [ts]:
            for state, _ in self.walk(sde, y, part, noise):
                y = state
                yield y

    def times(self, sde: SDE) -> Tensor:
        """The grid on which this solver samples an SDE: decreasing, float64.

        Raises:
            ValueError: If it leaves the SDE's range, or misses a time at which the state changes.
        """
        return grids.check(sde, self.grid(sde, self.steps))

    def sample(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Events from the prior, without gradients.

        Args:
            estimator: Knows the score and its SDE.
            sample_shape: Leading shape of the samples.
            condition: Passed on to the estimator.
            generator: One generator, or one per sample; see `scoresde.noise`.
            dtype: Of the samples; that of the network's parameters, or torch's default, if None.
            progress: Whether to show a progress bar.

        Returns:
            ``(*sample_shape, *event_shape)``, on the device of the estimator.

        Raises:
            TypeError: If the estimator, the shape or the generator is none.
            ValueError: If the samples are not finite: the solver has diverged.
        """
        with torch.no_grad():
            x = self.rsample(
                estimator,
                sample_shape,
                condition=condition,
                generator=generator,
                dtype=dtype,
                progress=progress,
            )
        bad = int((~torch.isfinite(x)).sum())
        expect(
            bad == 0,
            "samples",
            f"finite numbers from {self!r} (more steps, or an exponential solver, may help)",
            f"{bad} NaN or infinite of {x.numel()}",
        )
        return x

    def rsample(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Tensor:
        """As `sample`, differentiable and unchecked."""
        expect_estimator(estimator)
        sde, noise, shape = estimator.sde, Noise.of(generator), sizes("sample_shape", sample_shape)
        reverse = sde.reverse(estimator, self.eta, condition)
        z, memory = _like(estimator, dtype).new_empty(*shape, 0), None
        times = self.times(sde)
        with tqdm(total=len(times) - 1, desc="sampling", disable=not progress) as bar:
            for stage in sde.stages():
                z, ts = sde.enter(z, stage, noise), grids.within(times, stage)
                whole = self.corrector is None and not self.churn
                for part in [ts] if whole else ts.unfold(0, 2, 1):
                    if self.churn:
                        z, part = _churned(sde, z, part, stage, self.churn, noise)
                        memory = None
                    for state in self.walk(reverse, z, -part, noise, memory):
                        z, memory = state
                        bar.update()
                    if self.corrector is not None:
                        z = self.corrector(reverse, z, part[-1], noise)
        if self.final_denoise:
            z = estimator.denoise(z, times[-1].to(z), condition)
        return sde.basis.inverse(z)


def _churned(
    sde: SDE, z: Tensor, step: Tensor, stage: Stage, share: float, noise: Noise
) -> tuple[Tensor, Tensor]:
    """A state diffused to more noise, as far as its stage goes, and the longer step from there."""
    back = grids.raised(sde, step[0], math.log1p(share), stage.start)
    if back <= step[0]:
        return z, step
    diffuse = sde.propagator(step[:1], back.reshape(1), z)
    drift = torch.addcmul(diffuse.decay * z, diffuse.gain, sde.forcing(step[0].to(z), z))
    assert diffuse.noise is not None
    kicked = torch.addcmul(drift, diffuse.noise, sde.kick(step[0].to(z), z, noise(z)))
    return kicked, torch.stack([back, step[1]])


def _like(estimator: ScoreEstimator, dtype: torch.dtype | None) -> Tensor:
    """An empty tensor with the dtype and on the device that samples are to have."""
    # constants are in float64 whatever the network is: only parameters say
    first = next(estimator.parameters(), torch.empty(0))
    device = next((b.device for b in estimator.buffers()), first.device)
    return torch.empty(0, dtype=first.dtype if dtype is None else dtype, device=device)


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
        kinks = jumps(sde, ts)
        starts, ends = (side.to(like) for side in sides(ts, kinks, torch.finfo(like.dtype).eps))
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


def jumps(sde: SDE, ts: Tensor) -> Tensor:
    """Which of some times are breakpoints, where rates jump.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.solver import jumps
        >>> sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 2.0])
        >>> jumps(sde, torch.tensor([0.1, 0.5, 1.0]).double())
        tensor([False,  True, False])
    """
    found = torch.zeros(len(ts), dtype=torch.bool)
    for time in sde.breakpoints():
        found |= torch.isclose(ts, ts.new_tensor(time), rtol=1e-9, atol=0)
    return found


def sides(ts: Tensor, kinks: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Starts and ends of steps; where rates jump, a hair inside the step that looks there.

    Args:
        ts: Increasing times.
        kinks: Where rates jump, see `jumps`.
        precision: Of the numbers in which steps are taken.

    Example:
        >>> import torch
        >>> from scoresde.solver import sides
        >>> ts = torch.tensor([0.1, 0.5, 1.0]).double()
        >>> starts, ends = sides(ts, torch.tensor([False, True, False]), 1e-7)
        >>> bool(ends[0] < 0.5 < starts[1])
        True
    """
    hair = kinks * ts.abs() * 16 * precision
    return ts[:-1] + hair[:-1], ts[1:] - hair[1:]
