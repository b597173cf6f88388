"""What an SDE says at given times, one quantity at a time and per component."""

import torch

from scoresde import ReverseSDE
from scoresde.estimator import DirectScoreEstimator
from scoresde.propagator import Propagator
from scoresde.sdes.diagonal_coefficients import Bridge
from scoresde.sdes.sde_coefficients import Kernel


class Nothing(DirectScoreEstimator):
    """No score, for what does not depend on it."""

    def score(self, z, t, condition=None):
        return torch.zeros_like(z)


def at(sde, t, dim=None):
    return sde.at(t, None if dim is None else t.new_empty(dim))


def rates(sde, t, dim=None):
    now = at(sde, t, dim)
    return now.blocks.expand(now.f), now.blocks.expand(now.g2)


def log_snr(sde, t, dim=None):
    now = at(sde, t, dim)
    return now.blocks.expand(now.log_snr)


def level(sde, t):
    return sde.at(t).noise_level


def levels(sde, t):
    return sde.at(t).noise_levels


def transition(sde, s, t, dim=None):
    return Kernel(*at(sde, s, dim).transition(at(sde, t, dim)))


def bridge(sde, s, t, dim=None):
    return Bridge(*at(sde, s, dim).bridge(at(sde, t, dim)))


def _step(start, end, like):
    step = start.propagator(end).expand(start.blocks)
    return Propagator(*(None if v is None else v.to(like) for v in step))


def propagator(sde, t, s, like):
    return _step(sde.at(t, like), sde.at(s, like), like)


def reverse_propagator(sde, t, s, like, eta):
    equation = ReverseSDE(Nothing(sde), eta)
    return _step(equation.at(-t, like), equation.at(-s, like), like)


def reverse(sde, t, like, eta):
    return ReverseSDE(Nothing(sde), eta).at(-t, like)
