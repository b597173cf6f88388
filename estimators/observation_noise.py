"""The distribution of observed numbers given the output of an operator, number by number.

It has mean and variance, by which an observation is approximated with Gaussian noise, and the
evidence of a number under a Gaussian. With ``u ~ N(c, v)``,

    l(c, v) = log int N(u; c, v) p(y | u) du,

the derivatives of which in ``c`` give mean and variance of ``u`` by Bayes' rule:

    E[u | y] = c + v l',    Var[u | y] = v + v^2 l''.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, Poisson, constraints

from scoresde.checks import expect, positive
from scoresde.precision import Float64Constants, Numbers, precision

NoiseModel = Callable[[Tensor], Distribution]
"""What is observed of numbers ``(*batch, *shape)``, each from its own alone."""

_REACH, _NODES = 8.0, 321
"""Integrals are sums from -8 to 8 standard deviations of ``u``, beyond which there is 1e-15 of it,
in steps of a twentieth: exact to 1e-4 of densities that are as narrow as a thirtieth, or have a
kink; to rounding of smooth ones that are wider; to a hundredth where one jumps, as that of no
counts at all does where rates end."""


class Evidence(NamedTuple):
    """``l(c, v)`` and its first two derivatives in ``c``."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


class ObservationNoise(Float64Constants, ABC):
    """``p(y | u)``; subclasses implement `moments` and `evidence`.

    Example:
        >>> import torch
        >>> from torch.distributions import Poisson
        >>> from estimators.observation_noise import ObservationNoise, noise_of
        >>> noise: ObservationNoise = noise_of(Poisson, torch.Size([2]))
        >>> noise.moments(torch.tensor([1.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 3.]))
    """

    std: Tensor | None
    """Standard deviation, where noise is Gaussian whatever ``u`` is."""

    @abstractmethod
    def moments(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what is observed, ``(*batch, m)`` each."""

    def expect_possible(self, y: Tensor, u: Tensor) -> None:
        """Raises ``ValueError`` if a number is none that is observed, whatever the operator gives.

        Args:
            y: The numbers, ``(*batch, m)``.
            u: What the operator may give, ``(1, m)``.
        """

    @abstractmethod
    def evidence(self, y: Tensor, place: int, mean: Tensor, variance: Tensor) -> Evidence:
        """The evidence of one of the observed numbers, differentiable in ``mean`` and ``variance``.

        Args:
            y: The number, ``(*batch,)``.
            place: Which of the ``m`` it is.
            mean: Of all ``u``, ``(*batch, m)``.
            variance: Of the one it is made of, ``(*batch,)``.

        Returns:
            ``(*batch,)`` each.
        """


class GaussianNoise(ObservationNoise):
    """``y = u + s e``: all in closed form.

    Args:
        std: ``s``, one for all or one for each of the ``m`` numbers.
    """

    std: Tensor

    def __init__(self, std: Numbers) -> None:
        super().__init__()
        self.constant("std", std, positive=True)

    def moments(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return u, (self.std.to(u) ** 2).expand_as(u)

    def evidence(self, y: Tensor, place: int, mean: Tensor, variance: Tensor) -> Evidence:
        """``log N(y; c, v + s^2)``."""
        std = self.std.to(variance).flatten()
        # a learned Jacobian may be none of a covariance
        power = variance.clamp(min=0) + std[min(place, len(std) - 1)] ** 2
        gap = y.to(power) - mean[..., place]
        value = -(gap**2 / power + power.log() + math.log(2 * math.pi)) / 2
        return Evidence(value, gap / power, -1 / power)


class ElementwiseNoise(ObservationNoise):
    """Any distribution, by its density: integrals are sums, derivatives are cumulants.

    Only densities, means and variances are needed, and no derivatives: as ``N(u; c, v) p(y | u)``
    is tilted by ``c``, the derivatives of ``l`` are the cumulants of ``u``. What is no parameter,
    as a rate below 0, is impossible.

    Args:
        model: See `NoiseModel`.
        shape: Of what is observed.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> from estimators.observation_noise import ElementwiseNoise, GaussianNoise
        >>> noise = ElementwiseNoise(lambda u: Normal(u, 0.5), torch.Size([1]))
        >>> given = torch.ones(1), 0, torch.zeros(1, 1), torch.ones(1)
        >>> torch.allclose(noise.evidence(*given).value, GaussianNoise(0.5).evidence(*given).value)
        True
    """

    def __init__(self, model: NoiseModel, shape: torch.Size) -> None:
        super().__init__()
        self.model, self.shape, self.std = model, shape, None

    def moments(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        seen = self._of(u)
        return seen.mean.reshape(u.shape), seen.variance.reshape(u.shape)

    def expect_possible(self, y: Tensor, u: Tensor) -> None:
        """By the support, where that is not one that moves with ``u``."""
        with _unchecked():
            seen = self._of(u)
        support = _said(seen, "support", None)
        fixed = not isinstance(_said(type(seen), "support", None), property)
        if support is None or not getattr(seen, "_validate_args", False):
            return
        if fixed or support.is_discrete:
            good = support.check(y.reshape(*y.shape[:-1], *self.shape)).reshape(y.shape)
            wanted = f"numbers of a {type(seen).__name__} distribution, {support}"
            expect(bool(good.all()), "y", wanted, next(iter(y[~good].tolist()), None))

    def _of(self, u: Tensor) -> Distribution:
        return self.model(u.reshape(*u.shape[:-1], *self.shape))

    def evidence(self, y: Tensor, place: int, mean: Tensor, variance: Tensor) -> Evidence:
        """Values by quadrature, and what they change by in first order."""
        center, number = mean[..., place], torch.finfo(variance.dtype)
        variance = variance.clamp(min=number.tiny**0.5)
        with torch.no_grad():
            value, cumulants = self._quadrature(y, place, mean.detach(), variance.detach())
            fixed = variance.detach()
            first, second, third, fourth = (
                (k / fixed ** (i / 2)).to(fixed) for i, k in enumerate(cumulants, 1)
            )
        steps = center - center.detach(), (variance - fixed) / 2

        def expanded(at: Tensor, slope: Tensor, heat: Tensor) -> Tensor:
            """In ``c`` and ``v``: the density of ``y`` obeys the heat equation."""
            return at + slope * steps[0] + heat * steps[1]

        return Evidence(
            expanded(value.to(fixed), first, second + first**2),
            expanded(first, second, third + 2 * first * second),
            expanded(second, third, fourth + 2 * second**2 + 2 * first * third),
        )

    def _quadrature(
        self, y: Tensor, place: int, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``l``, and its derivatives in ``c`` in units of the standard deviation of ``u``."""
        wide = precision(mean.device)
        mean, std = mean.to(wide), variance.to(wide).sqrt()
        nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=wide, device=mean.device)
        nodes = nodes.reshape(-1, *[1] * std.ndim)
        step = 2 * _REACH / (_NODES - 1)
        u = mean.expand(_NODES, *mean.shape).clone()
        u[..., place] = mean[..., place] + std * nodes
        # the others' densities are not looked at
        seen = y.to(wide).unsqueeze(-1).expand(mean.shape)
        with _unchecked():
            noise = self._of(u)
        density = noise.log_prob(seen.reshape(*mean.shape[:-1], *self.shape))
        density = torch.where(_possible(noise), density, -math.inf).reshape(u.shape)[..., place]
        logits = density - nodes**2 / 2 + math.log(step / math.sqrt(2 * math.pi))
        value = logits.logsumexp(0)
        weights = (logits - value).exp()
        first = (weights * nodes).sum(0)
        left = nodes - first
        second, third, fourth = ((weights * left**k).sum(0) for k in (2, 3, 4))
        # of a standard normal number the tilt alone leaves 1
        return value, (first, second - 1, third, fourth - 3 * second**2)


