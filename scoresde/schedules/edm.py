"""Time is the noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.checks import expect, real
from scoresde.schedules.schedule import Schedule


class EDM(Schedule):
    """Time is the noise level (Karras et al. 2022): ``alpha = 1``, ``sigma = t``, ``g^2 = 2t``.

    Args:
        sigma_min: First time used, in the data's units.
        sigma_max: Last time.

    Raises:
        ValueError: If not ``0 < sigma_min < sigma_max``.

    Example:
        >>> import torch
        >>> from scoresde import EDM
        >>> EDM()(torch.tensor([3.0]))
        (tensor([1.]), tensor([3.]))
    """

    references = "karras2022"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            real(name, value)
        got = sigma_min, sigma_max
        expect(0 < sigma_min < sigma_max, "sigma_min, sigma_max", "0 < sigma_min < sigma_max", got)
        super().__init__(T=sigma_max, eps=sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return torch.zeros_like(t), 2 * t
