"""Events that are read when they are indexed: data larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.conversion import Array
from scoresde.data.pairs import Pairs


class LazyArray:
    """Events that are read when they are indexed, for instance of a file larger than memory.

    Args:
        count: How many there are.
        read: Reads some of them: indices ``(k,)``, int64, to events ``(k, *event_shape)``, alone or
            in a pair with the condition of each, ``(k, *)``.

    Attributes:
        shape: ``(count, *event_shape)``.
        dtype: Of the events.
        condition: The conditions, if they are read with the events.

    Raises:
        ValueError: If ``count`` is not positive, or ``read`` returns another shape.

    Example:
        >>> import torch
        >>> from scoresde.data import LazyArray
        >>> items = [torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)]
        >>> stored = LazyArray(len(items), lambda rows: torch.stack([items[i] for i in rows]))
        >>> stored.shape
        torch.Size([3, 2])
        >>> stored[torch.tensor([2, 0])]
        tensor([[2., 2.],
                [0., 0.]])
    """

    def __init__(
        self, count: int, read: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
    ) -> None:
        expect(count > 0, "count", "at least one event", count)
        self._read = read
        first, *more = _parts(read(torch.zeros(1, dtype=torch.int64, device="cpu")))
        self.shape, self.dtype = torch.Size([count, *first.shape[1:]]), first.dtype
        self.condition = LazyArray(count, lambda rows: _parts(read(rows))[1]) if more else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The events at some indices ``(k,)``, or in a slice."""
        return self.pairs(rows).values

    def pairs(self, rows: Tensor | slice) -> Pairs:
        """The same, with their conditions if these are read with them."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)), device="cpu")
        events, *more = _parts(self._read(rows))
        wanted = (len(rows), *self.shape[1:])
        expect(events.shape == wanted, "read", f"events {wanted}", tuple(events.shape))
        return Pairs(events, *more)

    def select(self, rows: Tensor) -> LazyArray:
        """The events at some indices, read when they are indexed."""
        return LazyArray(len(rows), lambda indices: self._read(rows[indices]))


def _parts(read: Tensor | tuple[Tensor, Tensor]) -> Sequence[Tensor]:
    return (read,) if isinstance(read, Tensor) else read


def concatenated(
    arrays: Sequence[Array], convert: Callable[[Array], Tensor] = torch.from_numpy
) -> LazyArray:
    """Arrays ``(N_i, *event_shape)``, memory-mapped for instance, as one after the other.

    Args:
        arrays: Of one dtype and event shape.
        convert: What makes a tensor of some events.

    Raises:
        ValueError: If they differ in event shape or dtype.

    Example:
        >>> import numpy as np
        >>> from scoresde.data.lazy_array import concatenated
        >>> concatenated([np.zeros((2, 3), "f4"), np.ones((4, 3), "f4")])[1:4]
        tensor([[0., 0., 0.],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    first = arrays[0]
    for i, array in enumerate(arrays):
        wanted = f"{first.dtype} of shape (N, {', '.join(map(str, first.shape[1:]))})"
        alike = array.dtype == first.dtype and array.shape[1:] == first.shape[1:]
        expect(alike, f"array {i}", wanted, f"{array.dtype} of shape {array.shape}")
    starts = np.cumsum([0, *map(len, arrays)])

    def read(indices: Tensor) -> Tensor:
        rows = indices.numpy()
        events = np.empty((len(rows), *first.shape[1:]), first.dtype)
        home = np.searchsorted(starts, rows, side="right") - 1
        for i in np.unique(home):
            events[home == i] = arrays[i][rows[home == i] - starts[i]]
        return convert(events)

    return LazyArray(int(starts[-1]), read)
