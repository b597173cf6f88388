"""Euler-Maruyama."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.fixed_step import FixedStep, Step
from scoresde.noise import Noise


@attrs.frozen
class EulerMaruyama(FixedStep):
    """``y + f h + g sqrt(h) xi`` (Maruyama 1955): for any SDE, and unstable with few steps.

    Knows nothing of the SDE's linear part: for diffusion models prefer `solvers.DDIM`, which
    costs the same.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from scoresde import SDE, Noise
        >>> from solvers import EulerMaruyama
        >>> class OrnsteinUhlenbeck(SDE):
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return torch.full_like(y, 2**0.5)
        >>> ts, noise = torch.linspace(0, 1, 101).double(), Noise(torch.manual_seed(0))
        >>> y = EulerMaruyama().integrate(OrnsteinUhlenbeck((1,)), torch.zeros(5000, 1), ts, noise)
        >>> y.var().round(decimals=1)  # 1 - exp(-2) = 0.86
        tensor(0.9000)
    """

    references = "maruyama1955"

    order = 1.0
    weak_order = 1.0
    strong_order = 1.0

    def step(self, y: Tensor, step: Step, noise: Noise, memory: Any) -> tuple[Tensor, None]:
        """See the class."""
        (field,) = step.fields
        length = step.length
        end = torch.addcmul(y, length, field.drift(y))
        if step.noise_std is not None:
            end = end + length**0.5 * field.diffusion(y) * noise(y)
        return end, None
