"""Laws of schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from scoresde.schedules import Schedule
from scoresde.testing.measures import (
    DOUBLE,
    assert_holds,
    assert_no_waiting,
    assert_same,
    assert_saved,
)
from scoresde.testing.precision import assert_single_precision


class ScheduleLaws(ABC):
    """Laws of a `scoresde.Schedule`.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.testing import ScheduleLaws
        >>> class TestMine(ScheduleLaws):
        ...     def make(self):
        ...         return VP()
        >>> TestMine().test_the_log_snr_falls()
    """

    @abstractmethod
    def make(self) -> Schedule:
        """The schedule that is tested, a new one at every call."""

    def _times(self) -> tuple[Schedule, Tensor]:
        schedule = self.make()
        u = torch.linspace(0.01, 0.99, 60, dtype=DOUBLE).unsqueeze(-1)
        return schedule, schedule.eps * (schedule.T / schedule.eps) ** u

    def test_the_log_snr_falls(self) -> None:
        """Strictly, from ``eps`` to ``T``."""
        schedule, t = self._times()
        snr = schedule.log_snr(t)
        assert_holds(
            "the log-SNR falls all the time", snr.diff(dim=0) < 0, snr.flatten()[:5].tolist()
        )

    def test_the_log_snr_is_that_of_signal_and_noise(self) -> None:
        """``2 log(alpha/sigma)``."""
        schedule, t = self._times()
        wanted = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
        assert_same(
            "log_snr = 2 log(alpha/sigma)", schedule.log_snr(t), wanted, rtol=1e-5, atol=1e-5
        )

    def test_data_are_clean_at_time_0(self) -> None:
        """``alpha(0) = 1`` and ``sigma(0) = 0``: a variance is that of the noise added since."""
        schedule, zero = self.make(), torch.zeros(1, dtype=DOUBLE)
        for name, expected in (("alpha", 1.0), ("sigma", 0.0)):
            actual = getattr(schedule, name)(zero)
            assert_same(f"{name}(0) = {expected:g}", actual, torch.full_like(actual, expected))

    def test_rates_are_derivatives(self) -> None:
        """``f = (log alpha)'`` and ``g^2 = (sigma^2)' - 2 f sigma^2``."""
        schedule, t = self._times()

        def log_alpha_and_variance(t: Tensor) -> tuple[Tensor, Tensor]:
            return schedule.log_alpha(t), schedule.sigma(t) ** 2

        derivatives: Any = torch.func.jvp(log_alpha_and_variance, (t,), (torch.ones_like(t),))
        (_, variance), (slope, growth) = derivatives
        f, g2 = schedule.rates(t)
        assert_same("f is the derivative of log alpha", f, slope.expand_as(f), rtol=1e-5, atol=1e-7)
        wanted = growth - 2 * slope * variance
        assert_same(
            "g^2 = (sigma^2)' - 2 f sigma^2", g2, wanted.expand_as(g2), rtol=1e-5, atol=1e-7
        )

    def test_single_precision(self) -> None:
        """Right to the digits of float32 over the whole range, gradients in parameters as well."""
        schedule, t = self._times()
        for name in ("alpha", "sigma"):
            small = getattr(schedule, name)(t.float())
            assert_holds(
                f"{name} has the dtype of times", small.dtype == torch.float32, small.dtype
            )
            wanted = getattr(schedule, name)(t.float().double())
            assert_same(
                f"{name} is accurate in float32", small.double(), wanted, rtol=1e-4, atol=1e-7
            )

        def find(schedule: Any, t: Tensor) -> dict[str, Tensor]:
            f, g2 = schedule.rates(t.detach())
            functions = (schedule.alpha, schedule.sigma, schedule.log_snr)
            return {"f": f, "g^2": g2, **{v.__name__: v(t.detach()) for v in functions}}

        u = torch.linspace(0, 1, 40, dtype=DOUBLE).unsqueeze(-1)
        ts = (schedule.eps * (schedule.T / schedule.eps) ** u).clamp(schedule.eps, schedule.T)
        assert_single_precision("a schedule", schedule, find, ts)

    def test_a_reading_waits_for_no_device(self) -> None:
        """Signal, noise and rates at times that are there."""
        schedule, t = self._times()
        schedule.to("meta")
        for dtype in (torch.float32, DOUBLE):
            times = t.to("meta", dtype)
            assert_no_waiting("a reading", lambda: (schedule.read(times), schedule.rates(times)))  # noqa: B023

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all its numbers."""
        schedule, t = self._times()
        assert_saved(
            "a state_dict is the whole schedule", schedule, lambda s: s.log_snr(t).detach()
        )
