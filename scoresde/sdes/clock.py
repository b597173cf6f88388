"""Clocks: when each component starts to run through a schedule, and how fast."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import expect, numbers
from scoresde.precision import Float64Constants, Numbers

_SAME = 1e-12
"""Moments nearer to each other than that are one: what float64 rounds, many times over."""


class Clock(Float64Constants):
    """One clock per component: ``tau_i(u) = clip(speed_i (u - delay_i), 0, 1)``, in units of ``T``.

    A clock at 0 is clean data, a clock at 1 is prior noise. Speed 1 everywhere is uniform
    diffusion; speeds ``1/T_k`` per band finish band ``k`` at ``T_k`` (multi-scale diffusion,
    Batzolis et al. 2022); speed 0 keeps a component as it is (the condition of CDE), and a
    speed below 1 diffuses it less (CMDE).

    In reverse a component with a delay is finished at that time already, and the others are drawn
    given it: what is delayed most comes first (`scoresde.front`). Before its start and after its
    stop a component stands still. Before its start it is at the time at which all are at the
    ``first`` time that an SDE uses, ``tau_i >= min(speed_i, 1) first``, as scores diverge at 0.

    Args:
        speeds: Speeds along the component axis, at least 0. A component whose clock does not reach
            1 at the end keeps some of its data: who samples it observes it, or gives the SDE its
            ``mean`` and ``std``.
        delays: Delays along the component axis, from 0 to below 1, one or as many as speeds.

    Raises:
        ValueError: If a speed or a delay is out of its range or not finite, or there are other
            numbers of them.

    Example:
        >>> import torch
        >>> from scoresde import Clock
        >>> clock = Clock([1.0, 2.0, 4.0])
        >>> clock(torch.tensor([0.25]))
        tensor([0.2500, 0.5000, 1.0000])
        >>> clock.breakpoints()
        [0.25, 0.5]
    """

    references = "batzolis2022"

    speeds: Tensor
    delays: Tensor | None
    """None where no clock is delayed."""

    def __init__(self, speeds: Numbers = 1.0, delays: Numbers = 0.0) -> None:
        super().__init__()
        self.constant("speeds", speeds)
        expect(bool((self.speeds >= 0).all()), "speeds", "at least 0", speeds)
        self.constant("delays", delays)
        with torch.device("cpu"):  # where numbers are looked at, whatever the default
            given = numbers("delays", delays)
        inside = (given >= 0) & (given < 1)
        expect(bool(inside.all()), "delays", "from 0 to below 1, in units of T", delays)
        counts = {v.numel() for v in (self.speeds, given)} - {1}
        wanted = f"one, or as many as speeds: {self.speeds.numel()}"
        expect(len(counts) < 2, "delays", wanted, given.numel())
        if not (given.requires_grad or bool(given.any())):
            self.delays = None

    @classmethod
    def of(cls, speeds: Clock | Numbers, delays: Numbers = 0.0) -> Clock:
        """A clock as it is, or one of speeds and delays.

        Raises:
            ValueError: If there are delays beside a clock.
        """
        if not isinstance(speeds, Clock):
            return cls(speeds, delays)
        none = isinstance(delays, (float, int)) and not delays
        expect(none, "delays", "none beside a Clock, which has its own", delays)
        return speeds

    def check(self, blocks: Blocks) -> None:
        """Raises ``ValueError`` unless speeds and delays are along the component axis of blocks."""
        for name in ("speeds", "delays"):
            value = getattr(self, name)
            if value is not None:
                blocks.check(name, value, alone=True)

    def forward(self, u: Tensor, first: float = 0.0) -> Tensor:
        """``tau(u)``: ``(*, 1 | n)`` to ``(*, 1 | blocks | n)``.

        Args:
            u: Times.
            first: The first time that is used; from there on no clock that will run is at 0.
        """
        if self.delays is None:
            (speeds,) = self.constants(u, "speeds")
            return (speeds * u).clamp(max=1)
        reading, least, _ = self._delayed(u, first)
        return torch.maximum(reading, least).clamp(max=1)

    def rate(self, u: Tensor, first: float = 0.0) -> Tensor:
        """``d tau / d u``; 0 before a clock has started, and after it has stopped."""
        if self.delays is None:
            (speeds,) = self.constants(u, "speeds")
            return torch.where(speeds * u <= 1, speeds, torch.zeros_like(speeds))
        reading, least, speeds = self._delayed(u, first)
        # until the first time all of them leave 0
        runs = (reading >= least) | (u * speeds.clamp(min=1) < first)
        return torch.where(runs & (reading <= 1), speeds, torch.zeros_like(speeds))

    def _delayed(self, u: Tensor, first: float) -> tuple[Tensor, Tensor, Tensor]:
        """Clock times without bounds, their lower bounds, and speeds."""
        speeds, delays = self.constants(u, "speeds", "delays")
        return speeds * (u - delays), (speeds * u.clamp(max=first)).clamp(max=first), speeds

    def breakpoints(self, first: float = 0.0) -> list[float]:
        """Times in ``(0, 1)`` at which a clock stops, or starts with a delay, increasing."""
        cpu = torch.device("cpu")
        speeds = self.constant_on("speeds", cpu).flatten()
        delays = (
            torch.zeros((), device=cpu)
            if self.delays is None
            else self.constant_on("delays", cpu).flatten()
        )
        pairs = zip(*(v.tolist() for v in torch.broadcast_tensors(speeds, delays)), strict=True)
        moments = []
        for speed, delay in pairs:
            if speed > 0:
                moments += [delay + 1 / speed] + [delay + first / max(speed, 1)] * (delay > 0)
        distinct: list[float] = []
        for moment in sorted(moments):
            if 1 - moment > _SAME and (not distinct or moment - distinct[-1] > _SAME):
                distinct.append(moment)
        return distinct
