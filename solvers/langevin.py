"""Langevin corrector."""

from __future__ import annotations

import attrs
from torch import Tensor

from scoresde.checks import positive, validator, whole
from scoresde.noise import Noise
from scoresde.reverse import ReverseSDE


@attrs.frozen
class Langevin:
    """Steps of Langevin dynamics at one noise level, after every step of a solver.

    ``z + d (alpha D - z) + sqrt(2 d) sigma xi`` with ``d = 2 snr^2``: a step of length
    ``z + d (alpha D - z) + sqrt(2 d) sigma xi`` with ``d = 2 snr^2``: a step of length
    ``d sigma_i^2`` along the score, for every component in units of its own noise (Song et al.
    2021, algorithm 4, with the mean of its step length, which depends there on the other samples of
    the batch). Corrects errors of the solver towards ``p_t``; with few steps of the solver this is
    annealed Langevin dynamics.

    Args:
        steps: Steps after every step of the solver; each costs one evaluation.
        snr: Signal-to-noise ratio of a step.

    Raises:
        ValueError: If ``steps`` is not a whole number of at least 1, or ``snr`` not positive.

    Example:
        >>> from solvers import DDIM, Langevin
        >>> DDIM(50, eta=1.0, corrector=Langevin()).corrector
        Langevin(steps=1, snr=0.16)
    """

    references = "song2021"

    steps: int = attrs.field(default=1, validator=validator(whole, 1))
    snr: float = attrs.field(default=0.16, validator=validator(positive))

    def __call__(self, reverse: ReverseSDE, z: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """The state ``z``, corrected at a time ``t`` of the SDE itself."""
        sde, size = reverse.sde, 2 * self.snr**2
        at = sde.at(t.reshape(1, 1), z)
        ((alpha,), (sigma,)) = (at.cast(v).unbind() for v in at.kernel)
        (denoise,) = at.denoisers(reverse.estimator, reverse.condition)
        for _ in range(self.steps):
            pull = alpha * denoise(z) - z
            z = z + size * pull + (2 * size) ** 0.5 * (sigma * noise(z))
        return z
