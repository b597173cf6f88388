"""The history of a training run."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from scoresde.estimator import ScoreEstimator


@attrs.frozen
class History:
    """Measurements of a training run.

    Attributes:
        steps: Steps after which the held-out loss was measured.
        losses: Mean training loss since the measurement before.
        held_out: Held-out loss of the averaged weights.
        lr: Learning rate of the last update before it.
        norms: Mean norm of the gradient before clipping, since the measurement before, over
            updates whose gradient was finite.
        best: The step whose averaged weights were kept.
        seconds: Wall-clock time.
        stopped: Whether it has ended early, by ``Training.patience``.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.training import Training
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> model = Denoising(sde, ResidualMLP((2,), width=8, depth=1))
        >>> training = Training(steps=4, measurements=2)
        >>> history = training.fit(model, torch.randn(100, 2), progress=False)
        >>> history.steps, len(history.losses)
        ([2, 4], 2)
    """

    steps: list[int]
    losses: list[float]
    held_out: list[float]
    lr: list[float]
    norms: list[float]
    best: int
    seconds: float
    stopped: bool = False


OnMeasure = Callable[[int, ScoreEstimator, History], None]
"""``(updates done, the estimator with its averaged weights, what has been measured)``."""
