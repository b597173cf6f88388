"""Times at which rates jump, and the steps of a grid between them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from scoresde.equation import Equation

_OFFSET = 16
"""Roundings by which a step keeps off a jump: more than arithmetic on a time may lose."""


def at_discontinuity(equation: Equation, ts: Tensor) -> Tensor:
    """Which of some times are breakpoints, where rates jump."""
    breakpoints = equation.breakpoints()
    if not breakpoints:  # mostly
        return torch.zeros_like(ts, dtype=torch.bool)
    return torch.isclose(ts, ts.new_tensor(breakpoints).unsqueeze(-1), rtol=1e-9, atol=0).any(0)


def segments(equation: Equation, ts: Tensor) -> list[tuple[int, int]]:
    """Indices ``(first, last)`` of the parts of a grid within which rates do not jump."""
    inner = (at_discontinuity(equation, ts)[1:-1].nonzero().flatten() + 1).tolist()
    return list(itertools.pairwise([0, *inner, len(ts) - 1]))


def one_sided(ts: Tensor, discontinuous: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Starts and ends of steps; at a jump of the rates, slightly inside the step.

    Args:
        ts: Increasing times.
        discontinuous: Where rates jump, see `at_discontinuity`.
        precision: Of the numbers in which steps are taken.
    """
    if not bool(discontinuous.any()):  # mostly
        return ts[:-1], ts[1:]
    offset = discontinuous * ts.abs() * _OFFSET * precision
    return ts[:-1] + offset[:-1], ts[1:] - offset[1:]


class TimeWarp:
    """Times as a function of how far one is along a grid, from 0 at its start to 1 at its end.

    Args:
        times: The grid, increasing or decreasing.
        discontinuous: Whether rates jump at its start and at its end, which are then avoided.
        precision: Of the numbers in which steps are taken.
    """

    def __init__(self, times: Tensor, discontinuous: tuple[bool, bool], precision: float) -> None:
        offset = _OFFSET * precision * times[[0, -1]].abs() * times.new_tensor(discontinuous)
        self.times = times.clone()
        self.times[0] += offset[0] * (times[1] - times[0]).sign()
        self.times[-1] -= offset[1] * (times[1] - times[0]).sign()

    def __call__(self, part: Tensor) -> Tensor:
        """Times, ``(*)``, at parts of the way ``(*)`` in ``[0, 1]``."""
        place = part * (len(self.times) - 1)
        i = place.long().clamp(max=len(self.times) - 2)
        return torch.lerp(self.times[i], self.times[i + 1], place - i)
