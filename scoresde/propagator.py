"""Coefficients of steps in closed form.

Over a step from ``t`` to ``s``, with the part of the drift that is left to a solver, ``F``,

    y_s = decay y_t + gain <F> + noise,    <F> = int_0^1 F e^(damping v) dv / norm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.blocks import Blocks


class Propagator(NamedTuple):
    """Coefficients of steps, each ``(*, 1 | blocks | m)``; ``noise_std`` is None for an ODE.

    ``h`` is the length of the step in the variable in which the forcing is smooth, and
    ``damping = k h`` sets the weights ``e^(damping v)`` in the mean ``<F>``, with ``v`` from 0 to 1
    along the step, unless ``first``, ``second`` and ``third`` are the means of ``v``, ``v^2`` and
    ``v^3``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> at = DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[3.0], [5.0]]))
        >>> step = at[:1].propagator(at[1:])
        >>> step.decay, step.noise_std  # sqrt(5^2 - 3^2)
        (tensor([[1.]]), tensor([[4.]]))
    """

    decay: Tensor
    gain: Tensor
    h: Tensor
    damping: Tensor
    noise_std: Tensor | None
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of ``v`` and ``v^2`` over a step, the weights of forcings that grow so."""
        if self.first is None or self.second is None:
            return exponential_moments(self.damping)
        return self.first, self.second

    @property
    def cubic(self) -> Tensor:
        """Mean of ``v^3``."""
        if self.third is not None:
            return self.third
        near, y, x = _near_and_far(self.damping)
        far = _weight_at_end(y) - 3 * self.moments[1] / y
        mean, variance, skewness = _cumulant(x, 1), _cumulant(x, 2), _cumulant(x, 3)
        return torch.where(near, skewness + 3 * mean * variance + mean**3, far)

    def expand(self, blocks: Blocks) -> Propagator:
        """One entry per component, of a state in these blocks, where they differ."""
        return Propagator(*(None if v is None else blocks.expand(v) for v in self))  # type: ignore[arg-type]


_NEAR = 0.5
"""An exponent below which closed forms of moments cancel, and series of cumulants are taken. There
closed forms in float32 are right to 1e-6 (1e-5 of the third moment), series to all digits."""

_LARGE = 80.0
"""An exponent of which float32 has the exponential."""

_SERIES = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
)
"""``b_k = B_2k/(2k)!`` with Bernoulli's numbers: of ``d/dx log((e^x - 1)/x) = 1/2 + sum_k b_k
x^(2k-1)``, whose derivatives are the cumulants. What others would add at `_NEAR` is below 1e-14."""


def exponential_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of ``v`` and ``v^2`` over ``[0, 1]`` under a density that grows as ``e^(x v)``.

    With ``x`` the damping, these are the contributions to a step of forcings that grow linearly and
    quadratically: the normalised phi functions of Hochbruck and Ostermann 2010, *Exponential
    Integrators*.

    Example:
        >>> import torch
        >>> from scoresde.propagator import exponential_moments
        >>> exponential_moments(torch.zeros(1))
        (tensor([0.5000]), tensor([0.3333]))
    """
    near, y, x = _near_and_far(x)
    whole = _weight_at_end(y)
    first = whole - 1 / y
    second = whole - 2 * first / y
    mean = _cumulant(x, 1)
    return torch.where(near, mean, first), torch.where(near, _cumulant(x, 2) + mean**2, second)


def _near_and_far(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of small exponents; large ones, and small ones, with a number in the place of others.

    Gradients want numbers in both.
    """
    near = x.abs() < _NEAR
    return near, torch.where(near, 1.0, x), torch.where(near, x, 0.0)


def _weight_at_end(y: Tensor) -> Tensor:
    """The density at 1, of which every moment follows from the one before (partial integration)."""
    return -1 / torch.expm1((-y).clamp(max=_LARGE))


def _cumulant(x: Tensor, order: int) -> Tensor:
    """The mean, the variance or the third cumulant of the density, by its series (Horner)."""
    powers = [p for p in range(1, 2 * len(_SERIES), 2) if p >= order - 1]
    terms = zip(reversed(powers), reversed(_SERIES), strict=False)  # of the third, one is constant
    square, value = x * x, torch.zeros_like(x)
    for power, term in terms:
        value = value * square + term * math.perm(power, order - 1)
    value = value * x ** (powers[0] - order + 1)
    return value + 1 / 2 if order == 1 else value
