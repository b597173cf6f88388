"""Estimators side by side, as one of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.checks import expect, instance
from scoresde.estimator import Denoiser, ScoreEstimator
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import SDECoefficients
from scoresde.selection import Selectable


class Stacked(Selectable):
    """Estimators of the same SDE, along the last axis of a batch.

    This is no estimator itself, as it takes only states of all observations.

    Args:
        estimators: None of which has a batch of its own.

    Raises:
        TypeError: If one is no estimator.
        ValueError: If there are none, or an SDE is another one.
    """

    def __init__(self, estimators: Sequence[ScoreEstimator]) -> None:
        expect(len(estimators) > 0, "posteriors", "at least one observation", "none")
        for estimator in estimators:
            instance("posteriors", estimator, ScoreEstimator)
            same = estimator.sde is estimators[0].sde and not estimator.batch_shape
            expect(same, "posteriors", "estimators of one SDE, without a batch", estimator)
        super().__init__()
        self.estimators = nn.ModuleList(estimators)

    @property
    def sde(self) -> SDE:
        """The SDE of all of them."""
        return cast(ScoreEstimator, self.estimators[0]).sde

    @property
    def batch_shape(self) -> torch.Size:
        """``(n,)``."""
        return torch.Size([len(self.estimators)])

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """Not asked for: the axis of observations is not one of samples."""
        raise NotImplementedError("Stacked: its batch is of observations, not of samples")

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `scoresde.ScoreEstimator.denoisers`."""
        each = [
            cast(ScoreEstimator, estimator).denoisers(at.part(index, state), condition)
            for estimator, index, state in zip(
                self.estimators, self._indices(at.t), at.like.unbind(-2), strict=True
            )
        ]

        def stacked(denoisers: Sequence[Denoiser], z: Tensor) -> Tensor:
            means = [each(state) for each, state in zip(denoisers, z.unbind(-2), strict=True)]
            return torch.stack(means, -2)

        return map(partial(partial, stacked), zip(*each, strict=True))

    def _indices(self, t: Tensor) -> Iterator[Any]:
        """Where the times ``(k, *, 1 | blocks | n)`` of every estimator are."""
        for i in range(len(self.estimators)):
            of_all = t.ndim == 2
            yield slice(None) if of_all else (*[slice(None)] * (t.ndim - 2), i % t.shape[-2])
