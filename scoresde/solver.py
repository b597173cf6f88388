"""The interface of solvers.

A solver integrates an equation over increasing times, in the equation's own clock: a `ReverseSDE`,
an SDE, a probability flow, or a flow with its log-density.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.checks import choice, instance, real, validator, whole
from scoresde.equation import AugmentedEquation, Equation
from scoresde.estimator import ScoreEstimator
from scoresde.internals.modes import evaluation_mode
from scoresde.noise import Generators, Noise
from scoresde.sampling import grid as grids
from scoresde.sampling.batches import batches_of, collected, sample_shape_of, samples_like
from scoresde.sampling.cache import events
from scoresde.sampling.descent import Corrector, Descent, checked_samples
from scoresde.sampling.grid import Grid, grid_field
from scoresde.sampling.sampler import Sampler
from scoresde.sampling.tape import EagerWalk, Move
from scoresde.sdes.sde import SDE

_MOST_STEPS = 10**6
"""Of a walk: the grid and the coefficients of more would fill memory before the first of them."""

_MOST_NOISE = 1e3
"""Times the reverse SDE's own: far beyond use, and its square is still a number."""


@attrs.frozen
class Solver(ABC):
    """Integrates any equation over increasing times, and samples with it.

    Subclasses implement `walk` and declare their orders: see `scoresde.FixedStep` for those that
    take given steps, and `EndpointSolver` for those that yield only their last state.

    Args:
        steps: Number of steps when sampling, at most a million.
        eta: Noise of the reverse equation: 0 for the probability-flow ODE, 1 for the reverse
            SDE, at most 1000.
        grid: Where the steps are: a name in `scoresde.sampling.grid.GRIDS`, a function
            ``(sde, steps) -> times``, or a list of all times, from ``T`` to the last.
        corrector: Called with samples after every step, for instance for Langevin steps.
        churn: Share by which noise is raised, by diffusing forward, before every step (Karras
            et al. 2022, algorithm 2), which clears the solver's memory of earlier steps.
        final_denoise: Whether samples end as denoised means of the states at the last time,
            for one more evaluation.

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "walk" in vars(cls) and "planned" not in vars(cls):
            # a parent's moves would go past the new method, see `ScoreEstimator`
            cls.planned = False  # type: ignore[assignment,method-assign]

    @property
    @abstractmethod
    def order(self) -> float:
        """Order of convergence on an ODE; may be a class attribute."""

    @property
    @abstractmethod
    def weak_order(self) -> float | None:
        """Order in distribution on an SDE with additive noise; None if it takes ODEs only."""

    @property
    def strong_order(self) -> float | None:
        """Order in paths of one Brownian motion, for additive noise; None if not claimed."""
        return None

    @abstractmethod
    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The states from the first time to the last.

        Args:
            equation: What to integrate.
            y: State at the first time, ``(*batch, m)``.
            ts: Increasing times in the equation's clock, float64 on the CPU.
            noise: Where random numbers come from.
            memory: Second value of the last yield, if this continues another walk; the state may
                have gained components since.

        Yields:
            A state, the last one that at the last time, and the solver's memory.
        """

    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """The state at the last time; takes the arguments of `walk`."""
        end = y
        for end, _ in self.walk(equation, y, ts, noise):  # noqa: B007
            pass
        return end

    tells_errors: ClassVar[bool] = False
    """Whether `transport` estimates its own error, and sets that of the density."""

    def transport(
        self, density: AugmentedEquation, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """The end of a state's way along a flow, and the change of its log-density.

        Args:
            density: The flow with its integrals.
            z: State at the first time, ``(*batch, n)``.
            ts: Increasing times.
            noise: Not used, as a flow has none.

        Returns:
            The state at the last time, and estimates of the integral of the flow's divergence,
            ``(*batch, estimates)``.
        """
        return density.split(self.integrate(density, density.start(z), ts, noise))

    def buffer_size(self, times: int, estimates: int) -> int:
        """Numbers that `transport` keeps until its end, per component of a state: none.

        Args:
            times: Those of the grid.
            estimates: Of a divergence.
        """
        return 0

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
        batch_size: int | None = None,
        output: str | os.PathLike[str] | None = None,
    ) -> Tensor:
        """Events from the prior, without gradients.

        What depends on times alone is kept for the next call with as many samples and the same
        condition, until a tensor of either is written to, or an attribute of a part is set.

        Args:
            estimator: Knows the score and its SDE.
            sample_shape: Leading shape of the samples.
            condition: Passed on to the estimator.
            generator: One generator, or one per sample; see `scoresde.noise`.
            dtype: Of the samples; that of the network's parameters, or torch's default, if None.
            progress: Whether to show a progress bar.
            batch_size: Samples at a time; all if None. With one generator samples depend on it, as
                batches are drawn one after the other; with one per sample they do not.
            output: A ``.npy`` file to which batches are written as they come.

        Returns:
            ``(*sample_shape, *event_shape)``, on the device of the estimator, or mapped from the
            file.

        Raises:
            OSError: If the file cannot be written.
            TypeError: If the estimator, the shape or the generator is of another type.
            ValueError: If the samples are not finite: the solver has diverged.
        """
        options: dict[str, Any] = {"condition": condition, "dtype": dtype, "generator": generator}
        options["progress"] = progress
        if batch_size is None and output is None:
            with torch.no_grad():
                return checked_samples(self.rsample(estimator, sample_shape, **options), self)
        shape, like = sample_shape_of(estimator, sample_shape), samples_like(estimator, dtype)
        size = max(1, shape.numel()) if batch_size is None else batch_size
        parts = self.batches(estimator, shape, size, **options)
        return collected(parts, (*shape, *estimator.sde.basis.event_shape), like, output)

    def batches(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int],
        batch_size: int,
        *,
        condition: Any = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """The samples of `sample`, batch by batch, with memory for one of them.

        Takes its arguments.

        Yields:
            ``(at most batch_size, *event_shape)``: samples in the order of the flattened shape.
        """
        whole("batch_size", batch_size, 1)
        shape = sample_shape_of(estimator, sample_shape)
        alone, count = shape.numel() <= batch_size, shape.numel()
        parts = batches_of(estimator, shape, batch_size, condition, Noise.of(generator))
        with tqdm(desc="sampling", total=count, disable=alone or not progress) as bar:
            for model, size, known, noise in parts:
                yield self.sample(
                    model,
                    (size,),
                    condition=known,
                    generator=noise,
                    dtype=dtype,
                    progress=alone and progress,
                )
                bar.update(size)

    def compiled(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        dtype: torch.dtype | None = None,
        compile: bool | Mapping[str, Any] = False,
    ) -> Sampler:
        """`sample`, prepared for repeated calls with as many samples.

        Args:
            estimator: As of `sample`.
            sample_shape: As of `sample`.
            condition: As of `sample`.
            dtype: As of `sample`.
            compile: Whether to use `torch.compile`, or its arguments, without graphs inside it.

        Raises:
            ValueError: If the solver is not `planned`.
        """
        return Sampler(
            self, estimator, sample_shape, condition=condition, dtype=dtype, compile=compile
        )

    @property
    def planned(self) -> bool:
        """Whether steps are known before there are states, and `moves` returns them.

        A class attribute. A class with a `walk` of its own has to set it again.
        """
        return False

    def moves(
        self, equation: Equation, ts: Tensor, like: Tensor, memory: Any = None
    ) -> Iterator[Move]:
        """The steps of `walk`, prepared, of a solver that is `planned`.

        Args:
            equation: What to integrate.
            ts: Increasing times.
            like: A state.
            memory: As of `walk`.

        Raises:
            NotImplementedError: If the solver is not `planned`.
        """
        raise NotImplementedError(f"{type(self).__name__} is not planned: it has no moves")

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
        """As `sample`, differentiable, without checks or batches."""
        if not torch.is_grad_enabled():
            what = self, estimator, sample_shape, condition, dtype, Noise.of(generator)
            return events(*what, progress)
        descent = Descent.of(self, estimator, sample_shape, condition, dtype)
        with evaluation_mode(estimator):
            return descent.events(Noise.of(generator), progress=progress)

    def trajectory(
        self,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """The states of samples on their way, without gradients.

        Takes the arguments of `rsample`.

        Yields:
            Every time of the grid, from ``T`` down, and the state there, ``(*sample_shape, m)``:
            twice where components enter, without them and with.
        """
        descent = Descent.of(self, estimator, sample_shape, condition, dtype)
        noise = Noise.of(generator)
        walk = descent.states(self.times(estimator.sde), noise, EagerWalk(), every=True)
        while True:
            with evaluation_mode(estimator), torch.no_grad():
                state = next(walk, None)
            if state is None:
                return
            yield state
