"""Mean and scale of data of which values are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from scoresde.bases.moments import MomentsByGroup
from scoresde.blocks import Blocks
from scoresde.checks import expect, floating


def known_moments(
    data: Iterable[Tensor], analyse: Callable[[Tensor], Tensor], groups: Blocks
) -> tuple[Tensor, Tensor]:
    """Mean and scale ``(n,)`` of every component, over the events in which it is not NaN.

    As of `scoresde.bases.moments.MomentsByGroup`, which measures each component by itself.

    Args:
        data: Batches of events, which are kept until all have been seen.
        analyse: To coefficients, ``(N, n)``; a missing value may leave others as they are alone.
        groups: Of single components.

    Raises:
        ValueError: If a missing value spreads, components are measured together, one has no value
            at all, or a value is infinite.
    """
    expected = "events that are vectors, if values are missing"
    expect(len(groups) == groups.dim, "data", expected, f"{groups} measured together")
    rows, dtype = [], torch.float64
    for batch in data:
        floating("data", batch)
        z, dtype = analyse(batch), batch.dtype
        more_missing = int(z.isnan().sum() - batch.isnan().sum())
        expect(
            more_missing == 0,
            "basis",
            "identity, if values are missing",
            "one that mixes components",
        )
        expect(not bool(z.isinf().any()), "data", "finite numbers", "infinite ones")
        rows.append(z)
    moments = []
    for name, column in zip(groups.sizes, torch.cat(rows).unbind(-1), strict=True):
        known = column[~column.isnan()].unsqueeze(-1)
        expect(len(known) > 0, "data", f"values of {name!r}", "none")
        # in the precision of the data, of which rounding is judged
        group = MomentsByGroup(Blocks({name: 1}))
        moments.append(group.measured([known.to(dtype)]))
        group.warn()
    mean, scale = zip(*moments, strict=True)
    return torch.cat(mean), torch.cat(scale)
