"""Heun's method."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.fixed_step import FixedStep, Step
from scoresde.noise import Noise


@attrs.frozen
class Heun(FixedStep):
    """The explicit trapezoidal rule, two evaluations a step (Karras et al. 2022, algorithm 1).

    ``y + h (f(t, y) + f(s, y + h f(t, y)))/2``; with noise, of the mean variance
    ``(g_t^2 + g_s^2)/2``, added to prediction and result alike.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import Heun
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = Heun(50).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "karras2022"

    order = 2.0
    weak_order = 2.0

    nodes = (0.0, 1.0)

    def step(self, y: Tensor, step: Step, noise: Noise, memory: Any) -> tuple[Tensor, None]:
        """See the class."""
        first, last = step.fields
        length, start, shifted = step.length, first.drift(y), y
        if step.noise_std is not None:
            # both at the old state: the equation is Ito's
            variance = (first.diffusion(y) ** 2 + last.diffusion(y) ** 2) * (length / 2)
            shifted = torch.addcmul(y, variance.sqrt(), noise(y))
        end = last.drift(torch.addcmul(shifted, length, start))
        return torch.addcmul(shifted, length, start + end, value=0.5), None
