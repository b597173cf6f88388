"""Posteriors given several observations, from posteriors given one each.

Densities of observations that are independent of each other given ``x`` multiply:

    p(x | y_1 ... y_n) = p(x)^(1 - n) prod_j p(x | y_j),

and so do posteriors of clean states, ``p(z_0 | z_t, y_1 ... y_n)``, as the kernel is the same in
all of them. Their means and covariances, ``D_j`` and ``C_j`` for one observation, ``D_0`` and
``C_0`` for none, give the mean given all of them: to second order in general, exactly for
Gaussians.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.checks import expect, finite, instance
from scoresde.conditioning.stacked import Stacked
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator, kernels
from scoresde.internals.derivatives import batched, vjp
from scoresde.objectives.parametrization import FAINT, noiseless
from scoresde.precision import full_precision, shallow_copy
from scoresde.sdes.sde_coefficients import Kernel, SDECoefficients
from scoresde.selection import broadcast


class Product(NamedTuple):
    """A product of diffused densities at some states.

    Attributes:
        mean: ``D = D_0 + sum_j (D_j - D_0)``, ``(*batch, m)``, from which its score follows.
        growth: Derivative of its log-density by the logarithm of ``sigma_i/alpha`` of every
            component, at the same ``z/alpha``: ``(*batch, m)``. By the Fokker-Planck equation

                dD_i/du_i - 1 + sum_j b_j (D_j - u)_i^2 alpha^2/sigma^2,

            with ``u = z/alpha`` and powers ``b_j`` of 1, and ``1 - n`` of the prior.
        jacobian: ``dD/du``, ``(*batch, m, m)``.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.conditioning import Composition
        >>> sde, one = DiagonalSDE(EDM(), Identity((1,))), torch.eye(1)
        >>> seen = Gaussian(sde, torch.zeros(1), one)
        >>> product = Composition([seen], seen).product(torch.zeros(1, 1), 1.0)
        >>> product.growth  # (u^2 - 1) / 2 for N(0, 1 + s^2), at u = 0 and s = 1
        tensor([[-0.5000]])
    """

    mean: Tensor
    growth: Tensor
    jacobian: Tensor

    @property
    def remainder(self) -> Tensor:
        """Log-density at no noise less that at this, ``(*batch)``: ``-sum_i growth_i / 2``.

        To first order in the noise's variance.
        """
        return self.growth.sum(-1) / -2


class Composition(PlannedEstimator):
    """The posterior of ``n`` observations, from estimators that know one each.

        D = D_0 + L^-1 sum_j C_j^-1 (D_j - D_0),    L = sum_j C_j^-1 + (1 - n) C_0^-1

    which is ``score = L^-1 [sum_j C_j^-1 s_j + (1 - n) C_0^-1 s_0]`` (Linhart et al. 2024, arXiv
    2404.07593), with denoising covariances ``C_j(z_t)``:

    - from the estimators' Jacobians, ``C = (dD/dz) sigma^2/alpha``: Tweedie's second-order formula,
      true wherever the state is;
    - or, with ``covariances``, those that Gaussians with the covariances of the data would have,
      ``C_j = (S_j^-1 + alpha^2/sigma^2)^-1``: cheaper by a factor of the number of components.

    Both are exact for Gaussians. Where an estimator has ``C_j > C_0`` in some direction, as between
    two modes, ``C_0`` is taken instead. As noise goes to 0, all come to
    ``score = sum_j s_j + (1 - n) s_0``, whatever the data: the last steps, or a Langevin corrector
    there, make samples those of the product.

    Args:
        posteriors: One estimator for each observation; or one of a batch ``(*batch, n)`` of them.
        prior: Estimator of ``x`` without an observation, under an SDE with the same kernel.
        covariances: Of the data, ``(*batch, n, m, m)`` of the posteriors, and ``(m, m)`` of the
            prior, in coefficients; by Jacobians if None.

    Raises:
        TypeError: If one is no estimator.
        ValueError: If there is no observation, or shapes or states do not fit each other.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.conditioning import Composition
        >>> sde, one = DiagonalSDE(VP(), Identity((1,))), torch.eye(1)
        >>> seen = [Gaussian(sde, torch.tensor([y]), one / 2) for y in (0.5, 1.0, 0.0)]
        >>> both = Composition(seen, Gaussian(sde, torch.zeros(1), one))
        >>> exact = Gaussian(sde, torch.tensor([3 / 4]), one / 4)  # of noise 1: sum y / 4
        >>> z = torch.tensor([[-1.0], [2.0]])
        >>> torch.allclose(both.denoise(z, 0.4), exact.denoise(z, 0.4))
        True
    """

    references = "linhart2024 geffner2023"

    def __init__(
        self,
        posteriors: Sequence[ScoreEstimator] | ScoreEstimator,
        prior: ScoreEstimator,
        covariances: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        instance("prior", prior, ScoreEstimator)
        super().__init__(prior.sde)
        each: ScoreEstimator | Stacked
        each = posteriors if isinstance(posteriors, ScoreEstimator) else Stacked(posteriors)
        wanted = "a batch (*batch, n) of n observations"
        expect(len(each.batch_shape) > 0, "posteriors", wanted, tuple(each.batch_shape))
        n = prior.sde.basis.dim
        expect(each.sde.basis.dim == n, "posteriors", f"states of {n}", each.sde.basis.dim)
        self.posteriors, self.prior, self.count = each, prior, each.batch_shape[-1]
        expect(self.count > 0, "posteriors", "at least one observation", "none")
        self.precisions: Tensor | None
        self.prior_precision: Tensor | None
        precisions = [None, None] if covariances is None else map(_precision, covariances)
        for name, value in zip(("precisions", "prior_precision"), precisions, strict=True):
            self.register_buffer(name, value)
        if self.precisions is not None and self.prior_precision is not None:
            wanted = f"shape (*batch, {self.count}, {n}, {n}), and {(n, n)} of the prior"
            shapes = tuple(self.precisions.shape), tuple(self.prior_precision.shape)
            fits = shapes[0][-3:] == (self.count, n, n) and shapes[1] == (n, n)
            expect(fits, "covariances", wanted, shapes)

    @property
    def batch_shape(self) -> torch.Size:
        """The posteriors' batch, without the axis of observations."""
        shape = self.posteriors.batch_shape
        # of some samples, observations of all of them are in one row
        return shape[:-1] if shape[-1] == self.count else torch.Size([shape[0] // self.count])

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The composition of some samples' observations."""
        if not self.batch_shape:
            return self
        own = torch.arange(self.batch_shape.numel(), device=rows.device).reshape(self.batch_shape)
        owner = own.expand(*batch).flatten()[rows]
        inner = owner.unsqueeze(-1) * self.count + torch.arange(self.count, device=rows.device)
        chosen: dict[str, object] = {
            "posteriors": self.posteriors.select(inner.flatten(), self.posteriors.batch_shape)
        }
        if self.precisions is not None:
            of_each = self.precisions.expand(*self.batch_shape, *self.precisions.shape[-3:])
            chosen["precisions"] = of_each.flatten(0, -4)[owner]
        return shallow_copy(self, **chosen)

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See the class."""
        return (partial(self._composed, parts) for parts in self._parts(at, condition))

    @full_precision
    def _composed(self, parts: _Parts, z: Tensor) -> Tensor:
        z = self._broadcast(z)
        alpha, sigma = parts.kernel
        noise = alpha, sigma**2 / alpha.clamp(min=FAINT)
        known = self._moments(parts.prior, self.prior_precision, z, *noise)
        many = self._copies(z)
        each = self._moments(parts.posteriors, self.precisions, many, *map(_between, noise))
        return noiseless(sigma, z, _together(*known, *each))

    @full_precision
    def product(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Product:
        """The product ``p_t(z)^(1 - n) prod_j p_t(z | y_j)`` at a time, without covariances.

        These products are no diffusion of their limit at noise 0, but a path to it: `Particles`.

        Args:
            z: States ``(*batch, m)``, where there is noise.
            t: Their time.
            condition: As of `denoise`.
        """
        parts, z = self._parts_at(z, t, condition), self._broadcast(z)
        alpha, sigma = parts.kernel

        def both(z: Tensor) -> Tensor:
            none, each = parts.prior(z), parts.posteriors(self._copies(z))
            far = (alpha * none - z).square()
            farther = (_between(alpha) * each - self._copies(z)).square() - far.unsqueeze(-2)
            mean = _summed(none, each)
            return torch.cat([mean, (far + farther.sum(-2)) / sigma**2], -1)

        values, pull_back = vjp(both, z, self.parameters())
        mean, square = values.tensor_split(2, -1)
        m = z.shape[-1]
        unit = torch.eye(m, 2 * m, dtype=z.dtype, device=z.device)
        rows = batched(lambda v: pull_back(v.expand_as(values)), unit)
        jacobian = rows.movedim(0, -2) * alpha.unsqueeze(-2)
        return Product(mean, square - 1 + jacobian.diagonal(dim1=-2, dim2=-1), jacobian)

    @full_precision
    def summed(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """The mean of `product` alone."""
        parts, z = self._parts_at(z, t, condition), self._broadcast(z)
        return _summed(parts.prior(z), parts.posteriors(self._copies(z)))

    def _parts_at(self, z: Tensor, t: Tensor | float, condition: Any) -> _Parts:
        (parts,) = self._parts(self.sde.read(t, z), condition)
        return parts

    def _parts(self, at: SDECoefficients, condition: Any) -> Iterator[_Parts]:
        """`_Parts` at each of several times."""
        batch = self._broadcast(at.like).shape[:-1]
        inside = (*batch[: len(batch) - len(self.batch_shape)], *self.posteriors.batch_shape)
        like = at.like.new_empty(()).expand(*inside, at.like.shape[-1])
        each = at.part(self._of_each(at.t, len(batch)), like)

        def posteriors(denoiser: Denoiser, many: Tensor) -> Tensor:
            return denoiser(many.reshape(like.shape)).reshape(many.shape)

        given = map(partial(partial, posteriors), self.posteriors.denoisers(each, condition))
        return map(_Parts, kernels(at), self.prior.denoisers(at), given)

    def _of_each(self, t: Tensor, axes: int) -> Any:
        """An index of times ``(k, *, 1 | blocks | n)`` that says them of every observation."""
        if t.ndim == 2:  # of all samples
            return slice(None)
        own, whole = t.shape[1:-1], slice(None)
        first = (whole, *[None] * (axes - len(own)), *[whole] * (len(own) - 1))
        if self.posteriors.batch_shape[-1] == self.count:
            return (*first, whole, None)
        repeats = 1 if own[-1] == 1 else self.count
        return (*first, torch.arange(own[-1], device="cpu").repeat_interleave(repeats))

    def _broadcast(self, z: Tensor) -> Tensor:
        """States of the whole batch."""
        return z.expand(*broadcast("z", z.shape[:-1], self.batch_shape), z.shape[-1])

    def _copies(self, z: Tensor) -> Tensor:
        """``n`` of every state, ``(*batch, n, m)``."""
        return z.unsqueeze(-2).expand(*z.shape[:-1], self.count, z.shape[-1])

    def _moments(
        self,
        denoise: Denoiser,
        precision: Tensor | None,
        z: Tensor,
        alpha: Tensor,
        tweedie: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the clean state; ``tweedie`` is ``sigma^2/alpha``."""
        if precision is not None:
            kernel = (alpha / tweedie.clamp(min=_TINY)).expand(*alpha.shape[:-1], z.shape[-1])
            return denoise(z), torch.linalg.inv(precision.to(z) + torch.diag_embed(kernel))
        mean, pull_back = vjp(denoise, z, self.parameters())
        unit = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        rows = batched(lambda v: pull_back(v.expand_as(mean)), unit)
        covariance = rows.movedim(0, -2) * tweedie.unsqueeze(-2)
        return mean, (covariance + covariance.mT) / 2


class _Parts(NamedTuple):
    """Kernel and denoisers at a time, of posteriors for states ``(*batch, n, m)``."""

    kernel: Kernel
    prior: Denoiser
    posteriors: Denoiser


_TINY = 1e-30
"""What noise is at least, where it is divided by."""

_LEAST = 1e-7
"""The least variance, in units of the prior's, that a learned Jacobian may say an observation
leaves: beyond that float32 has no digits of it, and a network's may be negative."""


def _together(prior: Tensor, covariance: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """A product of Gaussians, over all but one power of the prior's: its mean.

    In coordinates in which the prior's covariance is 1, so that those of posteriors are between 0
    and 1.
    between 0 and 1 of it.

    Args:
        prior: Mean without observations, ``(*batch, m)``.
        covariance: ``(*batch, m, m)``.
        means: With one each, ``(*batch, n, m)``.
        covariances: ``(*batch, n, m, m)``.
    """
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=_TINY).sqrt()
    unit = torch.eye(prior.shape[-1], dtype=prior.dtype, device=prior.device)
    correlation = covariance / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    jitter = 16 * torch.finfo(prior.dtype).eps * unit
    factor = torch.linalg.cholesky_ex(correlation + jitter).L * scale.unsqueeze(-1)
    each = factor.unsqueeze(-3)

    def whiten(matrix: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(each, matrix, upper=False)
        return white

    left = whiten(whiten(covariances).mT)
    information = _inverse((left + left.mT) / 2, unit)
    moved_by = whiten((means - prior.unsqueeze(-2)).unsqueeze(-1))
    total = unit + (information - unit).sum(-3)
    pull = torch.linalg.solve(total, (information @ moved_by).sum(-3))
    mean: Tensor = prior + (factor @ pull).squeeze(-1)
    return mean


def _inverse(left: Tensor, unit: Tensor) -> Tensor:
    """Inverses of covariances, which are at most the prior's unit variance."""
    with torch.no_grad():  # of equal eigenvalues, vectors have no derivatives
        values, vectors = torch.linalg.eigh(left)
        usual = ((values > _LEAST) & (values <= 1)).all(-1)[..., None, None]
        bounded = vectors / values.clamp(_LEAST, 1.0).unsqueeze(-2) @ vectors.mT
    inverse: Tensor = torch.linalg.inv(torch.where(usual, left, unit))
    return torch.where(usual, inverse, bounded)


def _summed(prior: Tensor, means: Tensor) -> Tensor:
    return prior + (means - prior.unsqueeze(-2)).sum(-2)


def _between(value: Tensor) -> Tensor:
    """Coefficients of states for ``n`` copies of each: ``(*, m)`` to ``(*, 1, m)``."""
    return value if value.ndim == 1 else value.unsqueeze(-2)


def _precision(covariance: Tensor) -> Tensor:
    finite("covariances", covariance)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    bad = int((failed != 0).sum())
    expect(bad == 0, "covariances", "positive definite matrices", f"{bad} that are not")
    return torch.cholesky_inverse(factor).contiguous()  # as files want it
