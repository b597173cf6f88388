"""Values of a schedule at several times."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Reading:
    """Signal and noise of components on clocks of their own, and their rates on demand.

    Args:
        log_alpha: As of `scoresde.schedules.Signal`.
        sigma: Standard deviation of the noise, in the schedule's units.
        log_snr: In the schedule's units.
        rates: Returns ``f`` and ``g^2``, by the SDE's time and in the schedule's units, and their
            quotient, which clocks leave as it is where they stop.
    """

    _alpha: Tensor | None = None
    _found: tuple[Tensor, Tensor, Tensor] | None = None

    def __init__(
        self,
        log_alpha: Tensor,
        sigma: Tensor,
        log_snr: Tensor,
        rates: Callable[[], tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        self.log_alpha, self.sigma, self.log_snr = log_alpha, sigma, log_snr
        self._find = rates

    @property
    def alpha(self) -> Tensor:
        """The signal's factor."""
        if self._alpha is None:
            self._alpha = self.log_alpha.exp()
        return self._alpha

    @property
    def f(self) -> Tensor:
        """The drift's rate."""
        return self._rates[0]

    @property
    def g2(self) -> Tensor:
        """The squared diffusion."""
        return self._rates[1]

    @property
    def f_by_g2(self) -> Tensor:
        """``f/g^2``, also of what stands still."""
        return self._rates[2]

    @property
    def _rates(self) -> tuple[Tensor, Tensor, Tensor]:
        # by hand: a functools.cached_property has a lock, at which torch.compile breaks
        if self._found is None:
            self._found = self._find()
        return self._found
