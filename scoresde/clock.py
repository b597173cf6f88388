"""How fast each component runs through a schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.precision import Float64Constants, Numbers


class Clock(Float64Constants):
    """One clock per component: ``tau_i(u) = min(1, speed_i u)``, both in units of ``T``.

    A clock at 0 is clean data, a clock at 1 is prior noise. Speed 1 everywhere is uniform
    diffusion; speeds ``1/T_k`` per band finish band ``k`` at ``T_k`` (multi-scale diffusion,
    Batzolis et al. 2022); speed 0 keeps a component as it is (the condition of CDE), and a
    speed below 1 diffuses it less (CMDE).

    Args:
        speeds: Speeds along the component axis, at least 0; one of them must reach 1.

    Raises:
        ValueError: If a speed is negative or not finite.

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

    def __init__(self, speeds: Numbers = 1.0) -> None:
        super().__init__()
        self.constant("speeds", speeds)
        expect(bool((self.speeds >= 0).all()), "speeds", "at least 0", speeds)

    def forward(self, u: Tensor) -> Tensor:
        """``tau(u)``: ``(*, 1 | n)`` to ``(*, 1 | blocks | n)``."""
        (speeds,) = self.constants(u, "speeds")
        return (speeds * u).clamp(max=1)

    def rate(self, u: Tensor) -> Tensor:
        """``d tau / d u``; 0 after a clock has stopped."""
        (speeds,) = self.constants(u, "speeds")
        return torch.where(speeds * u <= 1, speeds, torch.zeros_like(speeds))

    def breakpoints(self) -> list[float]:
        """Times in ``(0, 1)`` at which a clock stops, increasing."""
        speeds = self.held("speeds", torch.device("cpu")).flatten().tolist()
        return sorted({1 / speed for speed in speeds if speed > 1})
