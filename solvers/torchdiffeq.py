"""torchdiffeq as a solver."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torchdiffeq
from torch import Tensor

from scoresde.checks import choice, positive, validator
from scoresde.endpoint_solver import EndpointSolver
from scoresde.equation import Equation, expect_ode
from scoresde.noise import Noise
from scoresde.sampling.discontinuities import at_discontinuity, one_sided

_ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Methods and their orders, from their tableaux."""


@attrs.frozen
class TorchDiffEq(EndpointSolver):
    """``torchdiffeq.odeint`` (Chen et al. 2018), for the probability-flow ODE.

    An adaptive method chooses one step for the whole batch, so a sample depends slightly on its
    neighbours; a fixed one takes the steps of the grid.

    Args:
        method: Adaptive (``"dopri5"``, ``"dopri8"``, ``"bosh3"``, ``"fehlberg2"``,
            ``"adaptive_heun"``) or fixed (``"euler"``, ``"midpoint"``, ``"heun2"``, ``"heun3"``,
            ``"rk4"``).
        rtol: Relative tolerance of adaptive methods.
        atol: Absolute tolerance of adaptive methods.

    Raises:
        FloatingPointError: On integrating with an adaptive method, if the field is NaN or infinite
            at the start, or torchdiffeq gives up: it is so on the way, or stiff.
        ValueError: If the method is unknown or a tolerance not positive; on integrating, if the
            equation has noise (``eta`` above 0).

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import TorchDiffEq
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = TorchDiffEq(method="dopri5").sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "chen2018"
    laws: ClassVar = {"adaptive": True}

    weak_order = None

    method: str = attrs.field(
        default="dopri5", kw_only=True, validator=validator(choice, *_ADAPTIVE, *_FIXED)
    )
    rtol: float = attrs.field(default=1e-5, kw_only=True, validator=validator(positive))
    atol: float = attrs.field(default=1e-5, kw_only=True, validator=validator(positive))

    @property
    def order(self) -> float:
        """The method's order."""
        return {**_ADAPTIVE, **_FIXED}[self.method]

    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """See `scoresde.Solver.integrate`."""
        if not y.numel():  # nothing has no error to be measured
            return y
        expect_ode(equation, "torchdiffeq")
        times = ts[[0, -1]].to(y)
        # left alone, an adaptive method looks past the end, where the SDE may not exist: with
        # its last step, and when it tries out its first
        options = {"step_t": times[-1:], "first_step": (times[-1] - times[0]) / 100}
        inside = times.new_tensor(equation.breakpoints())
        inside = inside[(inside > times[0]) & (inside < times[-1])]
        if len(inside):
            options["jump_t"] = inside
        if self.method in _ADAPTIVE:
            return self._odeint(equation, y, times, options)
        # step by step: no step looks across a time at which rates jump
        ends = one_sided(ts, at_discontinuity(equation, ts), torch.finfo(y.dtype).eps)
        for step in torch.stack(ends, -1).to(y):
            y = self._odeint(equation, y, step, {})
        return y

    def _odeint(
        self, equation: Equation, y: Tensor, times: Tensor, options: dict[str, Tensor]
    ) -> Tensor:
        field = _Watched(equation) if self.method in _ADAPTIVE else equation.f
        try:
            path: Tensor = torchdiffeq.odeint(
                field, y, times, method=self.method, rtol=self.rtol, atol=self.atol, options=options
            )
        except AssertionError as error:
            reason = getattr(field, "failure", None) or "the field may be stiff there"
            raise FloatingPointError(
                f"torchdiffeq ({self.method}) gave up between times {times[0]:g} and "
                f"{times[-1]:g}: {error}; {reason}"
            ) from error
        return path[-1]


class _Watched:
    """A field that remembers where it was last no number, and stops if that is where it starts."""

    def __init__(self, equation: Equation) -> None:
        self.equation, self.asked, self.failure = equation, False, ""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        value = self.equation.f(t, y)
        good = torch.isfinite(value)
        if not bool(good.all()):
            *sample, component = (~good).nonzero()[0].tolist()
            self.failure = (
                f"the field is NaN or infinite at time {float(t):g}, of sample "
                f"{sample[0] if len(sample) == 1 else tuple(sample)} in component {component}"
            )
            if not self.asked:
                raise FloatingPointError(self.failure)
        self.asked = True
        return value
