"""torchsde as a solver."""

from __future__ import annotations

from typing import Any

import attrs
import torch
import torchsde
from torch import Tensor, nn

from scoresde.checks import choice, validator
from scoresde.endpoint_solver import EndpointSolver
from scoresde.equation import Equation
from scoresde.noise import Noise
from scoresde.sampling.discontinuities import at_discontinuity, one_sided


@attrs.frozen
class TorchSDE(EndpointSolver):
    """``torchsde.sdeint`` (Li et al. 2020), a reference for other solvers.

    Time runs along the grid at unit speed, so that torchsde's fixed steps are those of the grid.
    Brownian increments come from `scoresde.noise`: a step asks for one interval, at the cost of a
    normal draw, and seeds have the usual meaning.

    Args:
        method: ``"euler"``, ``"milstein"`` or ``"srk"``.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import TorchSDE
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> solver = TorchSDE(30, eta=1.0, method="srk")
        >>> x = solver.sample(model, (2000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "li2020"

    method: str = attrs.field(
        default="euler", kw_only=True, validator=validator(choice, "euler", "milstein", "srk")
    )

    @property
    def order(self) -> float:
        """The method's order without noise."""
        return 3.0 if self.method == "srk" else 1.0

    @property
    def weak_order(self) -> float:
        """The method's order where noise is additive."""
        return 2.0 if self.method == "srk" else 1.0

    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """See `scoresde.Solver.integrate`."""
        steps = _UnitSteps(equation, ts, y)
        path: Tensor = torchsde.sdeint(
            steps,
            _flat(y),
            y.new_tensor([0, len(ts) - 1]),
            bm=_Increments(steps, noise, y),
            method=self.method,
            dt=1.0,
        )
        return path[-1].reshape(y.shape)


class _UnitSteps(nn.Module):
    """The SDE in a time that gains 1 per step of the grid."""

    def __init__(self, equation: Equation, ts: Tensor, state: Tensor) -> None:
        super().__init__()
        self.equation, self.shape = equation, state.shape
        self.noise_type, self.sde_type = equation.noise_type, equation.sde_type
        starts, ends = (
            v.to(state)
            for v in one_sided(ts, at_discontinuity(equation, ts), torch.finfo(state.dtype).eps)
        )
        self.starts, self.lengths = starts, ends - starts
        self.current = 0  # a whole number is the end of one step and the start of the next

    def _time(self, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.lengths[self.current]
        return self.starts[self.current] + (u - self.current) * h, h

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        t, h = self._time(u)
        return (h * self.equation.f(t, y.reshape(self.shape))).reshape(y.shape)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        t, h = self._time(u)
        return (h.sqrt() * self.equation.g(t, y.reshape(self.shape))).reshape(y.shape)


class _Increments(torchsde.BaseBrownian):  # type: ignore[misc]
    """Independent increments, and their time integrals where a method wants them."""

    levy_area_approximation = "space-time"
    shape = property(lambda self: self.flat.shape)
    dtype = property(lambda self: self.flat.dtype)
    device = property(lambda self: self.flat.device)

    def __init__(self, steps: _UnitSteps, noise: Noise, state: Tensor) -> None:
        super().__init__()
        self.steps, self.noise, self.state, self.flat = steps, noise, state, _flat(state)

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        self.steps.current = round(float(ta))  # a method asks for a step's noise first
        h = tb - ta
        w = h**0.5 * _flat(self.noise(self.state))
        if not return_U:
            return w
        # int_a^b (W_s - W_a) ds given W_b - W_a = w: mean h w / 2, variance h^3 / 12
        return w, h * w / 2 + (h**3 / 12) ** 0.5 * _flat(self.noise(self.state))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)})"


def _flat(state: Tensor) -> Tensor:
    """Torchsde's states have two axes."""
    return state.reshape(state.shape[:-1].numel(), state.shape[-1])
