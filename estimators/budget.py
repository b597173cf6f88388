"""Widths of networks with a given number of parameters, or of operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scoresde.checks import expect, whole
from scoresde.internals.messages import describe_error

STEP = 8
"""Widths are its multiples: channels are normalised, attended to and stored in groups of such."""

_MOST = 2**14
"""No network is wider; with weights for every pair of channels that is 10^8 of them in a layer."""

_LARGEST = 2**63 - 1
"""What a budget may be: beyond, counts are no longer those of integers of 64 bits."""

Maker = Callable[[int], nn.Module]
"""Of a network by its width, which has more of everything the wider it is."""


def count_parameters(make: Callable[[], nn.Module]) -> int:
    """Number of a network's parameters, without allocating them.

    Example:
        >>> import torch
        >>> from estimators.budget import count_parameters
        >>> count_parameters(lambda: torch.nn.Linear(10**6, 10**6))
        1000001000000
    """
    with torch.device("meta"):
        return sum(weight.numel() for weight in make().parameters())


def count_operations(make: Callable[[], nn.Module], event_shape: Sequence[int]) -> int:
    """Operations of an evaluation for one event: multiplications and additions of products.

    Counted by ``torch.utils.flop_counter``, without memory. A network with conditions has an
    attribute ``condition_shape``, of that of one event: ``()`` is a label.

    Args:
        make: Makes the network.
        event_shape: Of the events that it sees.

    Raises:
        ValueError: If the network cannot be called so.

    Example:
        >>> from estimators import ResidualMLP
        >>> from estimators.budget import count_operations
        >>> count_operations(lambda: ResidualMLP((100,), 1000, 1), (100,)) // 10**6
        10
    """
    with torch.device("meta"), torch.no_grad():
        network, counter = make().eval(), FlopCounterMode(display=False)
        shape = getattr(network, "condition_shape", None)
        kind = torch.int64 if shape == () else None
        told = [] if shape is None else [torch.zeros(1, *shape, dtype=kind)]
        try:
            with counter:
                network(torch.zeros(1, *event_shape), torch.zeros(1), *told)
        except Exception as error:  # of whatever kind: a stranger's network
            called = "network(x, noise_level)" if shape is None else f"with a condition {shape}"
            wanted = f"a network that can be called without memory, {called}"
            got = f"{type(network).__name__}: {describe_error(error)}"
            raise ValueError(f"operations: expected {wanted}, got {got}") from error
    return int(counter.get_total_flops())


@attrs.frozen
class _Limit:
    """A limit on a number that networks have.

    Attributes:
        name: Of the argument that sets it.
        what: Is counted.
        count: Of a network, by its place and its width.
        shares: Of each.
        total: Of all, if that was given; shares are parts of it then.
    """

    name: str
    what: str
    count: Callable[[int, int], int]
    shares: Sequence[int]
    total: int | None

    @classmethod
    def of(
        cls,
        name: str,
        what: str,
        count: Callable[[int, int], int],
        budget: int | Sequence[int],
        networks: int,
    ) -> _Limit:
        for each in budget if isinstance(budget, Sequence) else [budget]:
            whole(name, each, 1, _LARGEST)
        if not isinstance(budget, Sequence):
            return cls(name, what, count, [budget // networks] * networks, budget)
        expect(len(budget) == networks, name, f"one number, or {networks}", len(budget))
        return cls(name, what, count, budget, None)

    def expect_some(self, place: int) -> None:
        """Raises ``ValueError`` if not even the narrowest network has so few."""
        least, share = self.count(place, STEP), self.shares[place]
        of = "" if self.total is None else f", an equal share of {self.total}"
        wanted = f"{least} {self.what} for network {place + 1} of {len(self.shares)}, or more"
        expect(least <= share, self.name, wanted, f"{share}{of}")

    def used(self, place: int, width: int) -> float:
        """Which part of its share a network has."""
        return self.count(place, width) / self.shares[place]

    def allows(self, proposed: Sequence[int]) -> bool:
        """Whether all networks together have no more."""
        sizes = [self.count(place, width) for place, width in enumerate(proposed)]
        return self.total is not None and sum(sizes) <= self.total


def widths(
    makers: Sequence[Maker],
    budget: int | Sequence[int] | None = None,
    operations: int | Sequence[int] | None = None,
    shapes: Sequence[Sequence[int]] = (),
) -> list[int]:
    """Widths of networks that have as many parameters, or operations, as allowed.

    Each gets an equal share. Equal numbers of parameters are about those of Batzolis et al. 2022
    for 128x128: 31.3, 27.0, 18.3 and 26.3 million from fine to coarse. The cost of an evaluation
    is proportional to parameters times pixels, which fall by four from stage to stage: the finest
    network dominates. Equal operations make evaluations of all stages equally fast, with coarse
    networks much larger than fine ones. With both, the tighter limit holds. What is left then goes
    to the network that is narrowest for its share, step by step.

    Args:
        makers: Of networks.
        budget: Parameters of all of them, or of each.
        operations: Of an evaluation of all for one event, or of each.
        shapes: Of the events that each sees, where operations are counted.

    Raises:
        ValueError: If it is not enough for networks of width 8, or numbers do not match.

    Example:
        >>> from estimators import ResidualMLP
        >>> from estimators.budget import count_parameters, widths
        >>> makers = [lambda width, n=n: ResidualMLP((n,), width, 1) for n in (16, 64)]
        >>> equal = widths(makers, 20_000)
        >>> equal, sum(count_parameters(lambda: make(w)) for make, w in zip(makers, equal))
        ([32, 32], 17104)
        >>> widths(makers, operations=20_000, shapes=[(16,), (64,)])
        [24, 16]
    """
    count, limits = len(makers), []

    @functools.cache  # a large network takes a while to be made, even without memory
    def parameters_of(place: int, width: int) -> int:
        return count_parameters(partial(makers[place], width))

    @functools.cache
    def operations_of(place: int, width: int) -> int:
        return count_operations(partial(makers[place], width), shapes[place])

    if budget is not None:
        limits.append(_Limit.of("budget", "parameters", parameters_of, budget, count))
    if operations is not None:
        limits.append(_Limit.of("operations", "operations", operations_of, operations, count))
    chosen = [_widest(limits, place) for place in range(count)]
    return _filled(limits, chosen)


def _widest(limits: Sequence[_Limit], place: int) -> int:
    """The largest width, in steps, of a network within its shares: by bisection."""

    def fits(steps: int) -> bool:
        return all(limit.used(place, steps * STEP) <= 1 for limit in limits)

    for limit in limits:
        limit.expect_some(place)
    high = 2
    while high * STEP <= _MOST and fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * STEP


def _filled(limits: Sequence[_Limit], chosen: list[int]) -> list[int]:
    """Widths with more steps for those that miss most of their share, as far as allowed."""
    used = [max(limit.used(i, width) for limit in limits) for i, width in enumerate(chosen)]
    for i in sorted(range(len(chosen)), key=lambda i: (used[i], i)):
        wider = [*chosen[:i], chosen[i] + STEP, *chosen[i + 1 :]]
        if chosen[i] < _MOST and all(limit.allows(wider) for limit in limits):
            chosen = wider
    return chosen
