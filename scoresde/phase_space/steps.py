"""Steps of the reverse equation of `Dynamics`, exact for polynomials in the denoised mean.

With ``y = L u`` the equation that shares the marginals is

    du/ds = [rotation_rate + (eta^2/2) L^-1 Q L^-T] u - (1 + eta^2)/2 L^-1 Q L^-T rho D,

whose coefficients change slowly. The contributions of a constant ``D``, and of powers of half the
log-SNR, are further columns of the same linear equation, which Magnus' expansion solves to sixth
order on as many pieces as the step is long (Blanes et al. 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoresde.phase_space.dynamics import Dynamics, PhaseKernel

PIECE = 0.2
"""Of the way, on which an expansion of sixth order is right to ten digits or more."""

_POWERS = 4
"""Powers of ``v``: those of cubics, the highest polynomials that solvers integrate."""

Rate = Callable[[PhaseKernel], Tensor]

_NODES = (0.5 - math.sqrt(15) / 10, 0.5, 0.5 + math.sqrt(15) / 10)
"""Of the Gauss-Legendre rule of order 6."""


class PhaseStep(NamedTuple):
    """``y_s = decay y_t + gains (D, D', D'', D^(3))/(0!, 1!, 2!, 3!) + noise_std xi``.

    Attributes:
        decay: ``(*, k, k)``.
        gains: Weights of ``1``, ``v``, ``v^2`` and ``v^3``, with ``v`` from 0 to 1 along the step
            in half the log-SNR: ``(*, k, 4)``.
        noise_std: The symmetric root of the noise's covariance, ``(*, k, k)``.
        h: Growth of half the log-SNR, ``(*,)``.
    """

    decay: Tensor
    gains: Tensor
    noise_std: Tensor
    h: Tensor


def phase_step(dynamics: Dynamics, start: Tensor, end: Tensor, eta: float) -> PhaseStep:
    """Steps between ``s``, ``(*,)`` in float64, in either direction.

    Args:
        dynamics: Of position and velocity.
        start: ``s`` at their starts.
        end: ``s`` at their ends.
        eta: Amount of noise.

    Example:
        >>> import torch
        >>> from scoresde import Dynamics
        >>> from scoresde.phase_space.steps import phase_step
        >>> pair, (late, early) = Dynamics.cld(), torch.tensor([2.0, 1.0]).double()
        >>> step = phase_step(pair, late, early, eta=1.0)
        >>> a, b = pair.kernel(late), pair.kernel(early)
        >>> torch.allclose(step.decay @ a.mean + step.gains[:, 0], b.mean)
        True
    """
    first, last = dynamics.kernel(start), dynamics.kernel(end)
    origin, h = first.log_snr / 2, (last.log_snr - first.log_snr) / 2
    still = h == 0
    length = h.masked_fill(still, 1.0)
    k = dynamics.copies

    def rate(kernel: PhaseKernel) -> Tensor:
        v = ((kernel.log_snr / 2 - origin) / length)[..., None, None]
        pulled = (kernel.g2 @ kernel.rho.unsqueeze(-1)) * (-(1 + eta**2) / 2)
        driven = pulled * v ** torch.arange(_POWERS, device=v.device)
        top = torch.cat([kernel.rotation_rate + eta**2 / 2 * kernel.g2, driven], -1)
        return nn.functional.pad(top, (0, 0, 0, _POWERS))

    flow = magnus(dynamics, start, end, rate)
    white, gains = flow[..., :k, :k], flow[..., :k, k:]
    identity = torch.eye(k, dtype=white.dtype, device=white.device)
    unwhiten = torch.linalg.solve_triangular(first.root, white @ identity, upper=False, left=False)
    covariance = last.root @ (identity - white @ white.mT) @ last.root.mT
    decay, gains = last.root @ unwhiten, last.root @ gains
    # a constant mean goes from where it is to where it will be, to all digits
    constant = last.mean.unsqueeze(-1) - decay @ first.mean.unsqueeze(-1)
    gains = torch.cat([constant, gains[..., 1:]], -1)
    return PhaseStep(decay, gains, symmetric_root(covariance), h)


def magnus(dynamics: Dynamics, start: Tensor, end: Tensor, rate: Rate) -> Tensor:
    """The solution at the ends of ``dU/ds = rate U`` that is 1 at the starts: ``(*, m, m)``.

    Pieces are short in logarithms of ``s`` where that is small, and in ``s`` where it is not.

    Args:
        dynamics: Of position and velocity.
        start: ``s`` at the starts, ``(*,)``, in float64.
        end: ``s`` at the ends.
        rate: Of kernels, ``(*, m, m)``.
    """
    a, b = dynamics.coordinate(start), dynamics.coordinate(end)
    pieces = max(1, math.ceil(float((b - a).detach().abs().max()) / PIECE))
    width = (b - a) / pieces
    nodes = torch.tensor(_NODES, dtype=a.dtype, device=a.device)
    parts = torch.arange(pieces, device=a.device).unsqueeze(-1) + nodes
    coordinates = a + parts.reshape(*parts.shape, *[1] * a.ndim) * width
    s, speed = dynamics.of_coordinate(coordinates)
    rates = rate(dynamics.kernel(s)) * (speed * width)[..., None, None]
    solutions: Tensor = torch.linalg.matrix_exp(_exponent(*rates.unbind(1)))
    total = solutions[0]
    for piece in solutions[1:]:
        total = piece @ total
    return total


def _exponent(x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    """Magnus' expansion of sixth order, from a rate at the three nodes."""
    a1, a2, a3 = x2, math.sqrt(15) / 3 * (x3 - x1), 10 / 3 * (x3 - 2 * x2 + x1)
    c1 = _commuted(a1, a2)
    c2 = _commuted(a1, 2 * a3 + c1) / -60
    return a1 + a3 / 12 + _commuted(-20 * a1 - a3 + c1, a2 + c2) / 240


def _commuted(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric root of matrices that are positive semi-definite up to rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    root: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
    return root
