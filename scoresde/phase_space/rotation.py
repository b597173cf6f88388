"""The rotation of the probability flow of phase space."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.phase_space.dynamics import Dynamics, PhaseKernel
from scoresde.phase_space.steps import magnus
from scoresde.precision import Float64Constants


class Rotation(Float64Constants):
    """Orthogonal ``O`` with which ``R = L O`` solves the flow of pure noise.

    It starts where data are forgotten, so that all have the same ``R``.

    Args:
        dynamics: Of position and velocity.
    """

    rotations: Tensor

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        origins, _ = dynamics.of_coordinate(dynamics.constant_on("knots", torch.device("cpu")))
        rotations = [torch.eye(dynamics.copies).to(origins)]
        for rotation in magnus(dynamics, origins[1:], origins[:-1], _rotation_rate).flip(0):
            rotations.append(rotation @ rotations[-1])
        self.constant("rotations", torch.stack(rotations[::-1]))

    def __call__(self, dynamics: Dynamics, s: Tensor) -> Tensor:
        """At some ``s``, ``(*,)``: ``(*, k, k)``.

        Args:
            dynamics: Those of the constructor.
            s: In float64.
        """
        (knots,), (rotations,) = dynamics.constants(s, "knots"), self.constants(s, "rotations")
        after = torch.searchsorted(knots, dynamics.coordinate(s).detach()).clamp(max=len(knots) - 1)
        origins, _ = dynamics.of_coordinate(knots)
        return magnus(dynamics, origins[after], s, _rotation_rate) @ rotations[after]


def _rotation_rate(kernel: PhaseKernel) -> Tensor:
    return kernel.rotation_rate
