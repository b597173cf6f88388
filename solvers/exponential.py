"""Exponential solvers: exact on the linear part and the noise, elementwise.

They take the denoised mean as known over a step and integrate everything else in closed form
(`scoresde.sde.Propagator`); on an SDE that knows no linear part they are Euler-Maruyama and
Adams-Bashforth.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import attrs
from torch import Tensor, nn

from scoresde.noise import Noise
from scoresde.sde import SDE, Propagator
from scoresde.solver import FixedStep


@attrs.frozen
class DDIM(FixedStep):
    """First order: the denoised mean is held over a step (Song et al. 2020; Lu et al. 2022).

    ``z_s = (sigma_s/sigma_t) z_t + alpha_s (1 - e^-h) D`` for the ODE, and its SDE form for any
    ``eta``: see `scoresde.DiagonalSDE.marginal_propagators`.
    """

    order = 1.0
    weak_order: ClassVar[float | None] = 1

    def step(
        self,
        sde: SDE,
        y: Tensor,
        t: Tensor,
        s: Tensor,
        propagator: Propagator,
        noise: Noise,
        memory: Any,
    ) -> tuple[Tensor, Any]:
        """See the class."""
        forcing, memory = self.extrapolate(sde.forcing(t, y), propagator, memory)
        end = propagator.decay * y + propagator.gain * forcing
        if propagator.noise is not None:
            end = end + propagator.noise * sde.kick(t, y, noise(y))
        return end, memory

    def extrapolate(
        self, forcing: Tensor, propagator: Propagator, memory: Any
    ) -> tuple[Tensor, Any]:
        """The forcing to hold over the step, and what to remember."""
        return forcing, None


class _Last(NamedTuple):
    forcing: Tensor
    h: Tensor


@attrs.frozen
class ExponentialMultistep(DDIM):
    """Second order, one evaluation a step (DPM-Solver++(2M), Lu et al. 2022b).

    Holds ``D + (D - D_prev)/(2 r)`` with ``r_i = h_prev,i / h_i`` for every component, at least
    1/2: one step says little about another more than twice as long. The first step, and the
    first of a component whose clock has stood still, are of first order. In law it is of second
    order where the SDE knows its noise over a step, as `scoresde.DiagonalSDE` does; elsewhere
    the noise is that at the step's start, and the order 1.
    """

    order = 2.0
    weak_order: ClassVar[float | None] = 2

    def extrapolate(
        self, forcing: Tensor, propagator: Propagator, memory: _Last | None
    ) -> tuple[Tensor, _Last]:
        """See the class."""
        now = _Last(forcing, propagator.h)
        if memory is None:
            return forcing, now
        old = memory.forcing.shape[-1]
        # no step before, or none to a clean state: nothing to extrapolate from or to
        weight = (propagator.h[..., :old] / (2 * memory.h)).nan_to_num(0.0, 0.0, 0.0)
        weight = weight.clamp(max=1.0)
        change = weight * (forcing[..., :old] - memory.forcing)
        # components that have entered since have no past
        return forcing + nn.functional.pad(change, (0, forcing.shape[-1] - old)), now
