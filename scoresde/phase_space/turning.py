"""By how much the probability flow of phase space turns."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.phase_space.dynamics import Dynamics, PhaseKernel
from scoresde.phase_space.steps import magnus
from scoresde.precision import Float64Constants


class Turning(Float64Constants):
    """Orthogonal ``O`` with which ``R = L O`` solves the flow of pure noise.

    Counted from where there is nothing left of data, so that all who ask have the same ``R``.

    Args:
        dynamics: Of position and velocity.

    Example:
        >>> import torch
        >>> from scoresde import Dynamics
        >>> from scoresde.phase_space.turning import Turning
        >>> pair, s = Dynamics.cld(), torch.tensor([0.5, 1.0]).double()
        >>> turn = Turning(pair)(pair, s)
        >>> torch.allclose(turn @ turn.mT, torch.eye(2).double())
        True
    """

    turns: Tensor

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        knots, _ = dynamics.unplace(dynamics.constant_on("places", torch.device("cpu")))
        turns = [torch.eye(dynamics.copies).to(knots)]
        for turn in magnus(dynamics, knots[1:], knots[:-1], _turning).flip(0):
            turns.append(turn @ turns[-1])
        self.constant("turns", torch.stack(turns[::-1]))

    def __call__(self, dynamics: Dynamics, s: Tensor) -> Tensor:
        """At some ``s``, ``(*,)``: ``(*, k, k)``.

        Args:
            dynamics: Those that this was made of.
            s: How much has been diffused, in float64.
        """
        (places,), (turns,) = dynamics.constants(s, "places"), self.constants(s, "turns")
        after = torch.searchsorted(places, dynamics.place(s).detach()).clamp(max=len(places) - 1)
        knots, _ = dynamics.unplace(places)
        return magnus(dynamics, knots[after], s, _turning) @ turns[after]


def _turning(kernel: PhaseKernel) -> Tensor:
    return kernel.turning
