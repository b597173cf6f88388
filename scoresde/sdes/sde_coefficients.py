"""Coefficients of an SDE and its reverse equations at several times.

The interfaces (`SDECoefficients`, `ReverseCoefficients`), and their form for SDEs of which only
drift and diffusion are known (`PlainCoefficients`, `PlainReverse`); for linear ones see
`scoresde.sdes.diagonal_coefficients`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.equation import Coefficients, Equation, Field, Forcing
from scoresde.internals.derivatives import PullBack, vjp
from scoresde.precision import cast_like
from scoresde.propagator import Propagator


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


class Score(Protocol):
    """The methods of an estimator that equations use; see `scoresde.ScoreEstimator`."""

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``grad_z log p_t(z | condition)``."""

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Forcing]:
        """``E[z_0 | z_t, condition]`` at each of several times."""


class SDECoefficients(Coefficients):
    """Coefficients of an SDE at several times.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[3.0]])).kernel
        Kernel(alpha=tensor([[1.]]), sigma=tensor([[3.]]))
    """

    @property
    @abstractmethod
    def kernel(self) -> Kernel:
        """The distribution of the state given the one at 0, in the dtype of the times.

        Raises:
            NotImplementedError: If it is not Gaussian, or not known.
        """

    @abstractmethod
    def part(self, index: Any, like: Tensor) -> Self:
        """Coefficients at some of the times, for states of their own, without another evaluation.

        Args:
            index: Index of the times ``(k, *)``.
            like: A state.
        """

    def __getitem__(self, index: Any) -> Self:
        return self.part(index, self.like)

    @property
    def noise_levels(self) -> Tensor:
        """An increasing measure of noise per component, ``(*, 1 | blocks | n)``: here time."""
        return self.t

    @property
    def noise_level(self) -> Tensor:
        """The finite `noise_levels`, averaged over the blocks: ``(k, *)``."""
        return self.noise_levels.mean(-1)

    def denoisers(self, estimator: Score, condition: Any) -> Iterator[Forcing]:
        """The denoised mean at every one of the times, of states as they are here."""
        return estimator.denoisers(self, condition)

    @abstractmethod
    def reverse(
        self, estimator: Score, eta: float, condition: Any, sign: int
    ) -> ReverseCoefficients:
        """Coefficients of an equation with the same marginals: see `scoresde.ReverseSDE`."""


class ReverseCoefficients(Coefficients):
    """Coefficients at several times of an equation with the marginals of an SDE.

    Its drift is affine in a *forcing* ``F``, the denoised mean where the SDE is linear:
    ``slope z + response F`` in the SDE's time.

    Args:
        forward: Coefficients of the SDE.
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
        """The noise level of the SDE, which falls where time runs against it."""
        return self.sign * self.forward.noise_level

    @property
    @abstractmethod
    def slope(self) -> Tensor:
        """The factor of the state, ``(k, *, 1 | blocks | m)``."""

    @property
    @abstractmethod
    def response(self) -> Tensor:
        """The factor of the forcing, ``(k, *, 1 | blocks | m)``."""

    @property
    @abstractmethod
    def length_rate(self) -> Tensor:
        """Derivative of the ``h`` of `Propagator` by the SDE's time, ``(k, *, 1 | blocks | m)``.

        For a linear SDE it is half the derivative of the log-SNR.
        """

    @property
    def slope_by_length(self) -> Tensor:
        """The factor of the state per unit of that length; 0 where nothing moves."""
        return self._by_length(self.slope)

    @property
    def response_by_length(self) -> Tensor:
        """The factor of the forcing per unit of that length; 0 where nothing moves."""
        return self._by_length(self.response)

    def _by_length(self, value: Tensor) -> Tensor:
        rate = self.length_rate
        return value / rate.masked_fill(rate == 0, torch.inf)

    @abstractmethod
    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """The score of an ODE's forcing, at states ``(k, *batch, m)``; 0 where clean."""


class PlainCoefficients(SDECoefficients):
    """Coefficients of an SDE of which only ``f`` and ``g`` are known.

    Takes the SDE, and the arguments of `scoresde.equation.Coefficients`.
    """

    def __init__(self, sde: Equation, t: Tensor, like: Tensor, blocks: Any) -> None:
        super().__init__(t, like, blocks)
        self.sde = sde

    def part(self, index: Any, like: Tensor) -> Self:
        """See `SDECoefficients.part`."""
        return type(self)(self.sde, self.t[index], like, self.blocks)

    @property
    def kernel(self) -> Kernel:
        """None."""
        raise NotImplementedError(
            f"{type(self.sde).__name__} has no closed-form kernel: its score can be asked for, but "
            "no denoised mean, noise or velocity"
        )

    def propagator(self, end: PlainCoefficients) -> Propagator:
        """A step of Euler and Maruyama."""
        return _plain_step(self.t, end.t, float(self.sde.stochastic))

    def fields(self) -> Iterator[Field]:
        """All of the drift is forcing."""

        def field(t: Tensor) -> Field:
            f, g = partial(self.sde.f, t), partial(self.sde.g, t)
            return Field(f, lambda y, xi: g(y) * xi, f, g)

        return map(field, self.times)

    def reverse(
        self, estimator: Score, eta: float, condition: Any, sign: int
    ) -> ReverseCoefficients:
        """See `SDECoefficients.reverse`."""
        return PlainReverse(self, estimator, eta, condition, sign)


class PlainReverse(ReverseCoefficients):
    """Coefficients of its reverse equations: the forcing is all of the drift.

    Takes the arguments of `ReverseCoefficients`.
    """

    forward: PlainCoefficients

    @property
    def slope(self) -> Tensor:
        """0."""
        return torch.zeros_like(self.forward.noise_levels)

    @property
    def response(self) -> Tensor:
        """1."""
        return torch.ones_like(self.forward.noise_levels)

    @property
    def length_rate(self) -> Tensor:
        """1: lengths are times."""
        return self.response

    def propagator(self, end: PlainReverse) -> Propagator:
        """A step of Euler and Maruyama."""
        return _plain_step(self.t, end.t, self.eta)

    def fields(self) -> Iterator[Field]:
        """All of the drift is forcing."""

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
        t = cast_like(self.t, z)
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


def _plain_step(t: Tensor, s: Tensor, eta: float) -> Propagator:
    h = s - t
    noise_std = eta * h.abs().sqrt() if eta else None
    return Propagator(torch.ones_like(h), h, h, torch.zeros_like(h), noise_std)


def _variance(sde: Equation, t: Tensor, z: Tensor) -> tuple[Tensor, PullBack]:
    """``g^2``, and what pulls back through it: of ones, its divergence."""
    return vjp(lambda y: sde.g(t, y) ** 2, z, sde.parameters())
