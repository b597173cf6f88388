"""Precision and recall: whose neighbourhoods the events of one set lie in."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from scoresde.checks import whole
from scoresde.metrics.distances import checked_features
from scoresde.precision import full_precision

_ROWS = 1024
"""Of a matrix of distances that is there at a time."""


@attrs.frozen
class PrecisionAndRecall:
    """Shares of events, from 0 to 1.

    Attributes:
        precision: Of generated events that look real.
        recall: Of real events that could have been generated.

    Example:
        >>> from scoresde.metrics import PrecisionAndRecall
        >>> PrecisionAndRecall(0.9, 0.5).recall
        0.5
    """

    precision: float
    recall: float


@full_precision
def precision_and_recall(
    real: Tensor, generated: Tensor, neighbours: int = 3
) -> PrecisionAndRecall:
    """Shares of each set within the support of the other (Kynkaanniemi et al. 2019).

    The support of a set is the union of balls around its events that reach to their ``neighbours``
    -th nearest neighbour. Precision is the share of generated events in the support of the real
    ones, recall that of real ones in the support of the generated ones: lost modes cost recall,
    strange samples precision.

    Args:
        real: ``(N, d)``.
        generated: ``(M, d)``, on the same device.
        neighbours: 3 in the paper, with 50,000 events.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, or there are no more events than
            ``neighbours``.

    Example:
        >>> import torch
        >>> from scoresde.metrics import precision_and_recall
        >>> real = torch.arange(10.0)[:, None]  # generated are half of them
        >>> precision_and_recall(real, real[:5], neighbours=1)
        PrecisionAndRecall(precision=1.0, recall=0.6)
    """
    whole("neighbours", neighbours, 1)
    real = checked_features("real", real, neighbours + 1)
    generated = checked_features("generated", generated, neighbours + 1, real)
    centre = real.mean(0)  # where differences of squares lose the fewest digits
    real, generated = real - centre, generated - centre
    radii = [_radii(v, neighbours) for v in (real, generated)]
    precision = _share_within(generated, real, radii[0])
    recall = _share_within(real, generated, radii[1])
    return PrecisionAndRecall(precision, recall)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(N, M)``."""
    return _norms(x, y) - 2 * x @ y.mT


def _norms(x: Tensor, y: Tensor) -> Tensor:
    """Sums of squared lengths, by whose last digits squared distances are wrong."""
    return x.square().sum(-1, keepdim=True) + y.square().sum(-1)


def _radii(x: Tensor, neighbours: int) -> Tensor:
    """Squared distances of events to one of their neighbours."""
    radii = []
    for i, rows in enumerate(x.split(_ROWS)):
        squares, own = _squares(rows, x), torch.arange(len(rows), device=x.device)
        squares[own, own + i * _ROWS] = torch.inf  # nobody is a neighbour of oneself
        radii.append(squares.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _share_within(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Of the events that lie in a ball at least; copies do in one of no radius."""
    covered = 0
    for rows in x.split(_ROWS):
        # products cancel in squared distances: some rounding errors of the norms
        rounding = 16 * torch.finfo(x.dtype).eps * _norms(rows, centres)
        covered += int((_squares(rows, centres) <= radii + rounding).any(1).sum())
    return covered / len(x)
