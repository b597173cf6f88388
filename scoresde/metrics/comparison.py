"""All metrics of generated events beside those of real ones."""

from __future__ import annotations

import attrs
from torch import Tensor

from scoresde.checks import expect
from scoresde.metrics.distances import frechet_distance, kernel_distance
from scoresde.metrics.neighbours import precision_and_recall


@attrs.frozen
class Comparison:
    """Metrics of two sets of events.

    Attributes:
        count: Of events in each.
        frechet: `frechet_distance`.
        kernel: `kernel_distance`.
        kernel_stderr: Its standard error.
        precision: Share of the second set that lies in the support of the first.
        recall: Share of the first that lies in the support of the second.

    Example:
        >>> import torch
        >>> from scoresde.metrics import compare
        >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> compare(x, x).precision
        1.0
    """

    count: int
    frechet: float
    kernel: float
    kernel_stderr: float
    precision: float
    recall: float


def compare(real: Tensor, generated: Tensor) -> Comparison:
    """All metrics of as many generated events as real ones.

    With other real events in place of generated ones this is the *floor*: what a perfect model
    would reach.

    Args:
        real: Features, ``(N, d)``.
        generated: ``(N, d)``.

    Raises:
        ValueError: If there are not as many of both, fewer than 4, or they do not fit.

    Example:
        >>> import torch
        >>> from scoresde.metrics import compare
        >>> noise = torch.Generator().manual_seed(0)
        >>> real, others = torch.randn(2, 50, 3, generator=noise)
        >>> compare(real, others).frechet < compare(real, others / 2).frechet
        True
    """
    expect(len(real) == len(generated), "generated", f"{len(real)} events", len(generated))
    kernel = kernel_distance(real, generated)
    shares = precision_and_recall(real, generated)
    return Comparison(
        count=len(real),
        frechet=frechet_distance(real, generated),
        kernel=kernel.value,
        kernel_stderr=kernel.standard_error,
        precision=shares.precision,
        recall=shares.recall,
    )