_SETTING = threading.RLock()


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Distributions as they are made: torch refuses all of a batch for a parameter of one."""
    with _SETTING:
        before = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)


def _possible(noise: Any) -> Tensor:
    """Where all parameters are ones that the distribution has."""
    possible = torch.tensor(True)
    while noise is not None:
        for name, constraint in _said(noise, "arg_constraints", {}).items():
            if not constraints.is_dependent(constraint):
                parameter = getattr(noise, name)
                possible = constraint.check(parameter) & possible.to(parameter.device)
        noise = getattr(noise, "base_dist", None)  # of one that is transformed
    return possible


def _said(noise: Any, name: str, default: Any) -> Any:
    """What a distribution says of itself; one of a user's need not."""
    try:
        return getattr(noise, name)
    except (AttributeError, NotImplementedError):
        return default


def noise_of(noise: Any, shape: torch.Size) -> ObservationNoise:
    """The distribution of noise: from a standard deviation, several, or a noise model.

    Args:
        noise: A number or numbers that broadcast to the shape, or a `NoiseModel`.
        shape: Of what is observed.

    Raises:
        TypeError: If it is neither.
        ValueError: If a number is not positive, or numbers do not broadcast to the shape.
    """
    if callable(noise) and not isinstance(noise, Tensor):
        return ElementwiseNoise(noise, shape)
    positive("noise", noise)
    gaussian = GaussianNoise(noise)
    if gaussian.std.numel() > 1:
        try:
            gaussian.std = gaussian.std.broadcast_to(shape).flatten()
        except RuntimeError:
            got = tuple(gaussian.std.shape)
            expect(False, "noise", f"one number, or shape {tuple(shape)}", got)
    return gaussian


def noise_model(model: Any) -> tuple[Any, float]:
    """Noise of deepinv's physics, and a unit by which observations are to be divided.

    Args:
        model: Its ``noise_model``.

    Raises:
        TypeError: If it is unknown: give ``noise`` itself.
    """
    name = type(model).__name__
    if name == "GaussianNoise":
        return model.sigma, 1.0
    if name == "PoissonNoise":
        gain = float(model.gain)
        unit = gain if bool(model.normalize) else 1.0
        # counts in units of their gain are whole but for rounding
        return lambda u: Poisson((u / gain).clamp(min=_LEAST), validate_args=False), unit
    if name == "PoissonGaussianNoise":
        gain, sigma = float(model.gain), float(model.sigma)
        return lambda u: Normal(u, (gain * u.clamp(min=0) + sigma**2).sqrt()), 1.0
    raise TypeError(
        "noise: expected one, as that of the operator is neither Gaussian nor Poisson, got None "
        f"and {name}"
    )


_LEAST = 1e-6
"""Counts expected where an operator gives none, or fewer: one is then unlikely, not impossible."""
