"""Joint events: parts, such as an image and a condition, in one data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import evolve
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import expect
from scoresde.data.dataset import Dataset
from scoresde.data.lazy_array import LazyArray
from scoresde.data.quantization import bin_centres, quantize
from scoresde.internals.messages import join_names, nearest

Degradation = Callable[[Tensor], Tensor]
"""``(N, *event_shape)`` to ``(N, *part_shape)``; see `scoresde.data.degradations`."""


def degraded(data: Dataset, degradation: Degradation) -> Dataset:
    """A data set of degraded events, in as many bins.

    Args:
        data: Events; stored ones are degraded as they are read.
        degradation: See `scoresde.data.degradations`.

    Raises:
        ValueError: If the number of events changes, training cuts windows from them, or mirrors
            them and the degradation does not commute with that.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset, Downsample, degraded
        >>> images = Dataset("mine", torch.randint(256, (9, 3, 8, 8)), bins=256)
        >>> degraded(images, Downsample(4))
        Dataset(name='mine', values=(9, 3, 2, 2) of torch.int64, bins=256)
    """

    def read(values: Tensor) -> Tensor:
        x = values if data.bins is None else bin_centres(values, data.bins)
        part = degradation(x)
        got = tuple(getattr(part, "shape", ()))
        expect(len(got) > 1 and got[0] == len(x), "parts", f"{len(x)} events of a part", got)
        return part if data.bins is None else quantize(part, data.bins).to(values.dtype)

    stored = data.values
    _expect_whole(data)
    if data.flip:
        _expect_mirrored(stored[:1], read)
    if isinstance(stored, LazyArray):
        values: Tensor | LazyArray = LazyArray(len(data), lambda rows: read(stored[rows]))
    else:
        values = read(stored)
    return evolve(data, values=values, columns=None)


def _expect_whole(data: Dataset) -> None:
    """Raises ``ValueError`` for windows: their parts would not be those of what is stored."""
    expect(data.crop is None, "crop", "none of events with parts (size= resizes)", data.crop)


def _expect_mirrored(first: Tensor, read: Degradation) -> None:
    left, wanted = read(first.flip(-1)).double(), read(first).flip(-1).double()
    # sums in another order may be rounded to the next integer
    alike = bool((left - wanted).abs().max() <= (1e-4 if first.is_floating_point() else 1))
    expect(alike, "flip", "False of parts that are no mirror images of themselves (crop)", True)


def select_columns(data: Dataset, columns: Sequence[str]) -> Dataset:
    """A data set of some columns of a table.

    Raises:
        ValueError: If the data are no table, or have no such column.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset, select_columns
        >>> table = Dataset("mine", torch.tensor([[1.0, 2.0, 3.0]]), columns=("a", "b", "c"))
        >>> select_columns(table, ["c", "a"]).values
        tensor([[3., 1.]])
    """
    known = data.columns
    if known is None:
        shape = tuple(data.values.shape[1:])
        raise ValueError(f"parts: expected a table, to name columns of, got events {shape}")
    for column in columns:
        if column not in known:
            raise ValueError(f"parts: no column {column!r}{nearest(column, known)}")
    indices = torch.tensor([known.index(column) for column in columns], device="cpu")
    stored = data.values
    if isinstance(stored, LazyArray):
        values: Tensor | LazyArray = LazyArray(len(data), lambda rows: stored[rows][:, indices])
    else:
        values = stored[:, indices]
    return evolve(data, values=values, columns=tuple(columns))


def joined(name: str, parts: Mapping[str, Dataset]) -> Dataset:
    """One data set of several with as many events each: those of a `scoresde.Joint`.

    An event is one vector, the parts flattened one after the other. Its condition, of labels for
    instance, is that of the first part that has any.

    Args:
        name: What to call it.
        parts: By their names, in their order.

    Raises:
        ValueError: If there is none, or they differ in number or in kind.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset, joined
        >>> low, high = Dataset("low", torch.zeros(5, 3, 2, 2)), Dataset("high", torch.ones(5, 7))
        >>> data = joined("pairs", {"y": low, "x": high})
        >>> tuple(data.values.shape), data.parts
        ((5, 19), {'y': (3, 2, 2), 'x': (7,)})
    """
    expect(len(parts) > 1, "parts", "two or more", list(parts))
    first = next(iter(parts.values()))
    for part, data in parts.items():
        _expect_whole(data)
        what, wanted = _kind(data), _kind(first)
        expect(what == wanted, f"parts.{part}", f"{wanted}, as the first part", what)
        expect(data.flip == first.flip, f"parts.{part}.flip", f"{first.flip}, as there", data.flip)
    shapes = {part: tuple(data.values.shape[1:]) for part, data in parts.items()}

    def read(rows: Tensor | slice) -> Tensor:
        return torch.cat([data.values[rows].flatten(1) for data in parts.values()], 1)

    lazy = any(data.lazy for data in parts.values())
    values = LazyArray(len(first), read) if lazy else read(slice(None))
    columns = [column for data in parts.values() for column in data.columns or ()]
    known = all(data.columns is not None for data in parts.values())
    labelled = next((data for data in parts.values() if data.condition is not None), first)
    return Dataset(
        name,
        values,
        first.bins,
        missing=any(data.missing for data in parts.values()),
        columns=tuple(columns) if known else None,
        condition=labelled.condition,
        classes=labelled.classes,
        flip=first.flip,
        parts=shapes,
    )


def expect_partition(columns: Sequence[str], parts: Mapping[str, Sequence[str]]) -> None:
    """Raises ``ValueError`` unless every column of a table is in one part, and one alone."""
    named = [column for own in parts.values() for column in own]
    twice = sorted({column for column in named if named.count(column) > 1})
    expect(not twice, "parts", "every column in one part", f"{join_names(twice)} in several")
    left = [column for column in columns if column not in named]
    hint = "in none (columns= of the data leaves some out)"
    expect(not left, "parts", "every column in one part", f"{join_names(left)} {hint}")


def _kind(data: Dataset) -> str:
    numbers = f"{data.values.dtype}" if data.bins is None else f"integers of {data.bins} bins"
    return f"{len(data)} events of {numbers}"


def part_slices(parts: Mapping[str, Sequence[int]]) -> dict[str, slice]:
    """The slice of each part in a joint event."""
    return Blocks({name: math.prod(shape) for name, shape in parts.items()}).slices
