"""Networks that learn apart and answer together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import whole


class Ensemble(nn.Module):
    """Networks of one kind that learn apart and answer as one, by their mean.

    Where there are few data, networks err each in its own way, and half of that is gone in the
    mean. In training every event of a batch is heard by one of them, the next one by the next, so
    that an update costs what that of a single network does; an answer costs as many times more as
    there are members.

    Members are a part of one network, trained, averaged, kept and resumed with it; which update has
    the lowest held-out loss is asked of their mean.

    Source:
        Lakshminarayanan et al. 2017 (arXiv 1612.01474).

    Args:
        make: Makes a member, each with random weights of its own.
        count: How many.

    Raises:
        ValueError: If the count is no whole number from 1 on.

    Example:
        >>> import torch
        >>> from estimators import Ensemble, ResidualMLP
        >>> network = Ensemble(lambda: ResidualMLP((2,), width=8, depth=1), 3).eval()
        >>> network(torch.randn(7, 2), torch.zeros(7)).shape
        torch.Size([7, 2])
    """

    references = "lakshminarayanan2017"

    def __init__(self, make: Callable[[], nn.Module], count: int) -> None:
        super().__init__()
        whole("count", count, 1)
        self.members = nn.ModuleList(make() for _ in range(count))

    def forward(self, x: Tensor, noise_level: Tensor, condition: Any = None) -> Tensor:
        """Events like ``x``: of the mean, or while training of one member each."""
        given = () if condition is None else (condition,)
        if not self.training:
            said: Tensor = sum(member(x, noise_level, *given) for member in self.members)  # type: ignore[assignment]
            return said / len(self.members)
        out, count = torch.empty_like(x), len(self.members)
        for k, member in enumerate(self.members):  # every so many: each of them hears all times
            heard = (value[k::count] for value in (x, noise_level, *given))
            out[k::count] = member(*heard)
        return out
