"""Noise levels of conditions: clocks that run slower for the parts that are given.

The conditional estimators of Batzolis et al. 2022 are one joint diffusion, and differ in the noise
``r = sigma/alpha`` that the condition ends with: 0 (CDE), that of the rest (CDiffE), or some in
between (CMDE), which may shrink while an estimator is trained (VS-CMDE).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from scoresde.bases import Joint
from scoresde.checks import expect, instance, real, whole
from scoresde.precision import cast_like, shallow_copy
from scoresde.schedules import Schedule
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE

_POINTS, _ROUNDS = 65, 8
"""A speed is sought among so many, so often, each time between two neighbours: to 64^-8 = 4e-15."""


class SlowedClock(Clock):
    """``factor tau``: a clock that runs slower for some components, or stands still.

    Args:
        clock: The clock that is slowed.
        factors: Along the component axis, from 0 to 1.

    Example:
        >>> import torch
        >>> from scoresde import Clock
        >>> from scoresde.conditioning import SlowedClock
        >>> SlowedClock(Clock([1.0, 2.0]), [0.5, 1.0])(torch.tensor([0.25, 0.25]))
        tensor([0.1250, 0.5000])
    """

    def __init__(self, clock: Clock, factors: Tensor) -> None:
        super().__init__(factors)
        self.clock = clock

    def factors(self, u: Tensor) -> Tensor:
        """The factors in the dtype and on the device of times."""
        return self.constants(u, "speeds")[0]

    def forward(self, u: Tensor, first: float = 0.0) -> Tensor:
        """See the class."""
        tau: Tensor = self.factors(u) * self.clock(u, first)
        return tau

    def rate(self, u: Tensor, first: float = 0.0) -> Tensor:
        """See the class."""
        return self.factors(u) * self.clock.rate(u, first)

    def breakpoints(self, first: float = 0.0) -> list[float]:
        """The breakpoints of the clock."""
        return self.clock.breakpoints(first)


class AnnealedClock(SlowedClock):
    """A `SlowedClock` that is faster at the start of training (VS-CMDE).

    In training mode, after ``n`` of ``N`` updates, the condition's last noise ``r(n)`` has ``1/r``
    linear in ``n``, from that of the rest to that of the factors (Batzolis et al. 2022, section
    4.4):

        r(n) = N end start / (n (start - end) + N end),     n <= N, then ``end``

    In evaluation mode it is the slow clock, so that losses of different updates can be compared.

    Args:
        clock: The clock that is slowed.
        factors: At the end, along the component axis.
        schedule: Relates factors to noise levels.
        updates: ``N``.

    Raises:
        ValueError: If ``updates`` is no whole number above 0.

    Example:
        >>> import torch
        >>> from scoresde import VE, Clock
        >>> from scoresde.conditioning import AnnealedClock, factor_of_noise
        >>> schedule = VE(0.01, 50.0)
        >>> slow = torch.cat([factor_of_noise(schedule, 1.0), torch.ones(1)])
        >>> clock = AnnealedClock(Clock(), slow, schedule, updates=100)
        >>> def sigma(): return schedule.sigma(clock(torch.ones(1)).double())
        >>> sigma().round(decimals=2)
        tensor([50., 50.], dtype=torch.float64)
        >>> clock.before_update(50)
        >>> sigma().round(decimals=2)
        tensor([ 1.9600, 50.0000], dtype=torch.float64)
        >>> _ = clock.eval()
        >>> sigma().round(decimals=2)
        tensor([ 1., 50.], dtype=torch.float64)
    """

    now: Tensor

    def __init__(self, clock: Clock, factors: Tensor, schedule: Schedule, updates: int) -> None:
        super().__init__(clock, factors)
        whole("updates", updates, 1)
        self.updates = updates
        # not a part of this module: its numbers are the SDE's
        self._schedule = (schedule,)
        self.register_buffer("now", torch.ones_like(self.speeds), persistent=False)

    def factors(self, u: Tensor) -> Tensor:
        """The factors of this update, or in evaluation mode those of the end."""
        return self.constants(u, "now" if self.training else "speeds")[0]

    def before_update(self, update: int) -> None:
        """Sets the clock for the update after ``update`` ones; `scoresde.training` calls it."""
        (schedule,), share = self._schedule, min(update / self.updates, 1.0)
        final = self.constant_on("speeds", torch.device("cpu"))
        start, end = (_noise(schedule, u) for u in (torch.ones_like(final), final))
        value = 1 / (share / end + (1 - share) / start)
        with torch.no_grad():
            self.now.copy_(cast_like(final if share == 1 else _factor(schedule, value), self.now))


def factor_of_noise(schedule: Schedule, noise: float) -> Tensor:
    """The factor by which a clock is slowed that ends at a given noise, ``(1 | blocks | n)``.

    Args:
        schedule: Whose ``sigma/alpha`` is to be that of the factor's time, ``factor * T``.
        noise: 0 for a clock that stands still, infinite for one that is not slowed.

    Raises:
        ValueError: If ``noise`` is no number, negative, or more than the schedule has.

    Example:
        >>> from scoresde import VE
        >>> from scoresde.conditioning import factor_of_noise
        >>> VE(0.01, 50.0).sigma(factor_of_noise(VE(0.01, 50.0), 0.5)).round(decimals=4)
        tensor([0.5000], dtype=torch.float64)
    """
    one = torch.ones(schedule.width, dtype=torch.float64, device="cpu")
    if noise != math.inf:
        real("noise", noise, 0)
    if noise in (0, math.inf):
        return one * (noise > 0)
    most = float(_noise(schedule, one).min())
    # within rounding: of a schedule that says where it ends
    expect(
        noise <= most * (1 + 1e-4),
        "noise",
        f"at most {most:.4g}, that of the schedule (or inf)",
        noise,
    )
    return _factor(schedule, one * min(noise, most))


def slowed(
    sde: DiagonalSDE, given: Collection[str], noise: float, updates: int | None = None
) -> DiagonalSDE:
    """A joint SDE of which some parts get less noise.

    Args:
        sde: Its basis is a `scoresde.Joint`.
        given: Names of the parts.
        noise: What they end with, ``sigma/alpha`` in units of the SDE's scale: 0 for CDE, infinite
            for CDiffE.
        updates: Of training, over which noise shrinks to that, see `AnnealedClock`; it does not if
            None.

    Raises:
        TypeError: If the SDE or its basis is another one.
        ValueError: If a name is unknown, no part or every part is given, or the noise is out of its
            range.

    Example:
        >>> import torch
        >>> from scoresde import VE, DiagonalSDE, Joint
        >>> from scoresde.conditioning import slowed
        >>> sde = slowed(DiagonalSDE(VE(0.01, 50.0), Joint(y=(2,), x=(3,))), ["y"], 0.5)
        >>> [round(float(v), 4) for v in sde.at(torch.ones(1)).sigma]
        [0.5, 50.0]
    """
    instance("sde", sde, DiagonalSDE)
    joint = sde.basis
    if not isinstance(joint, Joint):
        raise TypeError(f"basis: expected a Joint one, whose parts have names, got {joint}")
    joint.check(dict.fromkeys(given))
    some = 0 < len(given) < len(joint.parts)
    expect(some, "given", f"some of the parts {', '.join(joint.parts)}", ", ".join(given))
    chosen = joint.per_block(**{name: float(name in given) for name in joint.parts}) > 0
    if sde.schedule.width == joint.dim > len(joint.blocks):
        chosen = joint.blocks.expand(chosen)
    factors = torch.where(chosen, factor_of_noise(sde.schedule, noise), 1.0)
    clock = SlowedClock(sde.clock, factors)
    if updates is not None:
        clock = AnnealedClock(sde.clock, factors, sde.schedule, updates)
    clock.check(joint.blocks)
    return shallow_copy(sde, clock=clock)


@torch.no_grad()
def _noise(schedule: Schedule, u: Tensor) -> Tensor:
    """``sigma/alpha`` at times in units of the last."""
    return (-schedule.log_snr(schedule.T * u) / 2).exp()


def _factor(schedule: Schedule, noise: Tensor) -> Tensor:
    """Times in units of the last, by their noise, ``(1 | blocks | n)`` each."""
    low, high = torch.zeros_like(noise), torch.ones_like(noise)
    shares = torch.linspace(0, 1, _POINTS, dtype=noise.dtype, device=noise.device)
    for _ in range(_ROUNDS):
        points = low + (high - low) * shares.unsqueeze(-1)
        below = (_noise(schedule, points) < noise).sum(0, keepdim=True).clamp(1, _POINTS - 1)
        low, high = (points.gather(0, at).squeeze(0) for at in (below - 1, below))
    return high
