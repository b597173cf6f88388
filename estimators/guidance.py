"""Guidance by what was observed: an estimator is wrapped, and what it says of clean data steered.

    D(z_t | y) = D(z_t) + (sigma^2/alpha) grad_z log p(y | z_t)

A guided estimator is an estimator of the same SDE, so every solver runs with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.checks import expect, finite, instance, positive, real, whole
from scoresde.derivatives import vjp
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.parametrization import FAINT, remaining_variance
from scoresde.precision import Float64Constants, Numbers, full_precision, replaced
from scoresde.selection import broadcast, per_sample, samples

Operator = Callable[[Tensor], Tensor]
"""An affine map of events, ``(*batch, *event_shape)`` to ``(*batch, m)``."""


class LinearGuidance(Float64Constants, ScoreEstimator):
    """Posterior of ``y = A x + e``, ``e ~ N(0, s^2)``, under an unconditional model.

    With ``D`` and ``C`` mean and covariance of ``z_0`` given ``z_t`` (in the basis's
    coefficients, where ``A`` is ``B``),

        D(z_t | y) = D + C B^T (B C B^T + s^2)^-1 (y - B D),

    exact for Gaussian data. What ``C`` is makes the method:

    - ``"moments"``: the model's own, ``C = S J^T/alpha`` with the Jacobian ``J`` of ``D`` and
      ``S = diag(sigma^2)`` (Tweedie's second-order formula; Boys et al. 2023, Rozet et al.
      2024), never formed: the ``m`` equations are solved by conjugate gradients.
    - ``"isotropic"``: inside the inverse, what it would be for independent components,
      ``r^2 = sd^2 sigma^2/(alpha^2 sd^2 + sigma^2)``; outside, the model's (Song et al. 2023,
      "pseudoinverse guidance").
    - ``"point"``: inside, nothing: the model's outside alone, with a step of ``1/|y - B D|``
      in the place of the inverse (Chung et al. 2023, "DPS"), not exact for anything.

    An operator, or a basis, that adds something is one of ``y`` less that: ``B`` is the derivative.
    Components that a multi-scale SDE has not let in yet are independent of the others, with
    ``data_mean`` and ``data_std``; what is observed of an estimator that is conditioned stays.

    Args:
        estimator: Of the data without ``y``; differentiable in its state.
        operator: ``A``, linear or affine; twice differentiable by ``torch.func``.
        y: What was observed, ``(*batch, m)``.
        noise_std: ``s``.
        method: See above.
        iterations: Of conjugate gradients, at most; ``m`` are enough.
        strength: Of ``"point"``: length of the step.
        data_mean: Of the coefficients, along the component axis.
        data_std: Of the coefficients, along the component axis.

    Raises:
        TypeError: If the estimator, the operator or ``y`` is none.
        ValueError: If the method is unknown, a number is out of its range, ``y`` is not finite, or
            its batch does not fit that of the estimator; on asking, if the operator does not give
            what ``y`` has.

    Example:
        >>> import torch
        >>> from estimators import Gaussian, LinearGuidance
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import ExponentialMultistep
        >>> prior = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> total = LinearGuidance(prior, lambda x: x.sum(-1, keepdim=True), torch.ones(1), 0.1)
        >>> x = ExponentialMultistep(30).sample(total, (500,), generator=torch.manual_seed(0))
        >>> bool((x.sum(-1) - 0.995).abs().mean() < 0.1)
        True
    """

    references = "boys2023 rozet2024 song2023 chung2023"

    y: Tensor
    noise_std: Tensor
    data_mean: Tensor
    data_std: Tensor

    def __init__(
        self,
        estimator: ScoreEstimator,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        *,
        method: str = "moments",
        iterations: int = 50,
        strength: float = 1.0,
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
    ) -> None:
        expect_estimator(estimator)
        super().__init__(estimator.sde)
        instance("operator", operator, Callable)  # type: ignore[arg-type]
        instance("y", y, Tensor)
        whole("iterations", iterations, 1)
        real("strength", strength)
        methods = ("moments", "isotropic", "point")
        expect(method in methods, "method", f"one of {', '.join(methods)}", repr(method))
        finite("y", y)
        positive("noise_std", noise_std)
        self.estimator, self.operator, self.method = estimator, operator, method
        self.iterations, self.strength = iterations, strength
        self.constant("noise_std", noise_std, positive=True)
        self.constant("data_mean", data_mean)
        self.constant("data_std", data_std, positive=True)
        self.register_buffer("y", y)
        broadcast("y", y.shape[:-1], estimator.batch_shape)

    @property
    def batch_shape(self) -> torch.Size:
        """That of ``y`` and of the estimator."""
        return broadcast("y", self.y.shape[:-1], super().batch_shape)

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """With the observations of some samples."""
        y = samples(per_sample("y", self.y, batch), rows, batch)
        return replaced(super().select(rows, batch), y=y)

    @full_precision  # conjugate gradients need the digits
    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the class."""
        n = z.shape[-1]
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z), n))
        mean, std = (self._whole(v, z) for v in (self.data_mean, self.data_std))

        def see(state: Tensor) -> Tensor:
            return self.operator(self.sde.basis.synthesise(state))

        clean, pull_back = vjp(
            lambda z: self.estimator.denoise(z, t, condition), z, self.parameters()
        )
        whole = torch.cat([clean, mean[n:].expand(*z.shape[:-1], -1)], -1)
        with torch.enable_grad():  # the pull-back is differentiated in turn
            guess, back = vjp(see, whole)
            # asked at every step of a solver
            if guess.shape != (*z.shape[:-1], *self.y.shape[-1:]):
                wanted = f"one to shape (*batch, m), m = {tuple(self.y.shape[-1:])} as y has"
                expect(False, "operator", wanted, f"{tuple(guess.shape)} of {tuple(z.shape)}")
            # a linear map is the transpose of its transpose, whatever see adds to it
            along = vjp(back, torch.zeros_like(guess))[1]
        left = self.y.to(z) - guess
        still = (sigma == 0) | self.sde.observed[:n].to(z.device)
        spread = torch.where(still, 0.0, sigma**2 / alpha.clamp(min=FAINT))

        def covary(v: Tensor) -> Tensor:
            """``C v``; what has not entered keeps its own variance."""
            product = spread * pull_back(v[..., :n])
            return torch.cat([product, std[n:] ** 2 * v[..., n:]], -1)

        def independent(v: Tensor) -> Tensor:
            product = remaining_variance(alpha, sigma, std[:n] ** 2)
            return (
                torch.cat([product.expand_as(v[..., :n]), std[n:].expand_as(v[..., n:]) ** 2], -1)
                * v
            )

        if self.method == "point":
            pull = self.strength * left / left.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        else:
            inside = covary if self.method == "moments" else independent
            power = self.noise_std.to(z) ** 2
            pull = _solve(lambda v: along(inside(back(v))) + power * v, left, self.iterations)
        guided: Tensor = clean + covary(back(pull))[..., :n]
        return guided

    def _whole(self, value: Tensor, z: Tensor) -> Tensor:
        return self.sde.basis.blocks.expand(value).to(z).expand(self.sde.basis.dim)


def _solve(apply: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients on positive definite systems ``(*batch, m)``, each by itself.

    Directions along which one is not, as a learned Jacobian may be none of a covariance, are left:
    the minimum is sought among the others (Steihaug 1983, with a boundary at the start).
    """
    solution, residual = torch.zeros_like(right), right
    direction, power = right, _dot(right, right)
    tiny = torch.finfo(right.dtype).tiny
    for _ in range(min(iterations, right.shape[-1])):
        image = apply(direction)
        curvature = _dot(direction, image)
        length = torch.where(curvature > 0, power / curvature.clamp(min=tiny), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        left = _dot(residual, residual)
        direction = residual + left / power.clamp(min=tiny) * direction
        power = left
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = (a * b).sum(-1, keepdim=True)
    return product
