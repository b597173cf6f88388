"""How much of what was learned is inside the prior's support, by samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.internals.messages import warn


def share_inside(
    inside: Callable[[Tensor, int], Tensor], total: int, device: torch.device
) -> Tensor:
    """Shares of posteriors inside the prior's support, to a twentieth of themselves.

    Those with few samples inside are drawn from again, up to a limit; a warning names how many have
    too few in the end.

    Args:
        inside: Whether samples are inside, ``(count, k)``, given the places ``(k,)`` of posteriors
            and the ``count`` of samples of each.
        total: How many posteriors.
        device: Of the places.

    Returns:
        ``(total,)``, in float64: as if one sample had been inside where none was.

    Example:
        >>> import torch
        >>> from scoresde.inference.share_inside import share_inside
        >>> g = torch.Generator().manual_seed(0)
        >>> share = torch.tensor([0.5, 0.02])
        >>> found = share_inside(
        ...     lambda rows, count: torch.rand(count, len(rows), generator=g) < share[rows],
        ...     total=2,
        ...     device=torch.device("cpu"),
        ... )
        >>> bool((found / share - 1).abs().max() < 0.1)
        True
    """
    rows = torch.arange(total, device=device)
    held, drawn, again = torch.zeros_like(rows), torch.zeros_like(rows), _FIRST
    while len(rows) and again:
        count = min(again, max(_FIRST, _TOGETHER // len(rows)))
        held[rows] += inside(rows, count).sum(0)
        drawn[rows] += count
        done = int(drawn[rows[0]])  # of all that are left
        again = min(done, _MOST - done)
        rows = rows[held[rows] < _ENOUGH]
    share = held.clamp(min=1).double() / drawn
    few = int((held < _FEW).sum())
    if few:
        least = int(held.argmin())
        warn(
            f"mass: {few} of {total} posteriors are hardly inside the prior's support as learned, "
            f"down to {float(share[least]):.2g} of one ({int(held[least])} of {int(drawn[least])} "
            "samples): densities, which are normalised by that, cannot be trusted"
        )
    return share


_FIRST, _ENOUGH, _MOST = 500, 400, 32_000
"""Samples at first, for a share of most to 1 or 2 points; those inside that are enough; and when to
give up."""

_TOGETHER = 16_000
"""Samples of all posteriors at a time, unless the first ones are more."""

_FEW = 100
"""Samples inside by which a share is known to a tenth of itself, and by fewer not."""
