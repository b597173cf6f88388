"""The smallest estimator that learns: a mean and a variance per component."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde import SDE
from scoresde.estimator import KernelEstimator
from scoresde.noise import Generators, Noise
from scoresde.objectives.time_distribution import TimeDistribution
from scoresde.sampling.grid import log_snr
from scoresde.sdes.sde_coefficients import Kernel


class IndependentGaussian(KernelEstimator):
    """Data with independent Gaussian components, whose moments are learned.

    For ``z_0 ~ N(m, v)`` the denoised mean is ``m + alpha v (z - alpha m)/(alpha^2 v + sigma^2)``.
    For other data this is the best denoiser that is affine in each component.

    Args:
        sde: How data are diffused; it must know its kernel.
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde)
        self.mean = nn.Parameter(torch.zeros(sde.basis.dim))
        self.log_std = nn.Parameter(torch.zeros(sde.basis.dim))
        self.draw_times = TimeDistribution(log_snr(sde, 256))

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        dim = z.shape[-1]
        alpha, sigma = kernel
        mean, variance = self.mean[:dim].to(z), (2 * self.log_std[:dim].to(z)).exp()
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (z - alpha * mean)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """Squared error in the noise, at random times."""
        noise, z = Noise.of(generator), self.sde.basis(x)
        t, _ = self.draw_times(torch.special.ndtr(noise(z[:, :1])).squeeze(-1))
        xi = noise(z)
        alpha, sigma = (v.to(z) for v in self.sde.kernel(t.unsqueeze(-1)))
        return (self.noise(alpha * z + sigma * xi, t) - xi).square().mean()
