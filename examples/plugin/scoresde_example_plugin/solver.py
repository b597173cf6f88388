"""A second-order solver with two evaluations a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde import Noise, Solver
from scoresde.equation import Equation, expect_ode
from scoresde.sampling.discontinuities import at_discontinuity, one_sided


@attrs.frozen
class ExponentialMidpoint(Solver):
    """Holds the forcing of the middle of a step, found by half an exponential Euler step.

    Raises:
        ValueError: On integrating, if the equation has noise (``eta`` above 0).
    """

    order = 2.0
    weak_order = None

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, None]]:
        """See `scoresde.Solver.walk`; yields after every step."""
        expect_ode(equation, "this solver")
        # where rates jump, a step knows them as they are on its own side
        starts, ends = one_sided(ts, at_discontinuity(equation, ts), torch.finfo(y.dtype).eps)
        for start, end in zip(starts, ends, strict=True):
            at = equation.at(torch.stack([start, (start + end) / 2, end]).unsqueeze(-1), y)
            steps = at[:1].propagator(at[1:])  # from the start to the middle, and to the end
            decay, gain = at.cast(steps.decay), at.cast(steps.gain)
            first, middle = (field.forcing for field in at[:2].fields())
            inner = decay[0] * y + gain[0] * first(y)
            y = decay[1] * y + gain[1] * middle(inner)
            yield y, None
