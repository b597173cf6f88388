"""Errors in closed form: solvers on data with independent Gaussian components.

A deterministic solver is a linear map of each component then. The distribution of its samples, and
with it ``W2^2`` to the data, is known from one of unit noise (`UnitNoise`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.estimator import KernelEstimator
from scoresde.noise import Noise
from scoresde.objectives.parametrization import noiseless, shrinkage
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import Kernel


class IndependentGaussian(KernelEstimator):
    """The exact estimator of independent Gaussian components with mean 0.

    Args:
        sde: How data are diffused.
        variances: Of the data, ``(n,)``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.planning.independent_gaussian import IndependentGaussian
        >>> sde = DiagonalSDE(EDM(), Identity((2,)))
        >>> model = IndependentGaussian(sde, torch.tensor([1.0, 3.0]))
        >>> model.denoise(torch.ones(1, 2), 1.0)  # v / (v + t^2)
        tensor([[0.5000, 0.7500]])
    """

    def __init__(self, sde: SDE, variances: Tensor) -> None:
        super().__init__(sde)
        self.register_buffer("variances", variances)

    variances: Tensor

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """``alpha v / (alpha^2 v + sigma^2) z``."""
        alpha, sigma = kernel
        noisy = sigma.masked_fill(sigma == 0, 1.0)
        variance = self.variances[: z.shape[-1]].to(z)
        return noiseless(sigma, z, shrinkage(alpha, noisy, variance) * z)


class UnitNoise(Noise):
    """Ones for noise: samples of a linear map become its standard deviations."""

    def __call__(self, like: Tensor) -> Tensor:
        """See the class."""
        return torch.ones_like(like)


def expect_data_alone(sde: SDE) -> None:
    """Raises ``ValueError`` if states have velocities, whose noise ends in samples as well."""
    wanted = "an SDE whose states are data alone: for others take a grid by its name"
    expect(sde.copies == 1, "sde", wanted, f"{type(sde).__name__}, of {sde.copies} copies")
