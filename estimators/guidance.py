"""Guidance by observations: a wrapped estimator whose denoised mean is corrected.

    D(z_t | y) = D(z_t) + (sigma^2/alpha) grad_z log p(y | z_t)

A guided estimator is an estimator of the same SDE, so every solver runs with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from estimators.conjugate_gradients import conjugate_gradients
from estimators.measurement import Measurement, Operator
from estimators.observation_noise import NoiseModel
from scoresde.checks import choice, expect, real, whole
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator, expect_estimator, kernels
from scoresde.internals.derivatives import PullBack, batched, vjp
from scoresde.objectives.parametrization import FAINT, remaining_variance
from scoresde.precision import Float64Constants, Numbers, full_precision
from scoresde.sampling.batches import samples_like
from scoresde.sdes.sde_coefficients import Kernel, SDECoefficients
from scoresde.selection import broadcast

METHODS = ("moments", "evidence", "isotropic", "point", "proximal", "spectral")
"""What takes the place of ``p(z_0 | z_t)``: see `Guidance`."""

_ROUNDING = 1e-4
"""Of an affine operator, a thousand times that of float32; what is not affine is farther off."""


def _first(x: Tensor) -> Tensor:
    """Of vectors."""
    return x[..., :1]


class Guidance(Float64Constants, PlannedEstimator):
    """The posterior of ``y ~ p(y | A(x))`` under an unconditional model.

    With ``D`` and ``C`` mean and covariance of ``z_0`` given ``z_t`` (in the basis's
    coefficients, where ``A`` is ``B`` to first order around ``D``), and ``R`` the variance of the
    noise there,

        D(z_t | y) = D + C B^T (B C B^T + R)^-1 (y - A(D)),

    exact for linear operators, Gaussian noise and Gaussian data. What ``C`` is makes the method:

    - ``"moments"``: the model's own, ``C = S J^T/alpha`` with the Jacobian ``J`` of ``D`` and
      ``S = diag(sigma^2)`` (Tweedie's second-order formula; Boys et al. 2023, Rozet et al.
      2024), never formed: the ``m`` equations are solved by conjugate gradients.
    - ``"evidence"``: the same, with the derivative of ``C`` in ``z_t``: the whole gradient of
      ``log p(y | z_t)`` for ``A(z_0)`` Gaussian with moments ``A(D)`` and ``B C B^T``, under any
      noise (`Measurement.log_evidence`). The most accurate for data with modes, or noise far from
      Gaussian; ``m`` products with ``J`` at once, and their derivatives.
    - ``"isotropic"``: inside the inverse, that of independent components,
      ``r^2 = sd^2 sigma^2/(alpha^2 sd^2 + sigma^2)``; outside, the model's (Song et al. 2023,
      "pseudoinverse guidance").
    - ``"point"``: inside, nothing: the model's outside alone, with a step of ``1/|y - A(D)|``
      in the place of the inverse (Chung et al. 2023, "DPS"), not exact for anything.
    - ``"proximal"``: ``strength r^2`` inside and outside: nearest to ``D`` and to ``y`` (Zhu et al.
      2023, "DiffPIR", of data whose ``sd`` is large and ``strength`` is one over its ``lambda``).
      Needs no derivative of the model.
    - ``"spectral"``: in the singular basis of ``B R^-1/2``, ``z_0`` is replaced by its observation
      wherever ``z_t`` has more noise than ``y``, and elsewhere moved from ``D`` to it by
      ``strength`` times the ratio of the two (Kawar et al. 2022, "DDRM", of ``sqrt(1 - eta^2)``
      for ``strength``); not exact for anything, without derivatives. For Gaussian noise and affine
      operators; beyond some thousand numbers, their decomposition takes long.

    Offsets of an affine operator or basis are subtracted from ``y``: ``B`` is the derivative.
    Components that have not entered a multi-scale SDE yet are independent of the others, with
    ``data_mean`` and ``data_std``; observed components of a conditioned estimator are kept. For
    several observations, guide a guided estimator again.

    Args:
        estimator: Of the data without ``y``; differentiable in its state, but for the last two
            methods.
        operator: ``A``, any differentiable function or module; see `Operator`.
        y: The observation, ``(*batch, *shape)``.
        noise: Standard deviation, one or several; or a function from ``A(x)`` to the distribution
            of ``y``, number by number, as ``torch.distributions.Poisson``. That of deepinv's
            physics if None.
        method: See above.
        iterations: Of conjugate gradients, at most; ``m`` are enough.
        strength: At least 0: of ``"point"``, length of the step; of the last two, see there.
        linearisations: Of operator and noise, first around ``D`` and then around the result of the
            one before; for linear ones with Gaussian noise all are the same.
        data_mean: Of the coefficients, along the component axis.
        data_std: Of the coefficients, along the component axis.

    Raises:
        TypeError: If the estimator, the operator or ``y`` is of another type, or complex.
        ValueError: If the method is unknown, a number is out of its range, ``y`` is not finite or
            nothing that noise gives, its batch does not fit that of the estimator, or the
            operator's output has another shape or no derivatives; on use, if the estimator cannot
            be differentiated and has to be.

    Example:
        >>> import torch
        >>> from estimators import Gaussian, Guidance
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import ExponentialMultistep
        >>> prior = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> total = Guidance(prior, lambda x: x.sum(-1, keepdim=True), torch.ones(1), 0.1)
        >>> x = ExponentialMultistep(30).sample(total, (500,), generator=torch.manual_seed(0))
        >>> bool((x.sum(-1) - 0.995).abs().mean() < 0.1)
        True
    """

    references = "boys2023 rozet2024 song2023 chung2023 zhu2023 kawar2022"
    example: ClassVar = {"operator": _first, "y": -torch.ones(1, device="cpu"), "noise": 0.5}

    data_mean: Tensor
    data_std: Tensor
    directions: Tensor
    fitted: Tensor
    singular: Tensor

    def __init__(
        self,
        estimator: ScoreEstimator,
        operator: Operator | Any,
        y: Tensor,
        noise: Numbers | NoiseModel | None = None,
        *,
        method: str = "moments",
        iterations: int = 50,
        strength: float = 1.0,
        linearisations: int = 1,
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
    ) -> None:
        expect_estimator(estimator)
        super().__init__(estimator.sde)
        choice("method", method, *METHODS)
        whole("iterations", iterations, 1)
        whole("linearisations", linearisations, 1)
        real("strength", strength, 0)
        self.constant("data_mean", data_mean)
        self.constant("data_std", data_std, positive=True)
        self.estimator, self.method, self.iterations = estimator, method, iterations
        self.strength, self.linearisations = strength, linearisations
        event = samples_like(estimator, None).new_zeros(self.sde.basis.event_shape)
        self.measurement = Measurement(operator, y, noise, event)
        broadcast("y", self.measurement.batch_shape, estimator.batch_shape)
        if method == "spectral":
            self._decompose(event)

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `scoresde.estimator.PlannedEstimator`."""
        inner = self.estimator.denoisers(at, condition)
        return map(partial(partial, self._guided), kernels(at), inner)

    @full_precision  # conjugate gradients need the digits
    def _guided(self, kernel: Kernel, inner: Denoiser, z: Tensor) -> Tensor:
        guided: Tensor = getattr(_GuidedState(self, z, kernel, inner), self.method)()
        return guided

    def _measure(self, state: Tensor) -> Tensor:
        seen: Tensor = self.measurement(self.sde.basis.synthesise(state))
        return seen

    def _decompose(self, event: Tensor) -> None:
        """The singular basis of what is seen in units of its noise."""
        std = self.measurement.noise.std
        expect(std is not None, "noise", 'Gaussian, for method="spectral"', "another")
        start = self.sde.basis.analyse(event)
        with torch.enable_grad():
            offset, back = vjp(self._measure, start)
            matrix = batched(back, torch.eye(len(offset)).to(offset)).double()
        probe = torch.linspace(-1, 1, len(start)).to(start)
        gap = self._measure(start + probe) - offset - matrix.to(probe) @ probe
        tolerance = _ROUNDING * (1 + matrix.norm())
        wanted = 'an affine one, for method="spectral"'
        expect(bool(gap.norm() <= tolerance), "operator", wanted, "another")
        scale = std.to(matrix)  # type: ignore[union-attr]
        left, singular, right = torch.linalg.svd(
            matrix / scale.expand(len(matrix)).unsqueeze(-1), full_matrices=False
        )
        kept = singular > singular.amax() * torch.finfo(start.dtype).eps * max(matrix.shape)
        self.constant("singular", singular[kept])
        self.constant("directions", right[kept])
        self.constant("fitted", (left / scale.unsqueeze(-1))[:, kept].mT / singular[kept, None])


