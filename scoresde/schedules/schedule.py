"""Scalar noise schedules: how much signal and how much noise there is at a time.

A schedule says that a component which is clean at time 0 is, at time ``t``,

    z_t | z_0 ~ N(alpha(t) z_0, sigma(t)^2),      dz = f z dt + g dw,
    f = (log alpha)',      g^2 = -sigma^2 lambda',      lambda = log(alpha^2 / sigma^2).

Parameters are numbers, or vectors along the component axis (`scoresde.blocks`): per block or
per component. Times carry the component axis last, ``(*, 1 | blocks | n)``, and broadcast
against the parameters. Everything has the dtype of ``t`` and is accurate in it from ``eps``
to ``T``: differences of nearly equal numbers are written with expm1, log1p and sigmoid.

A new schedule needs `Schedule.log_alpha` and `Schedule.sigma`; its rates follow by automatic
differentiation unless it knows them in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import expect, readable, real
from scoresde.internals.copies import differentiated
from scoresde.precision import Float64Constants


class Signal(NamedTuple):
    """Values of a schedule at a time: see `Schedule.read`.

    Attributes:
        rates: ``f`` and ``g^2``, evaluated on call, as samplers mostly need none. Its argument
            tells which components move, all if None: of others, whose rates may be infinite, rates
            are those at ``eps``.

    Example:
        >>> import torch
        >>> from scoresde import EDM
        >>> signal = EDM().read(torch.tensor([2.0]))
        >>> signal.sigma, signal.rates(None)
        (tensor([2.]), (tensor([0.]), tensor([4.])))
    """

    log_alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    rates: Callable[[Tensor | None], tuple[Tensor, Tensor]]


class Schedule(Float64Constants, ABC):
    """Signal and noise as functions of time.

    Args:
        T: Last time: there the data are (all but) gone.
        eps: First time that training, sampling and likelihood use: the score of data without
            a density diverges at 0.

    Raises:
        ValueError: If not ``0 < eps < T``.

    Example:
        >>> import torch
        >>> from scoresde import Schedule
        >>> class Decay(Schedule):
        ...     def log_alpha(self, t): return -t
        ...     def sigma(self, t): return torch.sqrt(-torch.expm1(-2 * t))
        >>> f, g2 = Decay().rates(torch.tensor([0.5]))
        >>> f, g2.round(decimals=4)
        (tensor([-1.]), tensor([2.]))
    """

    def __init__(self, T: float = 1.0, eps: float = 1e-3) -> None:
        super().__init__()
        real("eps", eps)
        real("T", T)
        expect(0 < eps < T < math.inf, "eps, T", "0 < eps < T", (eps, T))
        self.T, self.eps = float(T), float(eps)

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal's factor, ``log alpha(t)``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, ``sigma(t)``."""

    def alpha(self, t: Tensor) -> Tensor:
        """The signal's factor, ``alpha(t)``."""
        return self.log_alpha(t).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        """``lambda(t) = log(alpha^2 / sigma^2)``, infinite where ``sigma`` is 0."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift rate ``f(t) = (log alpha)'`` and ``g(t)^2 = -sigma^2 lambda'``."""

        def logs(t: Tensor) -> tuple[Tensor, Tensor]:
            return self.log_alpha(t), self.log_snr(t)

        t = t.clamp(min=1e-6 * self.eps)  # at 0 the slope of the log-SNR is infinite
        derivatives: tuple[Tensor, Tensor] = torch.func.jvp(logs, (t,), (torch.ones_like(t),))[1]
        f, log_snr_rate = derivatives
        return f, -(self.sigma(t) ** 2) * log_snr_rate

    def read(self, t: Tensor) -> Signal:
        """Signal, noise and rates at once.

        Values at time 0 have no derivatives: those of a standard deviation and of the log-SNR are
        infinite there, and would make a learned schedule's gradients NaN.

        Args:
            t: Times, ``(*, 1 | blocks | n)``.
        """
        # mostly there is no such time, and that is cheap to know
        moving = readable(t) and int(t.count_nonzero()) == t.numel()
        if moving or not any(map(differentiated, (t, *self.parameters()))):
            return self._signal(t, t)
        first = t == 0
        signal = self._signal(t.masked_fill(first, self.eps), t)
        with torch.no_grad():
            zero = t.new_zeros(1)
            start = self._signal(zero, zero)
        log_alpha, sigma, log_snr = (
            torch.where(first, a, v) for a, v in zip(start[:3], signal[:3], strict=True)
        )
        return Signal(log_alpha, sigma, log_snr, signal.rates)

    def _signal(self, t: Tensor, rated: Tensor) -> Signal:
        """Signal and noise at ``t``, which is not 0, and the rates at ``rated``, which may be.

        Schedules that share work between them override it.
        """
        rates = partial(self._rates_where, rated)
        return Signal(self.log_alpha(t), self.sigma(t), self.log_snr(t), rates)

    def _rates_where(self, t: Tensor, moving: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.rates(self._rated(t, moving))

    def _rated(self, t: Tensor, moving: Tensor | None) -> Tensor:
        """Times at which rates are numbers, whether they are asked for or not."""
        return t if moving is None else torch.where(moving, t, self.eps)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha(t), sigma(t))``."""
        return self.alpha(t), self.sigma(t)
