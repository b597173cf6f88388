"""Noise that is raised before a step (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.noise import Noise
from scoresde.sampling.grid import time_at_level
from scoresde.sampling.tape import Move
from scoresde.sdes.sde import SDE, Stage


def churning(
    sde: SDE, step: Tensor, stage: Stage, share: float
) -> tuple[Tensor, Callable[[Tensor], Move]]:
    """A longer step, and what diffuses a state to the noise at its start.

    Args:
        sde: What diffuses it.
        step: Times from which and to which a solver is to go, ``(2,)``.
        stage: Of which this is a step, and beyond which nothing is diffused.
        share: By which noise is raised.

    Returns:
        The times, ``(2,)``, and what prepares the move for states like one given. After it a solver
        has nothing to remember.
    """
    back = time_at_level(sde, step[0], math.log1p(share), stage.start)
    if back <= step[0]:
        return step, lambda like: _stay
    return torch.stack([back, step[1]]), partial(_diffusing, sde, step[0], back)


def _diffusing(sde: SDE, start: Tensor, end: Tensor, like: Tensor) -> Move:
    at = sde.at(torch.stack([start, end]).unsqueeze(-1), like)
    ahead = at[:1].propagator(at[1:])
    assert ahead.noise_std is not None
    decay, gain, noise_std = (at.cast(v) for v in (ahead.decay, ahead.gain, ahead.noise_std))
    field = next(at.fields())

    def diffuse(z: Tensor, noise: Noise, memory: Any) -> tuple[Tensor, None]:
        drift = torch.addcmul(decay * z, gain, field.forcing(z))
        diffused = torch.addcmul(drift, noise_std, field.increment(z, noise(z)))
        return diffused.reshape(z.shape), None

    return diffuse


def _stay(z: Tensor, noise: Noise, memory: Any) -> tuple[Tensor, None]:
    return z, None
