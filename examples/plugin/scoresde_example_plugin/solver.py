"""A second-order solver with two evaluations a step."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from scoresde import SDE, FixedStep, Noise, Step
from scoresde.checks import expect


@attrs.frozen
class ExponentialMidpoint(FixedStep):
    """Holds the forcing of the middle of a step, found by half an exponential Euler step.

    Raises:
        ValueError: On integrating, if the equation has noise (``eta`` above 0).
    """

    order = 2.0
    weak_order = None

    def step(
        self, sde: SDE, y: Tensor, step: Step, noise: Noise, memory: Any
    ) -> tuple[Tensor, None]:
        """See `scoresde.FixedStep.step`."""
        expect(step.noise is None, "eta", "0: this solver takes ODEs", "an SDE with noise")
        middle = (step.t + step.s) / 2
        half = sde.propagator(step.t.reshape(1), middle.reshape(1), y)
        inner = half.decay * y + half.gain * step.force(y)
        return step.decay * y + step.gain * sde.forcing(middle, inner), None
