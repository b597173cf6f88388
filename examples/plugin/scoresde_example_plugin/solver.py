"""A second-order solver with two evaluations a step."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from scoresde import SDE, FixedStep, Noise, Propagator
from scoresde.checks import expect


@attrs.frozen
class ExponentialMidpoint(FixedStep):
    """Holds the forcing of the middle of a step, found by half an exponential Euler step.

    Raises:
        ValueError: On integrating, if the equation has noise (``eta`` above 0).
    """

    order = 2.0
    weak_order: ClassVar[float | None] = None

    def step(
        self,
        sde: SDE,
        y: Tensor,
        t: Tensor,
        s: Tensor,
        propagator: Propagator,
        noise: Noise,
        memory: Any,
    ) -> tuple[Tensor, None]:
        """See `scoresde.FixedStep.step`."""
        expect(propagator.noise is None, "eta", "0: this solver takes ODEs", "an SDE with noise")
        middle = (t + s) / 2
        half = next(iter(sde.propagators(torch.stack([t, middle]), y)))
        inner = half.decay * y + half.gain * sde.forcing(t, y)
        return propagator.decay * y + propagator.gain * sde.forcing(middle, inner), None
