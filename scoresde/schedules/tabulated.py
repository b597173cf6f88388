"""A log-SNR through given values, as discrete-time models have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.checks import expect, numbers
from scoresde.schedules.log_linear import LogLinear

_WHOLE = 0.02
"""How near to a step is that step: levels in float32 tell thousandths of it apart."""


class Tabulated(LogLinear):
    """Log-SNR through one value per time step of a discrete model (Ho et al. 2020, DDPM).

    Step ``k`` of ``N`` is time ``(k + 1)/N``, so that the first is ``eps = 1/N`` and the last is 1.
    At these times the log-SNR is what it is given as, and between them a monotone cubic with a
    continuous slope (Fritsch and Butland 1984); all else is as of `LogLinear`.

    Args:
        log_snr: At every step: two numbers or more, each below the one before.

    Raises:
        ValueError: If there are fewer, they do not fall, or are not finite.

    Example:
        >>> import torch
        >>> from scoresde import Tabulated
        >>> schedule = Tabulated([4.0, 1.0, -5.0])
        >>> schedule.log_snr(torch.tensor([1 / 3, 2 / 3, 1.0]))
        tensor([ 4.,  1., -5.])
    """

    references = "ho2020 fritsch1984"
    example: ClassVar = {"log_snr": [7.0, 3.0, 2.0, -1.0, -4.0, -9.0]}

    knots: Tensor
    slopes: Tensor

    def __init__(self, log_snr: Sequence[float] | Tensor) -> None:
        with torch.device("cpu"):  # where numbers are looked at, whatever the default
            knots = numbers("log_snr", log_snr).detach().double().flatten()
        falls = len(knots) > 1 and bool(knots.isfinite().all() and (knots.diff() < 0).all())
        expect(falls, "log_snr", "two finite numbers or more that fall", log_snr)
        super().__init__(float(knots[0]), float(knots[-1]), eps=1 / len(knots))
        secants = knots.diff() * len(knots)
        # harmonic means, with which a cubic between two knots has no turning point
        inner = 2 * secants[1:] * secants[:-1] / (secants[1:] + secants[:-1])
        slopes = torch.cat([secants[:1], inner, secants[-1:]])
        self.register_buffer("knots", knots.unsqueeze(-1).clone())  # its own, as a constant's are
        self.register_buffer("slopes", slopes.unsqueeze(-1))

    @classmethod
    def of(cls, alphas_cumprod: Tensor) -> Tabulated:
        """From the products of ``1 - beta``, which are squares of ``alpha``.

        Raises:
            ValueError: If they are not between 0 and 1, or do not fall.
        """
        inside = bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all())
        expect(inside, "alphas_cumprod", "numbers between 0 and 1", alphas_cumprod)
        return cls(alphas_cumprod.double().logit())

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots, slopes = self.constants(t, "knots", "slopes")
        count = len(knots)
        place = t.clamp(self.eps, 1.0) * count - 1
        first = place.detach().long().clamp(0, count - 2)
        u = place - first
        low, rise = knots[first, 0], knots[first + 1, 0] - knots[first, 0]
        early, late = slopes[first, 0] / count, slopes[first + 1, 0] / count
        # Hermite's cubic, by what it is beyond the straight line
        bend, twist = early - rise, early + late - 2 * rise
        log_snr = low + u * rise + u * (1 - u) * (bend - u * twist)
        slope = rise + (1 - 2 * u) * bend - u * (2 - 3 * u) * twist
        return log_snr, slope * count, torch.sigmoid(-knots[0, 0]) / self.eps

    def step(self, noise_level: Tensor) -> Tensor:
        """The step whose noise level ``log(sigma/alpha)`` is given, linear between two of them.

        Beyond the first and the last, it is those.
        """
        (knots,) = self.constants(noise_level, "knots")
        known = knots[:, 0] / -2
        clamped = torch.maximum(torch.minimum(noise_level, known[-1]), known[0])
        last = torch.searchsorted(known, clamped.contiguous()).clamp(1, len(known) - 1)
        low, high = known[last - 1], known[last]
        step = last - 1 + (clamped - low) / (high - low)
        whole = step.round()
        return torch.where((step - whole).abs() < _WHOLE, whole, step)
