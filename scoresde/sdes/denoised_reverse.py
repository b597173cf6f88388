"""Reverse equations whose forcing is the denoised mean, for any form of their coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.equation import Field, Forcing
from scoresde.sdes.sde_coefficients import ReverseCoefficients


class DenoisedReverse(ReverseCoefficients):
    """Coefficients with the denoised mean as forcing: nothing cancels at small ``sigma``.

    Takes the arguments of `scoresde.sdes.sde_coefficients.ReverseCoefficients`; those of the SDE
    have a ``diffusion``.
    """

    forward: Any
    _by_time: Sequence[Sequence[Any]] | None = None

    def fields(self) -> Iterator[Field]:
        """The forcings are the denoised means."""
        denoisers = self.forward.denoisers(self.estimator, self.condition)
        for i, denoiser in enumerate(denoisers):
            drift, diffusion = partial(self._drift, i, denoiser), partial(self._diffusion, i)
            yield Field(denoiser, standard_increment, drift, diffusion)

    def _drift(self, i: int, denoiser: Forcing, z: Tensor) -> Tensor:
        slopes, responses, _ = self._rates
        return torch.addcmul(slopes[i] * z, responses[i], denoiser(z))

    def _diffusion(self, i: int, z: Tensor) -> Tensor:
        return constant_diffusion(self._rates[2][i], z)

    @property
    def _rates(self) -> Sequence[Sequence[Any]]:
        """Slope, response and diffusion by time, which exponential solvers do not need.

        Not a `functools.cached_property`, whose lock breaks graphs of `torch.compile`.
        """
        if self._by_time is None:
            rates = self.sign * self.slope, self.sign * self.response
            self._by_time = self.each(*rates, self.eta * self.forward.diffusion)
        return self._by_time


def standard_increment(y: Tensor, xi: Tensor) -> Tensor:
    """Standard normal numbers, unchanged."""
    return xi


def constant_diffusion(value: Tensor, y: Tensor) -> Tensor:
    """A coefficient, expanded to the shape of a state."""
    return value.expand_as(y)
