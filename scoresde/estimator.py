"""The interface of estimators.

An estimator returns the denoised mean ``D(z_t, t) = E[z_0 | z_t, condition]``; score, noise and
velocity are conversions of it. For an SDE without a closed-form kernel it returns the score
(`DirectScoreEstimator`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.checks import instance
from scoresde.equation import Forcing
from scoresde.internals.wrappers import match_names, unwrapped
from scoresde.noise import Generators
from scoresde.objectives import parametrization
from scoresde.objectives.parametrization import Affine
from scoresde.precision import cast_like, expect_near, precision, shallow_copy, to_device
from scoresde.sdes.clock import Clock
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import Kernel, SDECoefficients
from scoresde.selection import Selectable, broadcast

M = TypeVar("M", bound=nn.Module)

Denoiser = Forcing
"""``z_t -> E[z_0 | z_t]`` at one time, with states ``(*batch, n)`` in and out."""


class ScoreEstimator(Selectable, ABC):
    """The score of diffused data, as a denoised mean.

    Subclasses implement `denoise`. States are coefficients ``(*batch, n)`` in the SDE's basis;
    times are as in `scoresde.equation.align`.

    Args:
        sde: How data are diffused.

    Raises:
        TypeError: If ``sde`` is no `scoresde.SDE`.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity, ScoreEstimator
        >>> class PointMassAtZero(ScoreEstimator):
        ...     def denoise(self, z, t, condition=None): return torch.zeros_like(z)
        >>> model = PointMassAtZero(DiagonalSDE(VP(), Identity((2,))))
        >>> model.noise(torch.ones(1, 2), 1.0).round(decimals=2)
        tensor([[1., 1.]])
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        instance("sde", sde, SDE)
        self.sde = sde

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "denoise" in vars(cls) and "denoisers" not in vars(cls):
            # a parent's would go past the new method: as Python drops `__hash__` beside `__eq__`
            cls.denoisers = ScoreEstimator.denoisers  # type: ignore[method-assign]

    @abstractmethod
    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``E[z_0 | z_t, condition]``.

        Args:
            z: Diffused states, ``(*batch, n)``.
            t: Their times.
            condition: Passed on to networks, None without any.

        Returns:
            ``(*batch, n)``.
        """

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """`denoise` at each of several times, for solvers with steps that are known beforehand.

        Override it where computations that depend on times alone can be shared: see
        `PlannedEstimator` and `KernelEstimator`.

        Args:
            at: Coefficients of the SDE at these times, for states like those to come.
            condition: What the estimator is conditioned on.
        """
        return (partial(self.denoise, t=t, condition=condition) for t in at.times)

    def with_clock(self, clock: Clock) -> Self:
        """A view of the estimator on another clock: samples by another path, of the same data.

        Components may be drawn together, one after the other, or along a front that moves over them
        (`scoresde.sdes.fronts`), by exact estimators and those trained at independent times. Parts
        that are estimators get the clock, too.

        Args:
            clock: In the place of the SDE's, whose schedule, basis and scale are kept; clean
                observed components stay clean.

        Raises:
            TypeError: If the SDE has no clock.
            ValueError: If the clock does not fit it, or the estimator was trained along one path.

        Example:
            >>> import torch
            >>> from estimators import Gaussian
            >>> from scoresde import VP, DiagonalSDE, Identity
            >>> from scoresde.sdes.fronts import front
            >>> sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}))
            >>> model = Gaussian(sde, torch.zeros(2), torch.eye(2))
            >>> model.with_clock(front([0, 1])).sde.breakpoints() != model.sde.breakpoints()
            True
        """
        view = _with_clock(self, clock)
        # wrappers of one that is conditioned share its SDE
        pairs = zip(self.children(), view.children(), strict=True)
        shared = [new.sde for old, new in pairs if getattr(old, "sde", None) is self.sde]
        return shallow_copy(view, sde=shared[0] if shared else self.sde.with_clock(clock))

    def states(self, x: Tensor) -> Tensor:
        """Coefficients of events, expanded to the samples for which there are values.

        Args:
            x: ``(*batch, *event_shape)``.

        Returns:
            ``(*batch, n)``, where ``batch`` is that of ``x`` and ``batch_shape``, broadcast.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If it has the wrong shape, or is on a device where the estimator is not.
        """
        expect_near("x", x, self)
        z: Tensor = self.sde.basis(x)
        return z.expand(*broadcast("x", z.shape[:-1], self.batch_shape), -1)

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``grad_z log p_t(z | condition) = (alpha D - z)/sigma^2``.

        0 without noise, as `noise` and `velocity`: see `scoresde.objectives.parametrization`.
        """
        return self._predict("score", z, t, condition)

    def noise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``E[eps | z_t] = (z - alpha D)/sigma = -sigma s``; 0 where there is no noise."""
        return self._predict("noise", z, t, condition)

    def velocity(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``alpha E[eps | z_t] - sigma D``; 0 where there is no noise."""
        return self._predict("velocity", z, t, condition)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """A scalar to minimise, from a batch of events ``(batch, *event_shape)``.

        Raises:
            NotImplementedError: If the estimator has nothing to learn.
        """
        raise NotImplementedError(f"{type(self).__name__} knows its score: nothing to train")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Tensors by name, each once: parts share an SDE, and files want no shared memory."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in _second_names(self):
            state.pop(kwargs.get("prefix", "") + name, None)
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        second = {f"{prefix}{n}": f"{prefix}{first}" for n, first in _second_names(self).items()}
        # weights of a network that is compiled or wrapped, into one that is not, and back
        names = {f"{prefix}{name}" for name in self.state_dict()} | second.keys()
        values = {name: state_dict.pop(name) for name in [*state_dict] if name.startswith(prefix)}
        values = match_names(values, names)
        values |= {n: values[first] for n, first in second.items() if first in values}
        state_dict.update(values)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _predict(self, name: str, z: Tensor, t: Tensor | float, condition: Any) -> Tensor:
        form, times = self._form(name, z, t)
        return parametrization.predict(form, z, self.denoise(z, times, condition))

    def _form(self, name: str, z: Tensor, t: Tensor | float) -> tuple[Affine, Tensor | float]:
        """A conversion, and the times of the denoised mean to be converted.

        Those are ``eps`` for states without any noise: the value is not used there, but has to be
        differentiable.
        """
        times = self.sde.time(t, z)
        alpha, sigma = self.sde.kernel(times, z.shape[-1])
        form = parametrization.affine(parametrization.parametrization(name), alpha, sigma)
        still = (sigma == 0).all(-1)
        if isinstance(t, Tensor):
            t = torch.where(still.unsqueeze(-1) if t.ndim == z.ndim else still, self.sde.eps, t)
        else:
            t = self.sde.eps if t == 0 else t
        return Affine(cast_like(form.skip, z), cast_like(form.out, z)), t


