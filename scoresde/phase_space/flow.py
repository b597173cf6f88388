"""The probability flow of a `scoresde.PhaseSDE`, in coordinates in which it is diagonal.

With the root ``R = L O`` of the state's covariance that turns with the flow,

    w = R^-1 y / |rho| = e D + xi / |rho|,    dw/dl = -w + kappa D,    l = log |rho|,

where ``e = R^-1 a / |rho|`` has length 1 and ``e kappa = 1``. It is a diagonal flow, and can be
integrated with its divergence like others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.equation import Forcing
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Noise
from scoresde.phase_space.coefficients import PhaseCoefficients, denoised
from scoresde.phase_space.rotation import Rotation
from scoresde.phase_space.steps import phase_step
from scoresde.propagator import Propagator
from scoresde.reverse import ProbabilityFlow
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients, DiagonalReverse
from scoresde.sdes.reading import Reading
from scoresde.sdes.sde import Stage
from scoresde.sdes.sde_coefficients import Score


class PhaseFlowCoefficients(DiagonalCoefficients):
    """Coefficients of ``w``, the same for all copies, each with the forcing ``D``.

    Args:
        known: Coefficients of the SDE.
        rotation: That of its flow.
    """

    _rotation_matrix: Tensor | None = None

    def __init__(self, known: PhaseCoefficients, rotation: Rotation) -> None:
        self.known, self.rotation = known, rotation
        seen, k = known.seen, known.dynamics.copies

        def all_copies(value: Tensor) -> Tensor:
            return known.vector(value.unsqueeze(-1).expand(*value.shape, k))

        def rates() -> tuple[Tensor, Tensor, Tensor]:
            decay = all_copies(seen.log_snr_decay)
            none = torch.zeros_like(decay)
            return none, decay * sigma**2, none

        log_snr = all_copies(-2 * seen.noise_levels)
        sigma = (log_snr / -2).exp()
        reading = Reading(torch.zeros_like(sigma), sigma, log_snr, rates)
        super().__init__(known.t, known.like, known.blocks, reading, all_copies(seen.scale))

    def __getitem__(self, index: Any) -> Self:
        return type(self)(self.known[index], self.rotation)

    @property
    def rotation_matrix(self) -> Tensor:
        """``O``."""
        if self._rotation_matrix is None:
            self._rotation_matrix = self.rotation(self.known.dynamics, self.known.s)
        return self._rotation_matrix

    @property
    def direction(self) -> Tensor:
        """``e``."""
        kernel = self.known.phase_kernel
        length = (kernel.log_snr / 2).exp().unsqueeze(-1)
        return self.known.vector(self._seen(kernel.rho) / length).to(self.t)

    @property
    def pull(self) -> Tensor:
        """``kappa = O^T L^-1 Q L^-T rho |rho| / (rho^T L^-1 Q L^-T rho)``."""
        kernel = self.known.phase_kernel
        pulled = (kernel.g2 @ kernel.rho.unsqueeze(-1)).squeeze(-1)
        scale = (kernel.log_snr.div(-2).exp() / kernel.decay).unsqueeze(-1)
        return self.known.vector(self._seen(pulled) * scale).to(self.t)

    def _seen(self, value: Tensor) -> Tensor:
        return (self.rotation_matrix.mT @ value.unsqueeze(-1)).squeeze(-1)

    def denoisers(self, estimator: Score, condition: Any) -> Iterator[Forcing]:
        """``D``, once for every copy."""
        seen, k = self.known.seen, self.known.dynamics.copies
        alpha = self.known.vector(seen.alpha.unsqueeze(-1).expand(*seen.alpha.shape, k))
        (directions,) = self.each(alpha * self.direction)
        denoisers = estimator.denoisers(seen, condition)
        return map(partial(partial, denoised, k), denoisers, directions)


class PhaseFlowReverse(DiagonalReverse):
    """Coefficients of the flow of ``w`` at several times.

    Takes the arguments of `scoresde.sdes.sde_coefficients.ReverseCoefficients`.
    """

    forward: PhaseFlowCoefficients

    @property
    def response_by_length(self) -> Tensor:
        """``kappa``."""
        return self.forward.pull

    def propagator(self, end: Any) -> Propagator:
        """Exact for a constant ``D``, ``w_s = e^-h w_t + (e_s - e^-h e_t) D``, and for cubics.

        For any turn of ``e``, and any noise in whose units ``w`` is.
        """
        now, then = self.forward.known, end.forward.known
        step, kernel = phase_step(now.dynamics, now.s, then.s, 0.0), then.phase_kernel
        white = torch.linalg.solve_triangular(kernel.root, step.gains, upper=False)
        turned = (
            end.forward.rotation_matrix.mT @ white / (kernel.log_snr / 2).exp()[..., None, None]
        )
        gain, means = now.gain(turned)
        straight = super().propagator(end)
        return straight._replace(gain=gain, first=means[0], second=means[1], third=means[2])

    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """``(e D - w)/sigma^2``."""
        return super().score(z, self.forward.cast(self.forward.direction) * forcing)


class PhaseFlow(ProbabilityFlow):
    """The flow of ``w``; see the module.

    Takes the arguments of `scoresde.ProbabilityFlow`.
    """

    estimate = "probability flow of all copies, a bound from below by one draw of those beside data"

    def __init__(self, estimator: ScoreEstimator, condition: Any = None) -> None:
        super().__init__(estimator, condition)
        sde: Any = estimator.sde
        self.rotation: Rotation = sde.rotation

    def at(self, t: Tensor, like: Tensor) -> PhaseFlowReverse:
        """See `scoresde.equation.Equation.at`."""
        here: Any = self.sde.at(t, like)
        known = PhaseFlowCoefficients(here, self.rotation)
        return PhaseFlowReverse(known, self.estimator, 0.0, self.condition, 1)

    def start(self, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Data with velocities as they are distributed where data are smooth.

        ``v`` given ``x``, of ``x = a_0 x_0 + L_0 xi`` with a flat prior of ``x_0``.

        Returns:
            ``w``, and a term to be added to its log-density for a bound on that of data.
        """
        at, copies = self._known(self.eps, z), self.sde.copies
        kernel = at.phase_kernel
        share = kernel.mean / kernel.mean[..., :1]
        rest = (kernel.root - share.unsqueeze(-1) * kernel.root[..., :1, :])[..., 1:, :]
        factor = torch.linalg.cholesky(at.in_units(at.in_units(rest @ rest.mT)))
        beside = at.mixing(nn.functional.pad(factor, (1, 0, 1, 0)))
        xi = noise(z.new_empty(*z.shape[:-1], (copies - 1) * z.shape[-1]))
        mean = at.cast(at.vector(share))[0] * torch.cat([z] * copies, -1)
        y = mean + at.cast(beside)[0] * torch.cat([torch.zeros_like(z), xi], -1)
        drawn = xi.square().sum(-1) / 2 + xi.shape[-1] / 2 * math.log(2 * math.pi)
        volume = at.log_det(factor) - self._volume(at)
        return at.cast(at.mixing(torch.linalg.inv(self._frame(at))))[0] * y, drawn + volume.to(z)

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """See `scoresde.SDE.marginalise`."""
        at = self._known(stage.start, z[..., : self.basis.dim])
        y = at.cast(at.mixing(self._frame(at)))[0] * z
        rest, density = self.sde.marginalise(y, stage, dim)
        return rest, density + self._volume(at).to(z)

    def _known(self, t: float, z: Tensor) -> PhaseCoefficients:
        time = torch.full((1, 1), t, dtype=torch.float64, device="cpu")
        at: Any = self.sde.at(time, torch.cat([z] * self.sde.copies, -1))
        known: PhaseCoefficients = at
        return known

    def _frame(self, at: PhaseCoefficients) -> Tensor:
        """``|rho| R``, ``(1, 1 | blocks | n, copies, copies)``."""
        kernel = at.phase_kernel
        size = (kernel.log_snr / 2).exp()[..., None, None]
        frame: Tensor = size * kernel.root @ self.rotation(at.dynamics, at.s)
        return frame

    def _volume(self, at: PhaseCoefficients) -> Tensor:
        """The logarithm of that matrix's determinant."""
        kernel = at.phase_kernel
        return at.log_det((kernel.log_snr / 2).exp()[..., None, None] * kernel.root)
