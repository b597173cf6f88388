"""Clocks by which drafts with different times take their steps together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.sdes.clock import Clock


class WarpedClock(Clock):
    """Clocks of several drafts, as functions of how far each is along its times.

    Args:
        times: Of the drafts, ``(drafts, steps + 1)``, in units of ``T``.
        clock: From those to what the blocks read, ``(*, drafts)`` to ``(*, blocks, drafts)``.
        blocks: How many.
        eps: Last of the times that are shared, in units of ``T``.
        discontinuities: Those of them at which clocks start or stop, or blocks enter, in the same
            units.
    """

    def __init__(
        self,
        times: Tensor,
        clock: Callable[[Tensor], Tensor],
        blocks: int,
        eps: float,
        discontinuities: Tensor,
    ) -> None:
        super().__init__(torch.ones(blocks * len(times)))
        self.times, self.clock, self.eps, self.discontinuities = times, clock, eps, discontinuities

    def forward(self, u: Tensor, first: float = 0.0) -> Tensor:
        """Between two times as between two of those that are shared."""
        count = self.times.shape[-1] - 1
        position = (1 - u.squeeze(-1)) / (1 - self.eps) * count
        whole = position.round()
        position = torch.where((position - whole).abs() < 1e-9, whole, position).clamp(0, count)
        step = position.long().clamp(max=count - 1)
        times = torch.lerp(self.times[:, step], self.times[:, step + 1], position - step)
        return self.clock(times.movedim(0, -1)).flatten(-2)

    def breakpoints(self, first: float = 0.0) -> list[float]:
        """See the class."""
        times: list[float] = self.discontinuities.flip(0).tolist()
        return times
