"""The Ornstein-Uhlenbeck process: ``dz = -rate z dt + sqrt(2 rate) dw``."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import Basis, DiagonalSDE, Schedule
from scoresde.precision import Numbers


class ConstantRate(Schedule):
    """``alpha = exp(-rate t)``, ``sigma^2 = 1 - alpha^2``; the rates follow by themselves.

    Args:
        rate: Along the component axis.
        T: Last time; with a rate of 1, a signal of ``exp(-T)`` is left.
        eps: First time used.
    """

    rate: Tensor

    def __init__(self, rate: Numbers = 1.0, T: float = 6.0, eps: float = 1e-4) -> None:
        super().__init__(T=T, eps=eps)
        self.constant("rate", rate, positive=True)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        (rate,) = self.constants(t, "rate")
        return -rate * t

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()


class OrnsteinUhlenbeck(DiagonalSDE):
    """Relaxes every component to a standard normal one, at a constant rate.

    Args:
        basis: Coordinates in which components diffuse independently.
        rate: Along the component axis: one, one per block or one per component.
        T: Last time.
    """

    def __init__(self, basis: Basis, rate: Numbers = 1.0, T: float = 6.0) -> None:
        super().__init__(ConstantRate(rate, T), basis)
