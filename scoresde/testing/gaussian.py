"""The estimator that solvers are tried on: a score that is known, of data whose distribution is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde.estimator import KernelEstimator
from scoresde.precision import Float64Constants, full_precision, precision
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import Kernel


class GaussianData(Float64Constants, KernelEstimator):
    """The score of ``z_0 ~ N(m, C)``, under any SDE with a kernel.

    ``D(z_t) = m + C A (A C A + S)^-1 (z_t - A m)``, with ``A = diag alpha``, ``S = diag sigma^2``.
    Computed in float64, whatever the states are in.

    Args:
        sde: How data are diffused.
        mean: Of the coefficients, ``(n,)``.
        covariance: Of the coefficients, ``(n, n)``; positive definite, as then clean components
            divide by nothing.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.testing.gaussian import GaussianData
        >>> model = GaussianData(DiagonalSDE(EDM(), Identity((1,))), [0.0], [[1.0]])
        >>> model.denoise(torch.tensor([[2.0]]), 1.0)
        tensor([[1.]])
    """

    precise_kernel = True

    mean: Tensor
    covariance: Tensor

    def __init__(self, sde: SDE, mean: Any, covariance: Any) -> None:
        super().__init__(sde)
        self.constant("mean", torch.as_tensor(mean))
        self.constant("covariance", torch.as_tensor(covariance))

    def marginal(self, t: float) -> MultivariateNormal:
        """The distribution of the diffused state at a time, ``(n,)``."""
        n, time = self.sde.basis.dim, torch.tensor([t], dtype=torch.float64)
        alpha, sigma = _expanded(self.sde.kernel(time, n), n)
        return MultivariateNormal(alpha * self.mean, self._covariance(alpha, sigma))

    @full_precision
    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        n, wide = z.shape[-1], precision(z.device)
        alpha, sigma = (v.to(wide) for v in _expanded(kernel, n))
        mean, covariance = self.mean[:n], self.covariance[:n, :n]
        gap = (z.to(wide) - alpha * mean).unsqueeze(-1)
        pull = alpha * torch.linalg.solve(self._covariance(alpha, sigma), gap).squeeze(-1)
        denoised: Tensor = mean + pull @ covariance
        return denoised

    def _covariance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        n = alpha.shape[-1]
        signal = alpha.unsqueeze(-1) * self.covariance[:n, :n] * alpha.unsqueeze(-2)
        return signal + torch.diag_embed(sigma**2)


def _expanded(kernel: Kernel, n: int) -> list[Tensor]:
    return [v.expand(*v.shape[:-1], n) for v in kernel]
