"""Variance-preserving schedules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scoresde.precision import Numbers
from scoresde.schedules.schedule import Schedule, Signal


class VP(Schedule):
    """Variance preserving, linear beta (Song et al. 2021, eq. 11; DDPM in continuous time).

    ``log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2``, ``sigma^2 = 1 - alpha^2``,
    ``f = -beta/2``, ``g^2 = beta``.

    Args:
        beta_min: Noise rate at time 0, per unit of time.
        beta_max: Noise rate at time 1.
        eps: First time used.

    Raises:
        ValueError: If a rate is not positive, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import VP
        >>> alpha, sigma = VP()(torch.tensor([0.5]))
        >>> round(float(alpha**2 + sigma**2), 6)
        1.0
    """

    references = "song2021 ho2020"

    beta_min: Tensor
    beta_max: Tensor

    def __init__(
        self, beta_min: Numbers = 0.1, beta_max: Numbers = 20.0, eps: float = 1e-3
    ) -> None:
        super().__init__(eps=eps)
        self.constant("beta_min", beta_min, positive=True)
        self.constant("beta_max", beta_max, positive=True)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        low, high = self.constants(t, "beta_min", "beta_max")
        return torch.lerp(low, high, t / 2) * (t / -2)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def _beta(self, t: Tensor) -> Tensor:
        low, high = self.constants(t, "beta_min", "beta_max")
        return low + t * (high - low)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        beta = self._beta(t)
        return -beta / 2, beta

    def _signal(self, t: Tensor, rated: Tensor) -> Signal:
        log_alpha = self.log_alpha(t)
        power = 2 * log_alpha
        variance = -torch.expm1(power)
        rates = partial(self._rates_where, rated)
        return Signal(log_alpha, variance.sqrt(), power - variance.log(), rates)


class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 12): less noise than `VP` at every time.

    ``alpha`` as `VP`, ``sigma = 1 - alpha^2``, ``f = -beta/2``, ``g^2 = beta (1 - alpha^4)``.

    Args:
        beta_min: As for `VP`.
        beta_max: As for `VP`.
        eps: First time used.

    Raises:
        ValueError: As for `VP`.

    Example:
        >>> import torch
        >>> from scoresde import VP, SubVP
        >>> t = torch.tensor([0.1, 0.5, 0.9])
        >>> torch.allclose(SubVP().sigma(t), VP().sigma(t) ** 2)
        True
    """

    references = "song2021"

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return -torch.expm1(2 * self.log_alpha(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        beta = self._beta(t)
        return -beta / 2, -beta * torch.expm1(4 * self.log_alpha(t))

    def _signal(self, t: Tensor, rated: Tensor) -> Signal:
        log_alpha = self.log_alpha(t)
        sigma = -torch.expm1(2 * log_alpha)
        rates = partial(self._rates_where, rated)
        return Signal(log_alpha, sigma, 2 * (log_alpha - sigma.log()), rates)
