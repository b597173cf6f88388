"""Solvers that yield only their last state, as those of other libraries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor

from scoresde.equation import Equation
from scoresde.noise import Noise
from scoresde.solver import Solver


@attrs.frozen
class EndpointSolver(Solver):
    """A solver that yields only its last state.

    Subclasses implement `integrate`.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, EndpointSolver, Identity
        >>> from torchdiffeq import odeint
        >>> class RungeKutta(EndpointSolver):
        ...     order, weak_order = 4.0, None
        ...     def integrate(self, equation, y, ts, noise):
        ...         return odeint(equation, y, ts.to(y), method="rk4")[-1]
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> RungeKutta(steps=20).sample(model, (5,)).shape
        torch.Size([5, 2])
    """

    @abstractmethod
    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """See `scoresde.Solver.integrate`."""

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The end alone."""
        yield self.integrate(equation, y, ts, noise), None
