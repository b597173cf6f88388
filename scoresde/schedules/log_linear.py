"""A log-SNR that is linear in time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoresde.checks import expect
from scoresde.precision import Numbers
from scoresde.schedules.schedule import Schedule, Signal


class LogLinear(Schedule):
    """Log-SNR linear in time, the schedule of Non-Uniform Diffusion Models (2022, section 4).

    ``lambda = log_snr_max + (log_snr_min - log_snr_max)(t - eps)/(1 - eps)``,
    ``alpha^2 = sigmoid(lambda)``, ``sigma^2 = sigmoid(-lambda)``, ``g^2 = -lambda' sigma^2``,
    ``f = -g^2/2``. Below ``eps``, where nothing is trained or sampled, the variance goes to 0
    linearly, so that data are clean at time 0 as under every other schedule.

    Args:
        log_snr_max: Log-SNR at ``eps``.
        log_snr_min: Log-SNR at time 1.
        eps: First time used.

    Raises:
        ValueError: If not ``log_snr_min < log_snr_max``, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import LogLinear
        >>> LogLinear(log_snr_max=8.0, log_snr_min=-6.0).log_snr(torch.tensor([1e-3, 1.0]))
        tensor([ 8., -6.])
    """

    references = "batzolis2022"

    log_snr_max: Tensor
    log_snr_min: Tensor

    def __init__(
        self, log_snr_max: Numbers = 10.0, log_snr_min: Numbers = -10.0, eps: float = 1e-3
    ) -> None:
        super().__init__(eps=eps)
        self.constant("log_snr_max", log_snr_max)
        self.constant("log_snr_min", log_snr_min)
        expect(
            bool((self.log_snr_min < self.log_snr_max).all()),
            "log_snr_min",
            f"below log_snr_max = {log_snr_max}",
            log_snr_min,
        )

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lambda at ``t`` or ``eps``, whichever is later; its slope; the variance below."""
        high, low = self.constants(t, "log_snr_max", "log_snr_min")
        slope = (low - high) / (1 - self.eps)
        return high + slope * (t - self.eps).clamp(min=0), slope, torch.sigmoid(-high) / self.eps

    def _variance(self, t: Tensor) -> Tensor:
        log_snr, _, growth = self._linear(t)
        return torch.where(t < self.eps, growth * t, torch.sigmoid(-log_snr))

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        log_snr, _, growth = self._linear(t)
        early = torch.log1p(-growth * t.clamp(max=self.eps))
        late = log_snr.clamp(max=0) - torch.log1p((-log_snr.abs()).exp())  # log sigmoid
        return torch.where(t < self.eps, early, late) / 2

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._variance(t).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.where(t < self.eps, super().log_snr(t), self._linear(t)[0])

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        variance, (_, slope, growth) = self._variance(t), self._linear(t)
        g2 = torch.where(t < self.eps, growth / (1 - variance), -slope * variance)
        return -g2 / 2, g2

    def _signal(self, t: Tensor, rated: Tensor) -> Signal:
        log_snr, slope, growth = self._linear(t)
        early, falling = growth * t, torch.sigmoid(-log_snr)
        variance = torch.where(t < self.eps, early, falling)
        log_alpha = torch.where(t < self.eps, torch.log1p(-early), logsigmoid(log_snr)) / 2
        log_snr = torch.where(t < self.eps, 2 * log_alpha - variance.log(), log_snr)

        def rates(moving: Tensor | None) -> tuple[Tensor, Tensor]:
            # of times from 0 to eps, which are rated as they are, the line is that at eps
            t = self._rated(rated, moving)
            g2 = torch.where(t < self.eps, growth / (1 - growth * t), -slope * falling)
            return -g2 / 2, g2

        return Signal(log_alpha, variance.sqrt(), log_snr, rates)