def _second_names(module: nn.Module) -> dict[str, str]:
    """Other names of tensors of parts that have several, with their first."""
    first: dict[nn.Module, str] = {}
    return {
        f"{path}.{name}": f"{first[part]}.{name}"
        for path, part in module.named_modules(remove_duplicate=False)
        if first.setdefault(part, path) != path
        for name in (*part._parameters, *part._buffers)
    }


def _with_clock(module: M, clock: Clock) -> M:
    """A view of a module whose parts that are estimators have another clock."""
    parts = {
        name: part.with_clock(clock)
        if isinstance(part, ScoreEstimator)
        else _with_clock(part, clock)
        for name, part in module._modules.items()
        if part is not None
    }
    changed = {name: part for name, part in parts.items() if part is not module._modules[name]}
    return shallow_copy(module, **changed) if changed else module


class PlannedEstimator(ScoreEstimator):
    """An estimator whose preparation for times is the same for one as for several.

    Subclasses implement `prepare`.

    Takes the arguments of `ScoreEstimator`.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.estimator import PlannedEstimator
        >>> class PointMassAtZero(PlannedEstimator):
        ...     def prepare(self, at, condition=None): return (torch.zeros_like for _ in at.times)
        >>> PointMassAtZero(DiagonalSDE(VP(), Identity((2,)))).denoise(torch.ones(1, 2), 0.5)
        tensor([[0., 0.]])
    """

    @abstractmethod
    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """`denoise` at each of several times, see `ScoreEstimator.denoisers`."""

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See `ScoreEstimator.denoise`."""
        (denoiser,) = self.prepare(self.sde.read(t, z), condition)
        return denoiser(z)

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `ScoreEstimator.denoisers`."""
        return self.prepare(at, condition)