class _Linear(NamedTuple):
    """An operator to first order: what is seen, what is left of ``y``, ``B^T``, ``B`` and ``R``."""

    left: Tensor
    back: PullBack
    along: PullBack
    variance: Tensor


class _GuidedState:
    """One question of a guided estimator: its methods are those of the guidance."""

    def __init__(self, guidance: Guidance, z: Tensor, kernel: Kernel, inner: Denoiser) -> None:
        self.guidance, self.z, self.n, self.inner = guidance, z, z.shape[-1], inner
        sde = guidance.sde
        self.alpha, self.sigma = kernel
        mean, self.std = (
            sde.basis.blocks.expand(v).to(z).expand(sde.basis.dim)
            for v in (guidance.data_mean, guidance.data_std)
        )
        self.rest = mean[self.n :].expand(*z.shape[:-1], -1)
        still = (self.sigma == 0) | sde.observed[: self.n].to(z.device)
        # a covariance is so many times a Jacobian of the mean (Tweedie)
        self.still, factor = still, self.sigma**2 / self.alpha.clamp(min=FAINT)
        self.tweedie = torch.where(still, 0.0, factor)

    def moments(self) -> Tensor:
        """``C`` of the model, inside and outside."""
        clean, covary = self._model()
        return self._scored(clean, covary, covary)

    def isotropic(self) -> Tensor:
        """``r^2`` inside."""
        clean, covary = self._model()
        return self._scored(clean, self._independent, covary)

    def proximal(self) -> Tensor:
        """``r^2`` inside and outside."""

        def covary(v: Tensor) -> Tensor:
            share = self.guidance.strength * self._independent(v)
            return torch.cat(
                [torch.where(self.still, 0.0, share[..., : self.n]), share[..., self.n :]], -1
            )

        return self._scored(self.inner(self.z), covary, covary)

    def point(self) -> Tensor:
        """A step of its own length."""
        clean, covary = self._model()
        seen = self._linear(self._whole(clean))
        length = seen.left.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        step = self.guidance.strength * seen.left / length
        guided: Tensor = clean + covary(seen.back(step))[..., : self.n]
        return guided

    def spectral(self) -> Tensor:
        """The observation where it is more precise than the state."""
        g, clean = self.guidance, self.inner(self.z)
        whole = self._whole(clean)
        directions, fitted, singular = (v.to(self.z) for v in (g.directions, g.fitted, g.singular))
        left = g.measurement.y.to(self.z) - g._measure(whole)
        ratio = torch.where(self.still, 0.0, self.sigma / self.alpha.clamp(min=FAINT)) ** 2
        batch = ratio.shape[:-1]
        later = (self.std[self.n :] ** 2).expand(*batch, -1)
        power = torch.cat([ratio.expand(*batch, self.n), later], -1)
        noise = (power @ (directions.mT**2)).sqrt() * singular
        weight = torch.where(noise >= 1, 1.0, g.strength * noise)
        moved = ((left @ fitted.mT * weight) @ directions)[..., : self.n]
        return clean + torch.where(self.still, 0.0, moved)

    def evidence(self) -> Tensor:
        """The gradient of ``log p(y | z_t)``, all of it."""

        def together(z: Tensor) -> Tensor:
            clean, covary = self._model(z)
            with torch.enable_grad():
                whole = self._whole(clean)
                guess, back = vjp(self.guidance._measure, whole)
            m = guess.shape[-1]
            unit = torch.eye(m).to(guess).reshape(m, *[1] * (guess.ndim - 1), m)
            rows = batched(back, unit.expand(m, *guess.shape))
            columns = batched(covary, rows)
            covariance = torch.einsum("i...n,j...n->...ij", rows, columns)
            covariance = (covariance + covariance.mT) / 2
            value = self.guidance.measurement.log_evidence(guess, covariance)
            return torch.cat([value.expand(clean.shape[:-1]).unsqueeze(-1), clean], -1)

        joined, pull_back = vjp(together, self.z, self.guidance.parameters())
        ones = torch.zeros_like(joined)
        ones[..., 0] = 1.0
        guided: Tensor = joined[..., 1:] + self.tweedie * pull_back(ones)
        return guided

    def _model(self, z: Tensor | None = None) -> tuple[Tensor, PullBack]:
        """``D``, and ``v -> C v``: what has not entered keeps its own variance."""

        def clean(z: Tensor) -> Tensor:
            mean = self.inner(z)
            wanted = 'one whose denoised mean can be differentiated (else method="proximal")'
            expect(mean.requires_grad, "estimator", wanted, "one without gradients")
            return mean

        parameters = self.guidance.parameters()
        mean, pull_back = vjp(clean, self.z if z is None else z, parameters)

        def covary(v: Tensor) -> Tensor:
            product = self.tweedie * pull_back(v[..., : self.n])
            return torch.cat([product, self.std[self.n :] ** 2 * v[..., self.n :]], -1)

        return mean, covary

    def _whole(self, clean: Tensor) -> Tensor:
        return torch.cat([clean, self.rest], -1)

    def _independent(self, v: Tensor) -> Tensor:
        """``r^2 v``, as if components were independent."""
        known = remaining_variance(self.alpha, self.sigma, self.std[: self.n] ** 2)
        rest = self.std[self.n :] ** 2 * v[..., self.n :]
        return torch.cat([known * v[..., : self.n], rest], -1)

    def _linear(self, at: Tensor) -> _Linear:
        """Operator and noise around a state."""

        def mean(state: Tensor) -> Tensor:
            return self.guidance.measurement.noise.moments(self.guidance._measure(state))[0]

        with torch.enable_grad():  # the pull-back is differentiated in turn
            guess, back = vjp(mean, at)
            # a linear map is the transpose of its transpose, whatever is added to it
            along = vjp(back, torch.zeros_like(guess))[1]
        variance = self.guidance.measurement.noise.moments(self.guidance._measure(at))[1]
        return _Linear(self.guidance.measurement.y.to(guess) - guess, back, along, variance)

    def _scored(self, clean: Tensor, inside: PullBack, outside: PullBack) -> Tensor:
        """Fisher's scoring, from ``D`` on."""
        start = point = self._whole(clean)
        for i in range(self.guidance.linearisations):
            seen = self._linear(point)
            left = seen.left + seen.along(point - start) if i else seen.left
            normal = partial(_normal, seen, inside)
            pull = conjugate_gradients(normal, left, self.guidance.iterations)
            point = start + outside(seen.back(pull))
        return point[..., : self.n]


def _normal(seen: _Linear, inside: PullBack, v: Tensor) -> Tensor:
    """``(B C B^T + R) v``."""
    return seen.along(inside(seen.back(v))) + seen.variance * v
