"""The cosine schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.precision import Numbers
from scoresde.schedules.schedule import Schedule


class Cosine(Schedule):
    """Cosine (Nichol and Dhariwal 2021), on a time axis that ends at ``log_snr_min``.

    ``alpha = cos(theta t)``, ``sigma = sin(theta t)``, ``f = -theta tan(theta t)``,
    ``g^2 = -2 f``, with ``theta`` just below ``pi/2``: instead of clipping the rates, which
    would contradict the kernel, time stops where the log-SNR is ``log_snr_min``.

    Args:
        log_snr_min: Log-SNR at time 1, negative.
        eps: First time used.

    Raises:
        ValueError: If ``log_snr_min`` is not below 0, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import Cosine
        >>> Cosine(log_snr_min=-12.0).log_snr(torch.tensor([1.0])).round(decimals=2)
        tensor([-12.])
    """

    references = "nichol2021"

    log_snr_min: Tensor

    def __init__(self, log_snr_min: Numbers = -15.0, eps: float = 1e-3) -> None:
        super().__init__(eps=eps)
        self.constant("log_snr_min", log_snr_min)
        expect(bool((self.log_snr_min < 0).all()), "log_snr_min", "below 0", log_snr_min)

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # alpha is the sine of what is left to pi/2, which 1 - t gives without cancellation
        rest = torch.atan((self.constant_on("log_snr_min", t.device) / 2).exp()).to(t)
        theta = math.pi / 2 - rest
        return theta, theta * t, rest + theta * (1 - t)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._angles(t)[2].sin().log()

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._angles(t)[1].sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        theta, angle, rest = self._angles(t)
        f = -theta * angle.sin() / rest.sin()
        return f, -2 * f
