"""Coefficients of steps in closed form.

Over a step from ``t`` to ``s``, with the part of the drift that is left to a solver, ``F``,

    y_s = decay y_t + gain <F> + noise,    <F> = int_0^1 F e^(damping v) dv / norm.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        first, second = self.moments
        far = _weight_at_end(y) - 3 * second / y
        third = x * _horner(x * x, _THIRD_CUMULANT)
        return torch.where(near, third + 3 * first * second - 2 * first**3, far)

    def expand(self, blocks: Blocks) -> Propagator:
        """One entry per component, of a state in these blocks, where they differ."""
        return Propagator(*(None if v is None else blocks.expand(v) for v in self))  # type: ignore[arg-type]


_NEAR = 0.3
"""An exponent below which closed forms of moments cancel, and series of cumulants are taken. There
closed forms in float32 are right to 7e-6 (9e-5 of the third moment), series to all digits."""

_LARGE = 80.0
"""An exponent of which float32 has the exponential."""

_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)
"""``b_k = B_2k/(2k)!`` with Bernoulli's numbers: of ``d/dx log((e^x - 1)/x) = 1/2 + sum_k b_k
x^(2k-1)``, whose derivatives are the cumulants. Of five, what is left out is below 1e-13 at
`_NEAR`; the third cumulant, which asks for more, has the sixth as well."""

_MEAN = _SERIES[:5]
_VARIANCE = [(2 * k - 1) * b for k, b in enumerate(_MEAN, 1)]
_THIRD_CUMULANT = [(2 * k - 1) * (2 * k - 2) * b for k, b in enumerate(_SERIES, 1)][1:]


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
    first = whole - y.reciprocal()
    second = torch.addcdiv(whole, first, y, value=-2)
    square = x * x
    mean = 1 / 2 + x * _horner(square, _MEAN)
    close = torch.addcmul(_horner(square, _VARIANCE), mean, mean)
    return torch.where(near, mean, first), torch.where(near, close, second)


def _near_and_far(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of small exponents; large ones, and small ones, with a number in the place of others.

    Gradients want numbers in both.
    """
    near = x.abs() < _NEAR
    return near, x.masked_fill(near, 1.0), x.masked_fill(~near, 0.0)


def _weight_at_end(y: Tensor) -> Tensor:
    """The density at 1, of which every moment follows from the one before (partial integration)."""
    return 1 + torch.expm1(y.clamp(max=_LARGE)).reciprocal()


def _horner(x: Tensor, terms: Sequence[float]) -> Tensor:
    """The polynomial with these coefficients, lowest first."""
    value = terms[-2] + terms[-1] * x
    for term in reversed(terms[:-2]):
        value = term + value * x
    return value
