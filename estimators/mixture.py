"""Exact scores: data that are a Gaussian or a mixture of Gaussians.

Under any linear SDE the diffused data are again such a mixture, with means ``A mu_k`` and
covariances ``A C_k A + S`` (``A = diag alpha``, ``S = diag sigma^2``). Denoised mean, score and
density are closed forms: a reference for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from scoresde.checks import expect, finite, instance, numbers, positive, readable
from scoresde.estimator import KernelEstimator
from scoresde.objectives.parametrization import noiseless
from scoresde.precision import Float64Constants, full_precision, precision
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import Kernel


class GaussianMixture(Float64Constants, KernelEstimator):
    """The exact estimator of a Gaussian mixture, under any SDE with a Gaussian kernel.

    ``D(z_t) = sum_k r_k(z_t) [mu_k + C_k A (A C_k A + S)^-1 (z_t - A mu_k)]`` with the
    responsibilities ``r_k`` of the components of ``p_t``.

    Source:
        Conditional means of joint Gaussians; C. M. Bishop, *Pattern Recognition and Machine
        Learning*, section 2.3.

    Args:
        sde: How data are diffused.
        weights: Weight of each component, ``(K,)``; normalised.
        means: ``(K, *event_shape)``.
        covariances: ``(K, n, n)`` over flattened events.

    Raises:
        ValueError: If shapes disagree, numbers are not finite, a weight is not positive or a
            covariance is not symmetric and positive semi-definite.

    Example:
        >>> import torch
        >>> from estimators import GaussianMixture
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> model = GaussianMixture(sde, [0.5, 0.5], [[-1.0, 0], [1, 0]], [torch.eye(2)] * 2)
        >>> model.score(torch.zeros(1, 2), 0.5) + 0.0
        tensor([[0., 0.]])
    """

    example: ClassVar = {
        "weights": [0.3, 0.7],
        "means": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        "covariances": [torch.eye(3)] * 2,
    }
    laws: ClassVar = {"exact": True}
    precise_kernel = True

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(
        self,
        sde: SDE,
        weights: Sequence[float] | Tensor,
        means: Sequence[Any] | Tensor,
        covariances: Sequence[Tensor] | Tensor,
    ) -> None:
        super().__init__(sde)
        basis, n = sde.basis, sde.basis.dim
        w = numbers("weights", weights).to(torch.float64)
        expect(w.ndim == 1, "weights", "one for each component", weights)
        m = _stack("means", means)
        c = _stack("covariances", covariances)
        positive("weights", w)
        shape = (len(w), *basis.event_shape)
        expect(m.shape == shape, "means", f"shape {shape}", tuple(m.shape))
        expect(c.shape == (len(w), n, n), "covariances", f"shape {(len(w), n, n)}", tuple(c.shape))
        finite("means", m)
        finite("covariances", c)
        # 1e-6: covariances may have been rounded to float32
        lowest = torch.linalg.eigvalsh(c).amin()
        expect(
            torch.allclose(c, c.mT, atol=1e-6) and bool(lowest >= -1e-6 * c.abs().amax()),
            "covariances",
            "symmetric positive semi-definite matrices",
            f"lowest eigenvalue {lowest:.3g}",
        )
        unit = torch.eye(n, dtype=torch.float64, device=c.device)
        rotation = basis(unit.reshape(n, *basis.event_shape)).mT
        self.constant("log_weights", (w / w.sum()).log())
        self.constant("means", basis(m))
        self.constant("covariances", rotation @ c @ rotation.mT)

    def marginal(self, t: Tensor, dim: int | None = None) -> MixtureSameFamily:
        """The distribution of ``z_t``, or of its first ``dim`` components.

        Args:
            t: Times with a component axis, ``(*, 1 | blocks | n)``; 0 for the data.
            dim: Length of the prefix.
        """
        n = self.sde.basis.dim if dim is None else dim
        alpha, sigma = (v.expand(*v.shape[:-1], n) for v in self.sde.kernel(t, n))
        weights, mean, factor = self._moments(alpha, sigma**2)
        components = MultivariateNormal(mean, scale_tril=factor)
        return MixtureSameFamily(Categorical(logits=weights.expand(mean.shape[:-1])), components)

    @full_precision
    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        responsibility, pull, alpha, sigma = self._pull(z, kernel)
        means, covariances = self._data(alpha)
        mean = means + torch.einsum("kij,...kj->...ki", covariances, alpha.unsqueeze(-2) * pull)
        return noiseless(sigma, z, (responsibility * mean).sum(-2).to(z))

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``-sum_k r_k(z_t) (A C_k A + S)^-1 (z_t - A mu_k)``."""
        responsibility, pull, _, sigma = self._pull(z, self.kernel(z, t))
        return noiseless(sigma, torch.zeros_like(z), -(responsibility * pull).sum(-2).to(z))

    def _data(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariances of the prefix that a state is."""
        n = like.shape[-1]
        return self.means[:, :n].to(like), self.covariances[:, :n, :n].to(like)

    def _moments(self, alpha: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and Cholesky factors of ``p_t``, ``(*, K, ...)``."""
        means, covariances = self._data(alpha)
        alpha = alpha.unsqueeze(-2)
        signal = alpha.unsqueeze(-1) * covariances * alpha.unsqueeze(-2)
        matrix = signal + torch.diag_embed(variance.unsqueeze(-2))
        # whether it has a factor is asked where nobody has to wait for the answer; elsewhere what
        # is none is no number
        factor, failed = torch.linalg.cholesky_ex(matrix, check_errors=readable(matrix))
        factor = factor.masked_fill((failed != 0)[..., None, None], torch.nan)
        weights = self.log_weights.to(alpha)
        return weights, alpha * means, factor

    def _noise(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``S``, as much at least as a singular ``C`` needs for a Cholesky factor.

        That is some rounding errors of each coefficient's own variance, and made up for where there
        is no noise at all.
        """
        means, covariances = self._data(alpha)
        variances = covariances.diagonal(dim1=-2, dim2=-1).amax(0)
        # means that are no numbers are so in what is answered, not in what is factored
        variances = variances + ((means.amax(0) - means.amin(0)) ** 2).nan_to_num()
        number = torch.finfo(alpha.dtype)
        least = _ROUNDING * alpha.shape[-1] * number.eps * alpha**2 * variances
        return torch.maximum(sigma**2, least.clamp(min=number.tiny**0.5))

    def _pull(self, z: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Responsibilities ``(*, K, 1)``, ``(A C_k A + S)^-1 (z - A mu_k)``, ``A`` and ``S^1/2``.

        In as many digits as there are: a matrix that is nearly singular, as at small times, takes
        those of float32.
        """
        alpha, sigma = (
            v.to(precision(z.device)).expand(*v.shape[:-1], z.shape[-1]) for v in kernel
        )
        if alpha.shape[:-1].numel() == 1:
            # one time for all: one factor per component, samples are its right-hand sides
            alpha, sigma = (v.reshape(v.shape[-1]) for v in (alpha, sigma))
        log_weights, mean, factor = self._moments(alpha, self._noise(alpha, sigma))
        gap = z.to(mean).unsqueeze(-2) - mean
        if alpha.ndim == 1:
            columns = gap.reshape(z.shape[:-1].numel(), *gap.shape[-2:]).permute(1, 2, 0)
            white = torch.linalg.solve_triangular(factor, columns, upper=False)
            pull = torch.linalg.solve_triangular(factor.mT, white, upper=True)
            distance = (white**2).sum(-2).mT.reshape(gap.shape[:-1])
            pull = pull.permute(2, 0, 1).reshape(gap.shape)
        else:
            white = torch.linalg.solve_triangular(factor, gap.unsqueeze(-1), upper=False)
            pull = torch.linalg.solve_triangular(factor.mT, white, upper=True).squeeze(-1)
            distance = (white.squeeze(-1) ** 2).sum(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        responsibility = (log_weights - log_det - distance / 2).softmax(-1)
        return responsibility.unsqueeze(-1), pull, alpha, sigma


class Gaussian(GaussianMixture):
    """The exact estimator of Gaussian data ``N(mean, covariance)``: a mixture of one.

    ``D(z_t) = m + C A (A C A + S)^-1 (z_t - A m)``.

    Args:
        sde: How data are diffused.
        mean: ``(*event_shape)``.
        covariance: ``(n, n)`` over flattened events.

    Raises:
        ValueError: As for `GaussianMixture`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> model.denoise(torch.tensor([[2.0]]), 1.0), model.score(torch.tensor([[2.0]]), 1.0)
        (tensor([[1.]]), tensor([[-1.]]))
    """

    example: ClassVar = {"mean": [1.0, 0.0, -1.0], "covariance": torch.eye(3) + 0.3}

    def __init__(self, sde: SDE, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(sde, [1.0], _stack("mean", [mean]), _stack("covariance", [covariance]))


_ROUNDING = 64
"""Rounding errors for each component: measured, 4 leave a factor to all of 16000 covariances of
half their rank at most, of 2 to 64 components; 16 times as many, as larger ones are not
measured."""


def _stack(name: str, values: Sequence[Any] | Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        instance(name, values, Sequence)
        expect(len(values) > 0, name, "at least one", "none")
        tensors = [numbers(name, v) for v in values]
        shapes = {tuple(v.shape) for v in tensors}
        expect(len(shapes) == 1, name, "one shape for all", shapes)
        values = torch.stack(tensors)
    return numbers(name, values).to(torch.float64)
