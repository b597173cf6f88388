"""Widths of several networks whose parameters are so many in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from scoresde.checks import expect, whole

STEP = 8
"""Widths are its multiples: channels are normalised, attended to and stored in groups of such."""

_MOST = 2**14
"""No network is wider; with weights for every pair of channels that is 10^8 of them in a layer."""


def parameters(make: Callable[[], nn.Module]) -> int:
    """How many a network has, which is made without memory.

    Example:
        >>> import torch
        >>> from estimators.budget import parameters
        >>> parameters(lambda: torch.nn.Linear(10**6, 10**6))
        1000001000000
    """
    with torch.device("meta"):
        return sum(weight.numel() for weight in make().parameters())


def widths(makers: Sequence[Callable[[int], nn.Module]], budget: int | Sequence[int]) -> list[int]:
    """Widths of networks that have as many parameters as a budget allows, and no more.

    Each gets an equal share: about as the networks of Batzolis et al. 2022 have it for 128x128,
    31.3, 27.0, 18.3 and 26.3 million from fine to coarse. What an evaluation costs is the number of
    parameters times that of pixels, which falls by four from stage to stage, so that the finest
    network decides what all cost, and coarse ones may be as large for next to nothing. Then the
    narrowest for its share gets another step, as long as all of them are within the budget.

    Args:
        makers: Of networks by their width, which has more parameters the wider it is.
        budget: Parameters of all of them, or of each.

    Raises:
        ValueError: If it is not enough for networks of width 8, or there are not as many.

    Example:
        >>> from estimators import ResidualMLP
        >>> from estimators.budget import parameters, widths
        >>> makers = [lambda width, n=n: ResidualMLP((n,), width, 1) for n in (16, 64)]
        >>> found = widths(makers, 20_000)
        >>> found, sum(parameters(lambda: make(w)) for make, w in zip(makers, found))
        ([32, 32], 17104)
    """
    if not isinstance(budget, Sequence):
        whole("budget", budget, 1, 2**63 - 1)
        shares, total = [budget // len(makers)] * len(makers), budget
        found = [_widest(*pair) for pair in zip(makers, shares, strict=True)]
        return _filled(makers, found, shares, total)
    expect(len(budget) == len(makers), "budget", f"one number, or {len(makers)}", len(budget))
    for each in budget:
        whole("budget", each, 1, 2**63 - 1)
    return [_widest(*pair) for pair in zip(makers, budget, strict=True)]


def _widest(make: Callable[[int], nn.Module], budget: int) -> int:
    """The largest width, in steps, whose network has no more parameters: by bisection."""

    def fits(steps: int) -> bool:
        return parameters(partial(make, steps * STEP)) <= budget

    least = parameters(partial(make, STEP))
    expect(least <= budget, "budget", f"{least} parameters for a network, or more", budget)
    high = 2
    while high * STEP <= _MOST and fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * STEP


def _filled(
    makers: Sequence[Callable[[int], nn.Module]],
    found: list[int],
    shares: Sequence[int],
    total: int,
) -> list[int]:
    """With more steps for those that miss most of their share, as far as all allow it."""
    sizes = [parameters(partial(make, w)) for make, w in zip(makers, found, strict=True)]
    order = sorted(range(len(makers)), key=lambda i: (sizes[i] / shares[i], i))
    for i in order:
        larger = parameters(partial(makers[i], found[i] + STEP))
        if sum(sizes) - sizes[i] + larger <= total and found[i] < _MOST:
            found[i], sizes[i] = found[i] + STEP, larger
    return found