class KernelEstimator(ScoreEstimator):
    """An estimator that depends on times by their kernels only, as exact ones do.

    Subclasses implement `denoised`.

    Takes the arguments of `ScoreEstimator`.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.estimator import KernelEstimator
        >>> class StandardNormal(KernelEstimator):
        ...     def denoised(self, z, kernel, condition=None):
        ...         alpha, sigma = kernel
        ...         return alpha * z / (alpha**2 + sigma**2)
        >>> StandardNormal(DiagonalSDE(EDM(), Identity((2,)))).denoise(torch.ones(1, 2), 1.0)
        tensor([[0.5000, 0.5000]])
    """

    precise_kernel: ClassVar[bool] = False
    """Whether `denoised` is given kernels in full precision, not in the dtype of states."""

    @abstractmethod
    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """`denoise` of states whose kernel is known.

        Args:
            z: Diffused states, ``(*batch, n)``.
            kernel: Of them, ``(*, 1 | n)``, in their dtype, or see `precise_kernel`.
            condition: As of `denoise`.

        Returns:
            ``(*batch, n)``, in any floating-point dtype.
        """

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See `ScoreEstimator.denoise`."""
        kernel = self.kernel(z, t)
        if not self.precise_kernel:
            kernel = Kernel(*(cast_like(v, z) for v in kernel))
        return self._denoised(kernel, condition, z)

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `ScoreEstimator.denoisers`."""
        told = kernels(at, precise=self.precise_kernel)
        return (partial(self._denoised, kernel, condition) for kernel in told)

    def kernel(self, z: Tensor, t: Tensor | float) -> Kernel:
        """The kernel of states at their times, in full precision."""
        return self.sde.kernel(self.sde.time(t, z).to(precision(z.device)), z.shape[-1])

    def _denoised(self, kernel: Kernel, condition: Any, z: Tensor) -> Tensor:
        return self.denoised(z, kernel, condition).to(z)


def kernels(at: SDECoefficients, *, precise: bool = False) -> list[Kernel]:
    """The kernel at each of several times, on the device of states.

    Args:
        at: Coefficients at the times.
        precise: Whether in the times' dtype, not in that of states.
    """
    if not precise:
        return [*map(Kernel, *at.each(*at.kernel))]
    alpha, sigma = (to_device(v, at.like.device).unbind() for v in at.kernel)
    return [*map(Kernel, alpha, sigma)]


class DirectScoreEstimator(ScoreEstimator):
    """An estimator that returns the score, as for an SDE without a kernel.

    Subclasses implement `score`; the denoised mean follows by Tweedie's formula.

    Takes the arguments of `ScoreEstimator`.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, DirectScoreEstimator, Identity
        >>> class StandardNormal(DirectScoreEstimator):
        ...     def score(self, z, t, condition=None): return -z
        >>> model = StandardNormal(DiagonalSDE(VP(), Identity((2,))))
        >>> model.denoise(torch.ones(1, 2), 0.5).round(decimals=2)  # alpha z
        tensor([[0.2800, 0.2800]])
    """

    @abstractmethod
    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``grad_z log p_t(z | condition)``."""

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``(z + sigma^2 s)/alpha`` (Tweedie)."""
        form, times = self._form("score", z, t)
        return parametrization.denoise(form, z, self.score(z, times, condition))


def expect_estimator(value: object) -> None:
    """Raises ``TypeError`` unless a value is a `ScoreEstimator`, wrapped or not."""
    module = unwrapped(value) if isinstance(value, nn.Module) else value
    instance("estimator", module, ScoreEstimator)
