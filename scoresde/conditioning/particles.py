"""Samples of products of densities: weighted particles on a path of decreasing noise.

Scores of diffused densities that are multiplied add up, but to the score of no diffusion: a solver
that followed it would end elsewhere. At every noise level the sum is the score of a product,
though, whose change with the noise is known (`Product.growth`). So particles are moved along,
weighted by that change, resampled, and moved on by steps that keep the product: a sequential
Monte Carlo sampler (Del Moral et al. 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect, instance, real, validator, whole
from scoresde.conditioning.composition import Composition, Product
from scoresde.noise import Generators, Noise
from scoresde.precision import cast_like
from scoresde.sampling.batches import sample_shape_of, samples_like
from scoresde.sampling.grid import log_snr


@attrs.frozen
class Particles:
    """Draws samples of a product of any densities.

    Particles begin as the Gaussian that the product is under much noise. From one noise level
    ``s`` to the next, lower one

    1. they move, so that the moments of the product would follow it: velocities of means and
       variances are covariances with its growth;
    2. they are weighted by its density, ``log w = -int growth ds/s + int score du``, by the
       trapezoidal rule along their way, and as many are drawn again (systematic resampling);
    3. each makes some Metropolis-adjusted Langevin steps in their common covariance, accepted by
       the integral of the score (Simpson's rule), of a length that has the best share of them
       accepted (Roberts and Rosenthal 1998), and the integral known.

    Under little noise growth is linear in its variance, so that ``log w = -growth/2`` to the end,
    up to terms of the fourth order. The path ends where these weights hardly differ: as early as
    possible, since errors of learned scores grow as noise decreases.

    Levels are as far apart as weights allow. Samples are exact, for the estimators' scores, as
    ``count`` grows; they come from one population, and so depend on each other. Per level every
    estimator is asked twice for its Jacobian, and twice for its mean for each of ``moves``.

    Source:
        Del Moral et al. 2006, *Sequential Monte Carlo samplers*; of products of diffused densities,
        Du et al. 2023 (arXiv 2302.11552).

    Args:
        count: Least number of particles; as many as samples are asked for if that is more.
        moves: Langevin steps at every level.
        log_weight_std: Standard deviation of ``log w`` per level that is aimed at.
        final_log_weight_std: Of the last weights, below which the path ends.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.conditioning import Composition, Particles
        >>> sde, one = DiagonalSDE(EDM(), Identity((1,))), torch.eye(1)
        >>> seen = [Gaussian(sde, torch.tensor([y]), one / 2) for y in (0.5, 1.0, 0.0)]
        >>> product = Composition(seen, Gaussian(sde, torch.zeros(1), one))  # N(3/4, 1/4)
        >>> x = Particles().sample(product, (4000,), generator=torch.Generator().manual_seed(0))
        >>> bool(abs(x.mean() - 3 / 4) < 0.05), bool(abs(x.std() - 1 / 2) < 0.05)
        (True, True)
    """

    references = "moral2006 du2023 roberts1998"

    count: int = attrs.field(default=1000, validator=validator(whole, 2))
    moves: int = attrs.field(default=2, kw_only=True, validator=validator(whole, 1))
    log_weight_std: float = attrs.field(
        default=0.5, kw_only=True, validator=validator(real, 1e-3, 10)
    )
    final_log_weight_std: float = attrs.field(
        default=0.1, kw_only=True, validator=validator(real, 0, 0.5)
    )

    def sample(
        self,
        model: Composition,
        sample_shape: Sequence[int] = (),
        *,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        inside: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Events, ``(*sample_shape, *event_shape)``; as `scoresde.Solver.sample`.

        Args:
            model: Whose `Composition.product` is sampled.
            sample_shape: Ends with the model's ``batch_shape``.
            generator: One for all.
            dtype: Of the samples; the model's parameters' if None.
            inside: See `draw`.
        """
        shape, noise = sample_shape_of(model, sample_shape), Noise.of(generator)
        wanted = shape[: len(shape) - len(model.batch_shape)].numel()
        drawn = self.draw(model, wanted, noise, dtype=dtype, inside=inside).clean[:wanted]
        events: Tensor = model.sde.basis.inverse(drawn.reshape(*shape, drawn.shape[-1]))
        return events

    @torch.no_grad()
    def draw(
        self,
        model: Composition,
        count: int,
        generator: Generators = None,
        *,
        dtype: torch.dtype | None = None,
        inside: Callable[[Tensor], Tensor] | None = None,
    ) -> Population:
        """A population of ``count`` at least, in random order.

        Args:
            model: Whose `Composition.product` is sampled.
            count: How many are wanted.
            generator: One for all.
            dtype: Of the samples; the model's parameters' if None.
            inside: Whether events ``(N, *batch_shape, *event_shape)`` are allowed: others are
                resampled from those that are. All, if None.

        Raises:
            TypeError: If the model is no composition.
            ValueError: If no particle has a weight: denoised means are not finite, or none is
                inside.
        """
        instance("model", model, Composition)
        noise, path = Noise.of(generator), _Path(model, dtype)
        most = max(self.count, count)
        cloud = path.start(most + most % 2, noise)  # of two halves
        while True:
            for _ in range(self.moves):
                cloud = path.langevin(cloud, noise)
            product = path.product(cloud.u, cloud.level)
            final = product.remainder
            if cloud.level == _LEVELS or float(final.std(0).amax()) < self.final_log_weight_std:
                break
            cloud = path.lowered(cloud, product, self.log_weight_std).resampled(noise)
        cloud = cloud._replace(log_weight=final.nan_to_num(nan=-torch.inf)).resampled(noise)
        # that of the whole product: what is not inside counts
        evidence, batch = cloud.log_evidence.reshape(model.batch_shape), model.batch_shape
        if inside is not None:
            kept = inside(model.sde.basis.inverse(cloud.u.reshape(len(cloud.u), *batch, -1)))
            kept = kept.reshape(cloud.log_weight.shape)
            wanted = "a product of which there is some inside"
            got = "none of it: single densities that reach outside are divided by next to nothing"
            expect(bool(kept.any(0).all()), "model", wanted, got)
            cloud = cloud._replace(log_weight=cloud.log_weight.masked_fill(~kept, -torch.inf))
            cloud = cloud.resampled(noise)
        # resampled copies lie side by side, of which the first would be taken
        order = noise.uniform(cloud.u[:, 0, :1]).squeeze(-1).argsort()
        return Population(cloud.u[order].reshape(len(order), *batch, -1), evidence)


class Population(NamedTuple):
    """The result of `Particles`.

    Attributes:
        clean: Coefficients of samples, ``(N, *batch_shape, m)``.
        log_evidence: Of the product, the logarithm of its integral, ``(*batch_shape)``.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.conditioning import Composition, Particles
        >>> sde, one = DiagonalSDE(EDM(), Identity((1,))), torch.eye(1)
        >>> seen = [Gaussian(sde, torch.zeros(1), one / 2)] * 2
        >>> product = Composition(seen, Gaussian(sde, torch.zeros(1), one))
        >>> _ = torch.manual_seed(0)
        >>> drawn = Particles().draw(product, 1000)  # N(0, 1/2)^2 / N(0, 1): N(0, 1/3) 2/3^(1/2)
        >>> bool((drawn.log_evidence - torch.tensor(4 / 3).log() / 2).abs() < 0.1)
        True
    """

    clean: Tensor
    log_evidence: Tensor


_LEVELS = 500
"""Noise levels among which those that are used are chosen, a hundredth of a decade apart or two."""

_FARTHEST = 0.5
"""Most at once, of the logarithm of the noise: beyond that growth is no straight line."""

_ROWS = 2**16
"""How many states of single observations estimators are asked about at a time."""

_NEWTON = 8
"""Steps to the mode under much noise, where all is nearly Gaussian."""

_ACCEPTED, _SLOWLY = 0.574, 0.5
"""Of Langevin steps: the best share in many dimensions (Roberts and Rosenthal 1998), and how much
of what is missing to it changes the logarithm of their length."""

_ROUGH, _SELDOM = 0.2, 0.05
"""How far two rules for the logarithm of a ratio of densities may be apart for a step to be made,
and how often they may be farther: else steps are too long for what is narrow."""

_LONGEST = 1.5
"""Such a step, in units of ``m^(-1/6)`` deviations: in few dimensions all may be accepted."""

_ROUNDING = 16
"""Rounding errors of a variance: measured, 4 leave a factor to all of 12000 singular correlations
of 2 to 20 components."""

_TINY = 1e-30
"""What a variance is at least."""


class _Cloud(NamedTuple):
    """Particles ``u = z/alpha`` of ``b`` products, and what is known of the products there."""

    u: Tensor
    """``(N, b, m)``."""
    score: Tensor
    """``(N, b, m)``, by ``u``."""
    log_weight: Tensor
    """``(N, b)``."""
    log_evidence: Tensor
    """``(b,)``."""
    length: Tensor
    """Of Langevin steps, ``(b, 1)``."""
    level: int

    def resampled(self, noise: Noise) -> _Cloud:
        """A systematic resample, with equal weights."""
        weight, count = self.log_weight.softmax(0), len(self.log_weight)
        # in float32 shares of thousands do not add up
        edges = weight.double().cumsum(0).mT.contiguous()
        ranks = torch.arange(count, device=edges.device).unsqueeze(-1)
        at = (ranks + noise.uniform(self.log_weight[:1]).double()) / count
        chosen = torch.searchsorted(edges, at.mT.contiguous()).mT.clamp(max=count - 1)
        index = chosen.unsqueeze(-1).expand_as(self.u)
        gained = self.log_weight.logsumexp(0) - math.log(count)
        return self._replace(
            u=self.u.gather(0, index),
            score=self.score.gather(0, index),
            log_weight=torch.zeros_like(self.log_weight),
            log_evidence=self.log_evidence + gained,
        )


class _Path:
    """The products of a composition at all noise levels, as functions of ``u = z/alpha``."""

    def __init__(self, model: Composition, dtype: torch.dtype | None = None) -> None:
        self.model, self.like = model, samples_like(model, dtype)
        self.times = log_snr(model.sde, _LEVELS)
        kernel = model.sde.kernel(self.times.unsqueeze(-1), model.sde.basis.dim)
        self.alpha, self.noise = kernel.alpha, kernel.sigma / kernel.alpha
        wanted = "noise on all components, at all times"
        expect(bool((self.noise > 0).all()), "model", wanted, "some without")

    def start(self, count: int, noise: Noise) -> _Cloud:
        """Particles under the most noise, where the product is nearly a Gaussian."""
        b, m = self.model.batch_shape.numel(), self.model.sde.basis.dim
        mode = self.like.new_zeros(1, b, m)
        variance = self._noise(0) ** 2
        for _ in range(_NEWTON + 1):
            score, _, jacobian = self.product(mode, 0)
            unit = torch.eye(m, dtype=mode.dtype, device=mode.device)
            precision = (unit - jacobian) / variance.unsqueeze(-1)
            last, mode = mode, mode + torch.linalg.solve(precision, score.unsqueeze(-1))[..., 0]
        values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
        values = values.clamp(min=1 / variance.amax() / 4)  # as wide as there is noise, or twice
        xi = noise(last.expand(count, -1, -1).contiguous())
        u = last + (vectors @ (xi * values.rsqrt()).unsqueeze(-1)).squeeze(-1)
        # as elsewhere: all that is diffused ends as the SDE's prior
        density = -(last**2 / variance + variance.log()).expand_as(last).sum(-1)
        evidence = ((density - values.log().sum(-1)) / 2).squeeze(0)
        log_weight, length = u.new_zeros(count, b), u.new_ones(b, 1)
        return _Cloud(u, self._score(u, 0), log_weight, evidence, length, 0)

    def langevin(self, cloud: _Cloud, noise: Noise) -> _Cloud:
        """A Metropolis-adjusted Langevin step of every particle, at the same level."""
        u, m = cloud.u, cloud.u.shape[-1]
        centred = u - u.mean(0)
        covariance = torch.einsum("kbi,kbj->bij", centred, centred) / len(u)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        jitter = torch.diag_embed(_ROUNDING * torch.finfo(u.dtype).eps * variance + _TINY)
        root = torch.linalg.cholesky_ex(covariance + jitter).L
        # acceptance does not depend on the dimension (Roberts and Rosenthal 1998)
        step, xi = cloud.length * m ** (-1 / 6), noise(u)
        # moves and scores in units of the covariance's root
        start = _mapped(root.mT, cloud.score)
        move = step * (xi + step / 2 * start)
        proposed = u + _mapped(root, move)
        score = self._score(proposed, cloud.level)
        ends = (start + _mapped(root.mT, score)) / 2
        middle = _mapped(root.mT, self._score(u + _mapped(root, move / 2), cloud.level))
        # by Simpson's rule, and how far the trapezoidal one is from it
        log_ratio = ((ends + 2 * middle) / 3 * move).sum(-1)
        rough = ~((2 / 3 * (ends - middle) * move).sum(-1).abs() < _ROUGH)
        log_chance = log_ratio + (xi.square() - (xi + step * ends).square()).sum(-1) / 2
        chance = log_chance.clamp(max=0).exp().masked_fill(rough | log_chance.isnan(), 0)
        accepted = (noise.uniform(chance) < chance).unsqueeze(-1)
        surplus = torch.minimum(chance.mean(0) - _ACCEPTED, _SELDOM - rough.to(u).mean(0))
        return cloud._replace(
            u=torch.where(accepted, proposed, u),
            score=torch.where(accepted, score, cloud.score),
            length=(cloud.length * (_SLOWLY * surplus).exp().unsqueeze(-1)).clamp(max=_LONGEST),
        )

    def lowered(self, cloud: _Cloud, product: Product, log_weight_std: float) -> _Cloud:
        """Particles at a lower level, and their weights, with the product where they are."""
        u, now = cloud.u, self._noise(cloud.level)
        score, growth, _ = product
        total = growth.sum(-1, keepdim=True)
        centre, surplus = _others(u), total - _others(total)
        centred = u - centre
        drift = _others(surplus * centred)
        widening = _others(surplus * centred**2) / _others(centred**2).clamp(min=_TINY)
        velocity = drift + widening / 2 * centred
        rate = growth + score * velocity
        most = min(_FARTHEST, log_weight_std / max(float(rate.sum(-1).std(0).amax()), _TINY))
        level = self._below(cloud.level, most)
        lower = self._noise(level)
        h = (now / lower).log()
        wider = -h.mean() * widening / 2
        there = u - h.mean() * drift + wider.expm1() * centred
        new_score, new_growth, _ = self.product(there, level)
        # along a way that is straight in the logarithm of the noise, as growth is
        new_velocity = drift + widening / 2 * wider.exp() * centred
        work = score * velocity + new_score * new_velocity
        gain = -(h * (growth + new_growth) + h.mean() * work) / 2 + wider
        log_weight = gain.sum(-1).nan_to_num(nan=-torch.inf)
        left = bool(log_weight.isfinite().any(0).all())
        expect(left, "model", "finite denoised means", f"none at noise {float(lower.mean()):.3g}")
        return cloud._replace(u=there, score=new_score, log_weight=log_weight, level=level)

    def _below(self, level: int, most: float) -> int:
        """The last level of which the noise is lower by a factor of ``exp(most)`` at most."""
        depth = (self.noise[level] / self.noise[level + 1 :]).log().mean(-1)
        return level + max(1, int((depth <= most).sum()))

    def _noise(self, level: int) -> Tensor:
        return cast_like(self.noise[level], self.like)

    def _score(self, u: Tensor, level: int) -> Tensor:
        """The score by ``u``, ``(N, b, m)``."""
        means = [self._mean(part, level) for part in u.split(self._rows(1))]
        score: Tensor = (torch.cat(means) - u) / self._noise(level) ** 2
        return score

    def _mean(self, u: Tensor, level: int) -> Tensor:
        return self.model.summed(self._states(u, level), self._time(level)).reshape(u.shape)

    def product(self, u: Tensor, level: int) -> Product:
        """As of `Composition.product`, but with the score by ``u`` in the place of the mean."""
        parts = [
            self.model.product(self._states(part, level), self._time(level))
            for part in u.split(self._rows(u.shape[-1]))
        ]
        mean, growth, jacobian = (torch.cat(values) for values in zip(*parts, strict=True))
        score = (mean.reshape(u.shape) - u) / self._noise(level) ** 2
        m = u.shape[-1]
        return Product(score, growth.reshape(u.shape), jacobian.reshape(*u.shape, m))

    def _states(self, u: Tensor, level: int) -> Tensor:
        batch = self.model.batch_shape
        return (cast_like(self.alpha[level], u) * u).reshape(len(u), *batch, u.shape[-1])

    def _time(self, level: int) -> Tensor:
        return self.times[level].to(self.like)

    def _rows(self, directions: int) -> int:
        """Number of particles at a time."""
        each = self.model.count * self.model.batch_shape.numel() * directions
        return max(1, _ROWS // each)


def _others(values: Tensor) -> Tensor:
    """Means ``(N, b, *)`` over the half of the particles in which one is not.

    What moves a particle then knows nothing of it, and the evidence of few has no bias by it.
    """
    mean: Tensor = values.unflatten(0, (2, -1)).mean(1).flip(0)
    return mean.repeat_interleave(len(values) // 2, 0)


def _mapped(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Vectors ``(N, b, m)`` by matrices ``(b, m, m)``."""
    return torch.einsum("bij,kbj->kbi", matrix, vectors)
