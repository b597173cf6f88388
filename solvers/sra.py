"""A strong stochastic Runge-Kutta method."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.fixed_step import FixedStep, Step
from scoresde.noise import Noise


@attrs.frozen
class SRA(FixedStep):
    """Strong order 3/2 for additive noise, two evaluations a step ("SRA1", Roessler 2010).

    With ``I_1`` the increment of the Brownian motion over a step of length ``h`` and
    ``I_10 = int (w - w_t) ds``, and nothing but ``f`` and ``g``:

        f_2 = f(t + 3h/4, y + 3h/4 f(t, y) + 3/2 g(s) I_10/h)
        y_s = y + h (f(t, y) + 2 f_2)/3 + g(s) I_1 - (g(s) - g(t)) I_10/h

    Paths converge, not only distributions: for coupled samples and expectations along paths.
    Noise that depends on the state is taken at the start of the step, at order 1/2.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import SRA
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = SRA(100, eta=1.0).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "roessler2010"

    order = 2.0
    weak_order = 2.0
    strong_order = 1.5

    nodes = (0.0, 0.75, 1.0)

    def step(self, y: Tensor, step: Step, noise: Noise, memory: Any) -> tuple[Tensor, None]:
        """See the class."""
        h, (first, inner, last) = step.length, step.fields
        start = first.drift(y)
        middle, shift = torch.addcmul(y, 0.75 * h, start), torch.zeros_like(y)
        if step.noise_std is not None:
            one, two = noise(y), noise(y)
            increment = h**0.5 * one
            mean = h**0.5 * (one + two / 3**0.5) / 2  # I_10 / h
            before, after = first.diffusion(y), last.diffusion(y)
            middle = middle + 1.5 * after * mean
            shift = after * increment - (after - before) * mean
        return torch.addcmul(y + shift, h / 3, start + 2 * inner.drift(middle)), None
