"""Euler-Maruyama."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from scoresde.noise import Noise
from scoresde.sde import SDE
from scoresde.solver import FixedStep, Step


@attrs.frozen
class EulerMaruyama(FixedStep):
    """``y + f h + g sqrt(h) xi`` (Maruyama 1955): for any SDE, and unstable with few steps.

    Knows nothing of the SDE's linear part: for diffusion models prefer `solvers.DDIM`, which
    costs the same.
    """

    sources = "maruyama1955"

    order = 1.0
    weak_order = 1.0
    strong_order = 1.0

    def step(
        self, sde: SDE, y: Tensor, step: Step, noise: Noise, memory: Any
    ) -> tuple[Tensor, None]:
        """See the class."""
        t, s = step.t, step.s
        h = s - t
        end = y + h * sde.f(t, y)
        if step.noise is not None:
            end = end + h.sqrt() * sde.g(t, y) * noise(y)
        return end, None
