"""Stochastic differential equations that diffuse data.

    dy = f(t, y) dt + g(t, y) dw                             t from 0 (data) to T (prior)

An SDE of one's own says ``f`` and ``g``, and no more. With a score ``s = grad log p_t`` it has
equations that run back from prior to data (`scoresde.ReverseSDE`), which share its marginals.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from scoresde.bases import Basis, Identity
from scoresde.checks import expect, floating, instance, numbers, readable, real
from scoresde.derivatives import PullBack, vjp
from scoresde.equation import (
    Coefficients,
    Equation,
    Field,
    Forcing,
    Propagator,
    align,
)
from scoresde.noise import Noise


class Kernel(NamedTuple):
    """``z_t | z_0 ~ N(alpha z_0, sigma^2)``; both ``(*, 1 | n)``.

    Example:
        >>> import torch
        >>> from scoresde import DiagonalSDE, Identity, RectifiedFlow
        >>> DiagonalSDE(RectifiedFlow(), Identity((2,))).kernel(torch.tensor([0.25]))
        Kernel(alpha=tensor([0.7500]), sigma=tensor([0.2500]))
    """

    alpha: Tensor
    sigma: Tensor


class Stage(NamedTuple):
    """From time ``start`` down to ``end`` the first ``dim`` components are the state.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Haar
        >>> DiagonalSDE(VP(), Haar((1, 4, 4), levels=1), drop=[1.0, 0.5]).stages()
        [Stage(start=1.0, end=0.5, dim=4), Stage(start=0.5, end=0.001, dim=16)]
    """

    start: float
    end: float
    dim: int


class Score(Protocol):
    """What an equation asks of an estimator; see `scoresde.ScoreEstimator`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sde import Score
        >>> sde = DiagonalSDE(VP(), Identity((1,)))
        >>> score: Score = Gaussian(sde, torch.zeros(1), torch.eye(1))
        >>> score.score(torch.ones(1, 1), 0.5)
        tensor([[-1.]])
    """

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``grad_z log p_t(z | condition)``."""

    def denoisers(self, at: Coefficients, condition: Any = None) -> Iterator[Forcing]:
        """``E[z_0 | z_t, condition]`` at each of several times."""


class SDECoefficients(Coefficients):
    """What an SDE says of several times.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[3.0]])).kernel
        Kernel(alpha=tensor([[1.]]), sigma=tensor([[3.]]))
    """

    @property
    @abstractmethod
    def kernel(self) -> Kernel:
        """The law of the state given the one at 0, in the dtype of the times.

        Raises:
            NotImplementedError: If it is not Gaussian, or not known.
        """

    @property
    def noise_levels(self) -> Tensor:
        """An increasing measure of noise per component, ``(*, 1 | blocks | n)``: here time."""
        return self.t

    @property
    def noise_level(self) -> Tensor:
        """Those `noise_levels` that are finite, averaged over the blocks: ``(k, *)``."""
        return self.noise_levels.mean(-1)

    @abstractmethod
    def reverse(
        self, estimator: Score, eta: float, condition: Any, sign: int
    ) -> ReverseCoefficients:
        """Those of an equation with the same marginals: see `scoresde.ReverseSDE`."""


class ReverseCoefficients(Coefficients):
    """What an equation that shares the marginals of an SDE says of several times.

    Its drift is affine in a *forcing* ``F`` that an estimator is asked for, the denoised mean where
    the SDE is linear: ``slope z + response F`` in the SDE's time.

    Args:
        forward: What the SDE says.
        estimator: Knows the score.
        eta: Amount of noise.
        condition: Passed on to the estimator.
        sign: 1 if time runs with the SDE's, -1 if against it.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ReverseSDE
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> at = ReverseSDE(model, eta=1.0).at(torch.tensor([[-2.0]]), torch.zeros(1, 1))
        >>> at.slope, at.response  # g^2/sigma^2 (z - D), with g^2 = 2 t and sigma = t
        (tensor([[1.]]), tensor([[-1.]]))
    """

    def __init__(
        self, forward: SDECoefficients, estimator: Score, eta: float, condition: Any, sign: int
    ) -> None:
        super().__init__(forward.t, forward.like, forward.blocks)
        self.forward, self.estimator, self.eta = forward, estimator, eta
        self.condition, self.sign = condition, sign

    def __getitem__(self, index: Any) -> Self:
        forward = self.forward[index]
        return type(self)(forward, self.estimator, self.eta, self.condition, self.sign)

    @property
    def noise_level(self) -> Tensor:
        """That of the SDE, which falls where time runs against it."""
        return self.sign * self.forward.noise_level

    @property
    @abstractmethod
    def slope(self) -> Tensor:
        """What multiplies the state, ``(k, *, 1 | blocks | m)``."""

    @property
    @abstractmethod
    def response(self) -> Tensor:
        """What multiplies the forcing, ``(k, *, 1 | blocks | m)``."""

    @property
    @abstractmethod
    def length_rate(self) -> Tensor:
        """How fast the ``h`` of `Propagator` grows with the SDE's time, ``(k, *, 1 | blocks | m)``.

        For a linear SDE it is half the derivative of the log-SNR.
        """

    @abstractmethod
    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """The score behind a forcing of an ODE, at states ``(k, *batch, m)``; 0 where clean."""


