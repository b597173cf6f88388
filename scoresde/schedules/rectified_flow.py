"""Straight lines from data to noise."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.checks import expect, real
from scoresde.schedules.schedule import Schedule


class RectifiedFlow(Schedule):
    """Straight lines from data to noise (Liu et al. 2022; Lipman et al. 2022).

    ``alpha = 1 - t``, ``sigma = t``, ``f = -1/(1 - t)``, ``g^2 = 2t/(1 - t)``. The rates are
    infinite at time 1, so time ends a little earlier.

    Args:
        T: Last time, below 1.
        eps: First time used.

    Raises:
        ValueError: If not ``0 < eps < T < 1``.

    Example:
        >>> import torch
        >>> from scoresde import RectifiedFlow
        >>> RectifiedFlow()(torch.tensor([0.25]))
        (tensor([0.7500]), tensor([0.2500]))
    """

    references = "liu2022 lipman2022"

    def __init__(self, T: float = 0.999, eps: float = 1e-3) -> None:
        real("T", T)
        expect(T < 1, "T", "a last time below 1, where the rates are infinite", T)
        super().__init__(T=T, eps=eps)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        f = -1 / (1 - t)
        return f, -2 * t * f
