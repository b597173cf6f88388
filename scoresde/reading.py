"""What a schedule has said of several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Reading:
    """The levels of components on clocks of their own, and their rates when asked for.

    Args:
        log_alpha: As of `scoresde.schedules.Signal`, as the next two.
        sigma: Standard deviation of the noise, in the schedule's units.
        log_snr: In the schedule's units.
        rates: Finds ``f`` and ``g^2``, by the SDE's time and in the schedule's units.

    Example:
        >>> import torch
        >>> from scoresde import EDM
        >>> from scoresde.reading import Reading
        >>> *levels, rates = EDM().read(torch.tensor([2.0, 3.0]))
        >>> Reading(*levels, lambda: rates(None))[:1].g2
        tensor([4.])
    """

    _found: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        log_alpha: Tensor,
        sigma: Tensor,
        log_snr: Tensor,
        rates: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        self.log_alpha, self.sigma, self.log_snr = log_alpha, sigma, log_snr
        self._find = rates

    def __getitem__(self, index: Any) -> Reading:
        """That of some of the times."""
        return Reading(
            self.log_alpha[index],
            self.sigma[index],
            self.log_snr[index],
            lambda: (self.f[index], self.g2[index]),
        )

    @property
    def f(self) -> Tensor:
        """The drift's rate."""
        return self._rates[0]

    @property
    def g2(self) -> Tensor:
        """The squared diffusion."""
        return self._rates[1]

    @property
    def _rates(self) -> tuple[Tensor, Tensor]:
        # by hand: a functools.cached_property has a lock, at which torch.compile breaks
        if self._found is None:
            self._found = self._find()
        return self._found
