"""Heun's method."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from scoresde.fixed_step import FixedStep, Step
from scoresde.noise import Noise
from scoresde.sde import SDE


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

    def step(
        self, sde: SDE, y: Tensor, step: Step, noise: Noise, memory: Any
    ) -> tuple[Tensor, None]:
        """See the class."""
        t, s = step.t, step.s
        h = s - t
        start = sde.f(t, y)
        shift = 0.0 if step.noise is None else self._noise(sde, y, t, s, noise)
        end = sde.f(s, y + h * start + shift)
        return y + h * (start + end) / 2 + shift, None

    @staticmethod
    def _noise(sde: SDE, y: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        # both at the old state: the equation is Ito's
        variance = (sde.g(t, y) ** 2 + sde.g(s, y) ** 2) / 2
        return ((s - t) * variance).sqrt() * noise(y)
