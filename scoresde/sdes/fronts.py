"""Clocks by rank: generation row by row, patch by patch, band by band, in a window.

Going back in time, components of rank 0 are drawn first, those of rank 1 given them, and so on.
Every clock runs at one speed ``s = 1/L`` and, with ranks from 0 to ``R``, is delayed by

    d = (R - rank) lag L,      L = 1/(1 + R lag),      lag = (1 - overlap)(1 - first),

so that without overlap a clock starts at the moment at which that of the rank before has stopped
(autoregression; `scoresde.Clock` says why it starts ``first L`` after its delay), and with an
overlap of 1 all run together. In between, a front of noise moves over the event (rolling
diffusion, Ruhe et al. 2024; pyramids of Chen et al. 2024, "diffusion forcing").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import expect, finite, numbers, real, whole
from scoresde.internals.messages import join_names
from scoresde.precision import Numbers
from scoresde.sdes.clock import Clock


def front(ranks: Numbers, overlap: float = 0.0, first: float = 1e-3) -> Clock:
    """The clock under which components are drawn in the order of their ranks; see the module.

    For bands, coarse first: ``front(range(len(basis.blocks)))``; for the parts of a joint event, a
    latent first: ``front(joint.per_block(latent=0, x=1))``. See `in_order` for names of blocks,
    `along` and `patches` for components of an event.

    Args:
        ranks: Along the component axis, 0 for what is drawn first; not only whole ones.
        overlap: Share of its time that a clock runs together with the next, from 0 to 1.
        first: First time that the SDE uses, in units of ``T``: ``schedule.eps / schedule.T``.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from scoresde.sdes.fronts import front
        >>> clock = front([0, 1, 1])  # one after the other
        >>> clock.speeds.round(decimals=1).tolist(), clock.delays.round(decimals=1).tolist()
        (2.0, [0.5, 0.0, 0.0])
    """
    with torch.device("cpu"):
        rank = numbers("ranks", ranks).double()
    finite("ranks", rank)
    expect(rank.numel() > 0, "ranks", "one number at least", ranks)
    real("overlap", overlap, 0)
    expect(overlap <= 1, "overlap", "from 0 to 1", overlap)
    real("first", first, 0)
    expect(first < 1, "first", "below 1", first)
    late = rank.max() - rank
    lag = (1 - overlap) * (1 - first)
    length = 1 / (1 + float(late.max()) * lag)
    return Clock(1 / length, late * lag * length)


def in_order(blocks: Blocks, names: Sequence[str]) -> Tensor:
    """Ranks of blocks by their names, what is not named last: ``(blocks,)``.

    Args:
        blocks: Of a basis.
        names: In the order in which they are drawn; of a part of a `scoresde.Joint`, all its
            blocks.

    Raises:
        ValueError: If a name is unknown, or comes twice.

    Example:
        >>> from scoresde import Blocks
        >>> from scoresde.sdes.fronts import in_order
        >>> in_order(Blocks({"past": 3, "present": 1, "future": 2}), ["present", "past"])
        tensor([1, 0, 2])
    """
    rank: dict[str, int] = {}
    for place, name in enumerate(names):
        named = [block for block in blocks.sizes if name in (block, block.split(".")[0])]
        known = "blocks, each once, of " + join_names(blocks.sizes)
        expect(bool(named) and not rank.keys() & {*named}, "order", known, list(names))
        rank |= dict.fromkeys(named, place)
    ranks = [rank.get(block, len(names)) for block in blocks.sizes]
    return torch.tensor(ranks, device="cpu")


def patches(event_shape: Sequence[int], patch_shape: Sequence[int]) -> Tensor:
    """Ranks of an event's components, patch after patch in reading order: ``(n,)``.

    Args:
        event_shape: Shape of one event.
        patch_shape: As many numbers; smaller patches at the end count as well.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
        >>> from scoresde.sdes.fronts import patches
        >>> patches((1, 2, 4), (1, 2, 2)).reshape(2, 4)
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1]])
    """
    for name, shape in (("event_shape", event_shape), ("patch_shape", patch_shape)):
        for size in shape:
            whole(name, size, 1)
    expect(
        len(patch_shape) == len(event_shape),
        "patch_shape",
        f"{len(event_shape)} numbers, as of {tuple(event_shape)}",
        tuple(patch_shape),
    )
    rank = torch.zeros(tuple(event_shape), dtype=torch.long, device="cpu")
    for axis, (size, patch) in enumerate(zip(event_shape, patch_shape, strict=True)):
        place = torch.arange(size, device="cpu") // patch
        rank = rank * (-(-size // patch)) + place.reshape(-1, *[1] * (len(event_shape) - axis - 1))
    return rank.flatten()


def along(event_shape: Sequence[int], axis: int, window: int = 1) -> Tensor:
    """Ranks of an event's components by their place along an axis: ``(n,)``.

    Row by row with ``axis=-2``, step by step of a series ``(time, channels)`` with ``axis=0``.

    Args:
        event_shape: Shape of one event.
        axis: Along which ranks increase.
        window: How many neighbours have one rank.

    Raises:
        ValueError: If there is no such axis.

    Example:
        >>> from scoresde.sdes.fronts import along
        >>> along((1, 2, 2), axis=-2), along((4,), axis=0, window=2)
        (tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))
    """
    shape = tuple(event_shape)
    expect(-len(shape) <= axis < len(shape), "axis", f"one of {len(shape)} axes", axis)
    whole("window", window, 1)
    sizes = [*shape]
    sizes[axis] = window
    return patches(shape, sizes)
