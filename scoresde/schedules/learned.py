"""A log-SNR that is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scoresde.checks import whole
from scoresde.precision import Numbers
from scoresde.schedules.log_linear import LogLinear

_EXTREME = 30.0
"""The logarithm of slopes beyond which a unit is a step, or a straight line, to all digits."""


class Learned(LogLinear):
    """Log-SNR along a learned path (Kingma et al. 2021; per component, Sahoo et al. 2023).

    With ``u`` the time from ``eps`` to 1, as a number from 0 to 1,

        lambda = log_snr_max + (log_snr_min - log_snr_max) gamma(u),
        gamma(u) = w_0 u + sum_k w_k (s_k(u) - s_k(0)) / (s_k(1) - s_k(0)),

    a monotone network of one hidden layer: ``s_k(u)`` the logistic function of ``a_k (u - b_k)``
    with ``a_k > 0``, and ``w`` a softmax, so that ``gamma(0) = 0`` and ``gamma(1) = 1``. Train it
    by `scoresde.bound`. Where all components share it, the bound depends on the ends only, which
    are learned if given as an ``nn.Parameter``.

    Args:
        components: 1 for a shared path, or as many as there are blocks or components.
        hidden: Number of hidden units.
        log_snr_max: Log-SNR at ``eps``.
        log_snr_min: Log-SNR at time 1.
        eps: First time used.

    Raises:
        ValueError: As for `LogLinear`, or if a count is not a positive whole number.

    Example:
        >>> import torch
        >>> from scoresde import Learned
        >>> schedule = Learned(components=3)
        >>> schedule.log_snr(torch.tensor([[1e-3], [1.0]])).shape
        torch.Size([2, 3])
    """

    references = "kingma2021 sahoo2023"

    def __init__(
        self,
        components: int = 1,
        hidden: int = 8,
        log_snr_max: Numbers = 10.0,
        log_snr_min: Numbers = -10.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min, eps)
        for name, value in (("components", components), ("hidden", hidden)):
            whole(name, value, 1)
        self.centre = nn.Parameter(torch.linspace(0, 1, hidden).unsqueeze(-1))
        self.log_slope = nn.Parameter(torch.full((hidden, 1), math.log(2 * hidden)))
        self.weight = nn.Parameter(torch.zeros(hidden + 1, components))
        with torch.no_grad():
            self.weight[0] = math.log(hidden) + 1  # near the straight line

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        high, low, centre, slope, weight = self.constants(
            t, "log_snr_max", "log_snr_min", "centre", "log_slope", "weight"
        )
        u = ((t - self.eps) / (1 - self.eps)).clamp(min=0).unsqueeze(-2)
        a = slope.clamp(-_EXTREME, _EXTREME).exp()

        # s(v) - s(0) = s(x) s(a b) (1 - e^(-a v)), a product: near 0 a difference has no digits,
        # nor slopes. By logarithms: of a step far outside quotients are 0/0
        x, last, full = a * (u - centre), logsigmoid(a * (1 - centre)), -torch.expm1(-a)
        risen = (logsigmoid(x) - last).exp() * -torch.expm1(-a * u) / full
        falling = logsigmoid(x) + logsigmoid(-x) - last - logsigmoid(a * centre)
        units = torch.cat([u, risen], -2)
        rates = torch.cat([torch.ones_like(u), a * falling.exp() / full], -2)
        share = weight.softmax(0)
        gamma, rate = (share * units).sum(-2), (share * rates).sum(-2)
        fall = low - high
        return high + fall * gamma, fall * rate / (1 - self.eps), torch.sigmoid(-high) / self.eps
