"""Inverse heat dissipation (Rissanen et al. 2023, arXiv 2206.13397) as a schedule over a DCT.

    alpha_i(t) = exp(-f_i^2 t),      sigma_i(t) = noise       so that      f = -f_i^2,
                                                                 g^2 = 2 noise^2 f_i^2

Images are blurred by the heat equation under a little noise that never grows. There is noise at
time 0 already: what is modelled are images with that noise on them. The mean brightness
(``f_i = 0``) stands still, so the prior is not a Gaussian about 0 but the distribution of
blurred images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from report import digits, moments, report
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from estimators import Gaussian
from scoresde import DCT, SDE, DiagonalSDE, Schedule
from scoresde.precision import Numbers
from solvers import ExponentialMultistep


class HeatDissipation(Schedule):
    """Heat dissipation under constant noise.

    Args:
        frequencies: ``f_i`` of every component.
        noise: Standard deviation of the noise.
        T: Last time, ``w^2 / 2`` for a blur of ``w`` pixels.
        eps: First time used.
    """

    frequencies: Tensor

    def __init__(
        self, frequencies: Numbers, noise: float = 0.01, T: float = 8.0, eps: float = 1e-3
    ) -> None:
        super().__init__(T=T, eps=eps)
        self.noise = noise
        self.constant("frequencies", frequencies)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the module."""
        (frequencies,) = self.constants(t, "frequencies")
        return -(frequencies**2) * t

    def sigma(self, t: Tensor) -> Tensor:
        """The same at every time."""
        return torch.full_like(t, self.noise)


def inverse_heat_dissipation(event_shape: Sequence[int], noise: float = 0.01) -> DiagonalSDE:
    """The setting; to sample, its ``prior`` is to be given, for instance `blurred`."""
    basis = DCT(event_shape)
    return DiagonalSDE(HeatDissipation(basis.frequencies, noise), basis)


def blurred(sde: DiagonalSDE, images: Tensor) -> MixtureSameFamily:
    """The paper's prior: an image of the data, drawn at random and blurred until ``T``."""
    alpha, sigma = sde.kernel(torch.tensor([sde.T]))
    one_each = Independent(Normal(alpha * sde.basis(images), sigma), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(images))), one_each)


def geometric(sde: SDE, steps: int) -> Tensor:
    """The paper's grid: every step divides the blur by the same factor."""
    return torch.from_numpy(np.geomspace(sde.T, sde.eps, steps + 1))


def main() -> None:
    """Samples the digits' Gaussian, blurred by the first instant and under the noise."""
    images = digits()
    mean, covariance = moments(images)
    sde = inverse_heat_dissipation(images.shape[1:])
    sde.prior = blurred(sde, images)
    model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
    start = sde.diffuse(sde.basis(images), sde.eps, torch.zeros(()))
    mean, covariance = moments(sde.basis.inverse(start))
    covariance += sde.kernel(torch.tensor([sde.eps])).sigma ** 2 * torch.eye(len(mean))
    solver = ExponentialMultistep(128, grid=geometric)
    report("inverse heat dissipation", model, solver, (mean, covariance), 1024)


if __name__ == "__main__":
    main()
