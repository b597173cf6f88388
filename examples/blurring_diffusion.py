"""Blurring diffusion (Hoogeboom and Salimans 2023, arXiv 2209.05557) as a schedule over a DCT.

    alpha_i = a(t) d_i(t),    d_i = floor + (1 - floor) exp(-f_i^2 tau(t)),    sigma_i = sigma(t)

Noise is added as ever, and while it is, the signal's fine frequencies are dissipated first:
``tau = (blur sin^2(pi t / 2))^2 / 2`` is the time of a heat equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from report import digits, moments, report
from torch import Tensor

from estimators import Gaussian
from scoresde import DCT, Cosine, DiagonalSDE, Schedule
from scoresde.precision import Numbers
from solvers import ExponentialMultistep


class Blurring(Schedule):
    """A schedule whose signal is blurred besides.

    Args:
        base: ``a`` and ``sigma``.
        frequencies: ``f_i`` of every component.
        blur: Standard deviation of the blur at the end, in pixels.
        floor: What blurring leaves of the finest frequencies.
    """

    frequencies: Tensor

    def __init__(
        self, base: Schedule, frequencies: Numbers, blur: float = 20.0, floor: float = 1e-3
    ) -> None:
        super().__init__(T=base.T, eps=base.eps)
        self.base, self.blur, self.floor = base, blur, floor
        self.constant("frequencies", frequencies)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the module."""
        (frequencies,) = self.constants(t, "frequencies")
        tau = (self.blur * (math.pi / 2 * t / self.T).sin() ** 2) ** 2 / 2
        lost = (1 - self.floor) * torch.expm1(-(frequencies**2) * tau)
        return self.base.log_alpha(t) + torch.log1p(lost)

    def sigma(self, t: Tensor) -> Tensor:
        """That of the base."""
        return self.base.sigma(t)


def blurring_diffusion(event_shape: Sequence[int], blur: float = 20.0) -> DiagonalSDE:
    """The setting: one schedule that knows its frequencies, over their basis."""
    basis = DCT(event_shape)
    return DiagonalSDE(Blurring(Cosine(), basis.frequencies, blur), basis)


def main() -> None:
    """Samples the digits' Gaussian."""
    images = digits()
    mean, covariance = moments(images)
    sde = blurring_diffusion(images.shape[1:])
    model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
    report("blurring diffusion", model, ExponentialMultistep(64), (mean, covariance), 4096)


if __name__ == "__main__":
    main()
