"""What the settings in this folder are tried on: the Gaussian that has the digits' moments."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import ScoreEstimator, Solver, data
from scoresde.checks import expect


def digits() -> Tensor:
    """Dequantised handwritten digits, ``(1797, 1, 8, 8)`` in ``[-1, 1]``."""
    images = data.digits()
    return data.dequantize(images.values, bins=17, generator=torch.Generator().manual_seed(0))


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(n,)`` and covariance ``(n, n)`` of ``(N, *event_shape)``, in float64."""
    rows = rows.flatten(1).double()
    return rows.mean(0), rows.mT.cov(correction=0)


def report(
    title: str, model: ScoreEstimator, solver: Solver, truth: tuple[Tensor, Tensor], count: int
) -> None:
    """Samples, and compares mean and covariance with the truth.

    Errors are in units of what ``count`` exact samples would show: ``sqrt(tr C / count)`` for
    the mean, ``sqrt(((tr C)^2 + |C|^2) / count)`` for the covariance (Frobenius).

    Args:
        title: What is sampled.
        model: Knows the score.
        solver: Samples.
        truth: Mean and covariance of flattened events.
        count: Number of samples.

    Raises:
        ValueError: If an error is beyond 1.5 units.
    """
    x = solver.sample(model, (count,), generator=torch.Generator().manual_seed(0))
    (mean, covariance), (true_mean, true_covariance) = moments(x), truth
    trace = true_covariance.trace()
    off_mean = (mean - true_mean).norm() / (trace / count).sqrt()
    unit = ((trace**2 + true_covariance.norm() ** 2) / count).sqrt()
    off_covariance = (covariance - true_covariance).norm() / unit
    print(
        f"{title}, {count} samples: error of the mean {off_mean:.2f} and of the covariance "
        f"{off_covariance:.2f}, in units of the sampling error"
    )
    worst = float(torch.stack([off_mean, off_covariance]).max())
    expect(worst < 1.5, "samples", "moments within 1.5 sampling errors", worst)