_ROUNDING = 2e-6
"""By how much a last time may be late that has been computed in float32."""


class SDE(Equation):
    """``dy = f(t, y) dt + g(t, y) dw`` with diagonal noise, in torchsde's contract.

    A subclass needs `f` and `g` only. ``g`` acts elementwise, and its ``i``-th entry may depend
    on the ``i``-th component of the state (torchsde's ``"diagonal"``).

    Args:
        event_shape: Shape of one event; or give ``basis``.
        T: Time at which the prior holds.
        eps: First time that sampling and likelihood use.
        prior: Distribution of the state ``(n,)`` at ``T``, needed to sample and to evaluate
            likelihoods.
        basis: Coordinates of the state; the event itself, flattened, if not given.

    Raises:
        ValueError: If not ``0 <= eps < T``, or not one of ``event_shape`` and ``basis`` is given.

    Example:
        >>> import torch
        >>> from scoresde import SDE
        >>> class OrnsteinUhlenbeck(SDE):
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return torch.full_like(y, 2**0.5)
        >>> OrnsteinUhlenbeck((3,)).f(torch.tensor(0.0), torch.ones(1, 3))
        tensor([[-1., -1., -1.]])
    """

    references = "anderson1982 song2021"

    linear = False
    """Whether there is a closed-form kernel: estimators are then asked for the denoised mean."""

    def __init__(
        self,
        event_shape: Sequence[int] | None = None,
        *,
        T: float = 1.0,
        eps: float = 1e-3,
        prior: Distribution | None = None,
        basis: Basis | None = None,
    ) -> None:
        expect(
            (event_shape is None) != (basis is None),
            "event_shape, basis",
            "one of the two",
            (event_shape, basis),
        )
        real("eps", eps)
        real("T", T)
        expect(0 <= eps < T, "eps, T", "0 <= eps < T", (eps, T))
        super().__init__(Identity(event_shape) if basis is None else basis, T, eps)  # type: ignore[arg-type]
        if prior is not None:
            instance("prior", prior, Distribution)
        self.prior = prior

    def at(self, t: Tensor, like: Tensor | None = None) -> SDECoefficients:
        """Everything that depends on times alone, for all of them at once.

        Args:
            t: Times: see `scoresde.equation.Coefficients`.
            like: A state ``(*batch, m)``; one of all components in the times' dtype if None.
        """
        like = t.new_empty(self.basis.dim) if like is None else like
        return _Rates(self, t, like, self.layout(like.shape[-1]))

    def kernel(self, t: Tensor, dim: int | None = None) -> Kernel:
        """The law of the state at ``t`` given the one at 0, where it is Gaussian and known.

        Args:
            t: Times, ``(*, 1 | blocks | n)``.
            dim: Length of the prefix of the state, all of it if None.

        Raises:
            NotImplementedError: If it is not: an estimator must then define ``score``.
        """
        return self.at(t, None if dim is None else t.new_empty(dim)).kernel

    def time(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Times aligned with a state (`align`), checked to be in range.

        Those on a device are not, as looking at them would wait for it.

        Raises:
            TypeError: If a state is no floating-point tensor, or a time no number.
            ValueError: If a time is not in ``[0, T]``, or a tensor's shape does not fit.
        """
        floating("z", z)
        n, length = self.basis.dim, z.shape[-1] if z.ndim else 0
        if not 0 < length <= n:  # asked at every step of a solver
            expect(False, "z", f"states (*batch, {n}), or the first of that many", tuple(z.shape))
        if isinstance(t, (float, int)):
            expect(0 <= t <= self.T, "t", f"a time from 0 to {self.T}", t)
        elif readable(t := numbers("t", t)) and t.numel():
            # NaN is the least, and the largest, of whatever it is among
            ends = [t.item()] if t.numel() == 1 else [v.item() for v in t.aminmax()]
            if not (ends[0] >= 0 and ends[-1] <= self.T * (1 + _ROUNDING)):
                expect(False, "t", f"times from 0 to {self.T}", " to ".join(map(str, ends)))
        return align(t, z)

    @property
    def observed(self) -> Tensor:
        """Which components are known, whatever the state: ``(n,)``, none here."""
        device = next((b.device for b in self.buffers()), "cpu")
        return torch.zeros(self.basis.dim, dtype=torch.bool, device=device)

    # What is the state when.

    def stages(self) -> list[Stage]:
        """Which components are the state when, from ``T`` down: here all of them throughout."""
        return [Stage(self.T, self.eps, self.basis.dim)]

    def append(self, z: Tensor, stage: Stage, noise: Noise) -> Tensor:
        """The state at the start of a stage, on the way from prior to data.

        Args:
            z: The state so far, ``(*batch, m)``; ``m`` is 0 at ``T``.
            stage: The stage: the components it has more are drawn, independent of the others.
            noise: Where random numbers come from.

        Returns:
            ``(*batch, stage.dim)``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        like = z.new_empty(*z.shape[:-1], stage.dim - z.shape[-1])
        fresh = noise.draw(self.distribution(stage.start, z.shape[-1], stage.dim), like)
        return torch.cat([z, fresh], -1)

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """What `append` adds, taken off again, and its density.

        Returns:
            The first ``dim`` components ``(*batch, dim)``, and the log-density ``(*batch,)`` of
            the others at ``stage.start``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        log_prob = self.distribution(stage.start, dim, stage.dim).log_prob(z[..., dim:]).to(z)
        return z[..., :dim], log_prob if log_prob.ndim < z.ndim else log_prob.sum(-1)

    def distribution(self, t: float, first: int, last: int) -> Distribution:
        """The law at ``t`` of the components that are appended there: at ``T``, the prior.

        Raises:
            ValueError: If the SDE has no prior.
        """
        expect(
            self.prior is not None,
            "prior",
            f"the distribution of the state at T = {self.T} for {type(self).__name__}",
            None,
        )
        assert self.prior is not None
        return self.prior


class _Rates(SDECoefficients):
    """Of an SDE of which ``f`` and ``g`` are known and nothing else."""

    def __init__(self, sde: SDE, t: Tensor, like: Tensor, blocks: Any) -> None:
        super().__init__(t, like, blocks)
        self.sde = sde

    def __getitem__(self, index: Any) -> Self:
        return type(self)(self.sde, self.t[index], self.like, self.blocks)

    @property
    def kernel(self) -> Kernel:
        raise NotImplementedError(
            f"{type(self.sde).__name__} has no closed-form kernel: its score can be asked for, but "
            "no denoised mean, noise or velocity"
        )

    def propagator(self, end: _Rates) -> Propagator:
        step = _plain_step(self.t, end.t)
        return step if self.sde.stochastic else step._replace(noise_std=None)

    def fields(self) -> Iterator[Field]:
        def field(t: Tensor) -> Field:
            f, g = partial(self.sde.f, t), partial(self.sde.g, t)
            return Field(f, lambda y, xi: g(y) * xi, f, g)

        return map(field, self.times)

    def reverse(
        self, estimator: Score, eta: float, condition: Any, sign: int
    ) -> ReverseCoefficients:
        return _ReverseRates(self, estimator, eta, condition, sign)


class _ReverseRates(ReverseCoefficients):
    """Of its reverse equations: the forcing is all of the drift."""

    forward: _Rates

    @property
    def slope(self) -> Tensor:
        return torch.zeros_like(self.forward.noise_levels)

    @property
    def response(self) -> Tensor:
        return torch.ones_like(self.forward.noise_levels)

    @property
    def length_rate(self) -> Tensor:
        return self.response

    def propagator(self, end: _ReverseRates) -> Propagator:
        step = _plain_step(self.t, end.t)
        noise_std = self.eta * step.h.abs().sqrt() if self.eta else None
        return step._replace(noise_std=noise_std)

    def fields(self) -> Iterator[Field]:
        def field(t: Tensor, forward: Field) -> Field:
            drift = partial(self._drift, t)
            return Field(
                drift,
                forward.increment,
                lambda z: self.sign * drift(z),
                lambda z: self.eta * forward.diffusion(z),
            )

        return map(field, self.forward.times, self.forward.fields())

    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """``(2 (f - F) - div g^2)/g^2``."""
        t = self.t.to(z)
        g2, pull_back = _variance(self.forward.sde, t, z)
        pull = 2 * (self.forward.sde.f(t, z) - forcing) - pull_back(torch.ones_like(z))
        score: Tensor = pull / g2.masked_fill(g2 == 0, torch.inf)
        return score

    def _drift(self, t: Tensor, z: Tensor) -> Tensor:
        sde = self.forward.sde
        g2, pull_back = _variance(sde, t, z)
        pull: Tensor = g2 * self.estimator.score(z, t, self.condition)
        pull = pull + pull_back(torch.ones_like(z))
        return sde.f(t, z) - (1 + self.eta**2) / 2 * pull


def _plain_step(t: Tensor, s: Tensor) -> Propagator:
    h = s - t
    return Propagator(torch.ones_like(h), h, h, torch.zeros_like(h), h.abs().sqrt())


def _variance(sde: SDE, t: Tensor, z: Tensor) -> tuple[Tensor, PullBack]:
    """``g^2``, and what pulls back through it: of ones, its divergence."""
    return vjp(lambda y: sde.g(t, y) ** 2, z, sde.parameters())
