"""What integrates an SDE.

A solver walks increasing times, in the SDE's own clock: it does not know whether it samples
(`ReverseSDE`), diffuses data, follows the probability flow or carries a log-density along.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde import grid as grids
from scoresde.checks import (
    checked_sample_shape,
    choice,
    expect,
    finite,
    instance,
    real,
    validator,
    whole,
)
from scoresde.equation import AugmentedEquation, Equation
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.grid import Grid
from scoresde.modes import evaluation_mode
from scoresde.noise import Generators, Noise
from scoresde.precision import device_of
from scoresde.reverse import ReverseSDE
from scoresde.sde import SDE, Stage
from scoresde.selection import broadcast

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
        ...     def walk(self, equation, y, ts, noise, memory=None):
        ...         yield y, None
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
    """Integrates any equation over increasing times, and samples with it.

    Subclasses implement `walk` and declare their orders: see `scoresde.FixedStep` for those that
    take the steps they are given, and `EndpointSolver` for those that show nothing on the way.

    Args:
        steps: Number of steps when sampling, at most a million.
        eta: Noise of the reverse equation: 0 for the probability-flow ODE, 1 for the reverse
            SDE, at most 1000.
        grid: Where the steps are: a name in `scoresde.grid.GRIDS` or a function
            ``(sde, steps) -> times``.
        corrector: What is done to samples after every step, Langevin steps for instance.
        churn: Share by which noise is raised, by diffusing forward, before every step (Karras
            et al. 2022, algorithm 2); a solver's memory of earlier steps is lost by it.
        final_denoise: Whether samples end as denoised means of the states at the last time,
            which costs one evaluation more.

    Raises:
        TypeError: If ``grid`` or ``corrector`` cannot be called.
        ValueError: If ``steps`` is not a whole number from 1 to a million, a number is out of its
            range, or the grid's name is unknown.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Solver
        >>> class Euler(Solver):
        ...     order, weak_order = 1.0, None
        ...     def walk(self, equation, y, ts, noise, memory=None):
        ...         for t, s in zip(ts, ts[1:]):
        ...             y = y + (s - t) * equation.f(t, y)
        ...             yield y, None
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
        validator=attrs.validators.optional(validator(instance, Callable)),
    )
    churn: float = attrs.field(default=0.0, kw_only=True, validator=validator(real, 0))
    final_denoise: bool = attrs.field(
        default=False, kw_only=True, validator=validator(choice, False, True)
    )

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

    @abstractmethod
    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The states on the way from the first time to the last.

        Args:
            equation: What to integrate.
            y: State at the first time, ``(*batch, m)``.
            ts: Increasing times in the equation's clock, float64 on the CPU.
            noise: Where random numbers come from.
            memory: What was yielded last if this goes on where another walk has ended; the
                state may have gained components since.

        Yields:
            A state, the last one that at the last time, and the solver's memory.
        """

    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """The state at the last time; takes the arguments of `walk`."""
        end = y
        for end, _ in self.walk(equation, y, ts, noise):  # noqa: B007
            pass
        return end

    def transport(
        self, density: AugmentedEquation, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """A state taken up its flow, and what its log-density loses on the way.

        Args:
            density: The flow, and the integrals it carries.
            z: State at the first time, ``(*batch, n)``.
            ts: Increasing times.
            noise: Not asked for anything, as a flow has none.

        Returns:
            The state at the last time, and estimates of the integral of the flow's divergence,
            ``(*batch, estimates)``.
        """
        return density.split(self.integrate(density, density.start(z), ts, noise))

    def path(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Iterator[Tensor]:
        """The states at every time after the first, as they come."""
        memory = None
        for step in ts.unfold(0, 2, 1):
            for y, memory in self.walk(equation, y, step, noise, memory):  # noqa: B007, B020
                pass
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
        help_ = "more steps, or an exponential solver, may help"
        finite("samples", x, f"from {self!r} ({help_})")
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
        shape, times = _shape(estimator, sample_shape), self.times(estimator.sde)
        z, noise = _like(estimator, dtype).new_empty(*shape, 0), Noise.of(generator)
        every = bool(self.churn) or self.corrector is not None
        walk = self._descend(estimator, z, times, noise, condition, every)
        with evaluation_mode(estimator):
            count = len(times) - 1 + len(estimator.sde.stages())
            for _, z in tqdm(walk, desc="sampling", total=count, disable=not progress):  # noqa: B007
                pass
            if self.final_denoise:
                z = estimator.denoise(z, times[-1].to(z), condition)
            return estimator.sde.basis.inverse(z)

    def trajectory(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """The states that samples go through, without gradients.

        Takes the arguments of `sample`.

        Yields:
            Every time of the grid, from ``T`` down, and the state there, ``(*sample_shape, m)``:
            twice where components enter, without them and with.
        """
        shape, times = _shape(estimator, sample_shape), self.times(estimator.sde)
        z, noise = _like(estimator, dtype).new_empty(*shape, 0), Noise.of(generator)
        walk = self._descend(estimator, z, times, noise, condition, every=True)
        while True:
            with evaluation_mode(estimator), torch.no_grad():
                state = next(walk, None)
            if state is None:
                return
            yield state

    def _descend(
        self,
        estimator: ScoreEstimator,
        z: Tensor,
        times: Tensor,
        noise: Noise,
        condition: Any,
        every: bool,
    ) -> Iterator[tuple[float, Tensor]]:
        """From noise to data; with ``every``, step by step, else as the solver walks."""
        sde, memory = estimator.sde, None
        reverse = ReverseSDE(estimator, self.eta, condition)
        for stage in sde.stages():
            z, ts = sde.append(z, stage, noise), grids.restrict(times, stage)
            yield stage.start, z
            if not z.shape[:-1].numel():  # solvers of others need not know what to do with nothing
                continue
            for part in ts.unfold(0, 2, 1) if every else [ts]:
                if self.churn:
                    z, part = _churned(sde, z, part, stage, self.churn, noise)
                    memory = None
                for state in self.walk(reverse, z, -part, noise, memory):
                    z, memory = state
                    if not every:
                        yield stage.start, z
                if self.corrector is not None:
                    z = self.corrector(reverse, z, part[-1], noise)
                if every:
                    yield float(part[-1]), z


@attrs.frozen
class EndpointSolver(Solver):
    """A solver that shows no states on the way.

    Subclasses implement `integrate`.

    Takes the arguments of `Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, EndpointSolver, Identity
        >>> from torchdiffeq import odeint
        >>> class RungeKutta(EndpointSolver):
        ...     order, weak_order = 4.0, None
        ...     def integrate(self, equation, y, ts, noise):
        ...         return odeint(equation, y, ts.to(y), method="rk4")[-1]
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> RungeKutta(steps=20).sample(model, (5,)).shape
        torch.Size([5, 2])
    """

    @abstractmethod
    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """See `Solver.integrate`."""

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The end alone."""
        yield self.integrate(equation, y, ts, noise), None


def _churned(
    sde: SDE, z: Tensor, step: Tensor, stage: Stage, share: float, noise: Noise
) -> tuple[Tensor, Tensor]:
    """A state diffused to more noise, as far as its stage goes, and the longer step from there."""
    back = grids.time_at_level(sde, step[0], math.log1p(share), stage.start)
    if back <= step[0]:
        return z, step
    now = sde.at(torch.stack([step[0], back]).unsqueeze(-1), z)
    decay, gain, *_, noise_std = now[:1].propagator(now[1:]).expand(now.blocks)
    field = next(now.fields())
    assert noise_std is not None
    drift = torch.addcmul(decay.to(z) * z, gain.to(z), field.forcing(z))
    diffused = torch.addcmul(drift, noise_std.to(z), field.increment(z, noise(z)))
    return diffused.reshape(z.shape), torch.stack([back, step[1]])


def _shape(estimator: ScoreEstimator, sample_shape: Sequence[int]) -> torch.Size:
    """The shape of samples, which ends with the batch of what is known of them."""
    expect_estimator(estimator)
    event, batch = estimator.sde.basis.event_shape, estimator.batch_shape
    shape = checked_sample_shape(sample_shape, event)
    wanted = f"a shape that ends with {tuple(batch)}, the batch of what is known"
    fits = broadcast("sample_shape", shape, batch) == shape
    expect(fits, "sample_shape", wanted, tuple(shape))
    return shape


def _like(estimator: ScoreEstimator, dtype: torch.dtype | None) -> Tensor:
    """An empty tensor with the dtype and on the device that samples are to have."""
    if dtype is not None:
        instance("dtype", dtype, torch.dtype)
        expect(dtype.is_floating_point, "dtype", "a floating-point one", dtype)
    # constants are in float64 whatever the network is: only parameters say
    first = next(estimator.parameters(), torch.empty(0))
    dtype = first.dtype if dtype is None else dtype
    return torch.empty(0, dtype=dtype, device=device_of(estimator))
