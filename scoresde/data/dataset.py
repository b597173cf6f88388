"""Data sets: events that have been checked, in memory or on a disk."""

from __future__ import annotations

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from scoresde.checks import expect, finite, floating
from scoresde.data.lazy_array import LazyArray
from scoresde.data.quantization import check_bins

_HINT = "(missing= lets NaN stand for missing values)"


@frozen(eq=False)
class Dataset:
    """Events with a name, checked: what training and evaluation take.

    Args:
        name: Where they come from.
        values: ``(N, *event_shape)``: all of them, or `LazyArray` ones, which are checked as they
            are read.
        bins: Number of bins of integer values; ``None`` for floating-point ones.
        missing: Whether NaN stands for values that are missing, which estimators with
            ``observe`` take. Every event needs one that is not.
        columns: Names of the columns, if this is a table.

    Raises:
        TypeError: If ``bins`` is ``None`` and the values are not floating-point, or the reverse.
        ValueError: If there are no events, values are not finite, missing where they may not be,
            or not in ``0..bins-1``, or there is not one name for a column.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset
        >>> data = Dataset("mine", torch.tensor([[0, 3], [1, 2]]), bins=4)
        >>> len(data), data.read(slice(1))
        (2, tensor([[0, 3]]))
    """

    name: str
    values: Tensor | LazyArray = field(
        repr=lambda values: f"{tuple(values.shape)} of {values.dtype}"
    )
    bins: int | None = None
    missing: bool = field(default=False, repr=False)
    columns: tuple[str, ...] | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        shape = tuple(self.values.shape)
        expect(
            len(shape) > 1 and min(shape) > 0, self.name, "a shape (N, *event), no size 0", shape
        )
        if self.bins is not None:
            check_bins(self.bins)
            expect(not self.missing, "missing", "False for integers", self.missing)
        if self.columns is not None:
            names = len(set(self.columns))
            expected = f"{', '.join(map(str, shape[1:]))} different names"
            expect(shape[1:] == (names,), "columns", expected, names)
        self._check(self.values[:1] if self.lazy else self.values[:])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lazy(self) -> bool:
        """Whether events are read as they are needed."""
        return isinstance(self.values, LazyArray)

    def read(self, rows: Tensor | slice) -> Tensor:
        """Events by index ``(k,)`` or slice; those of a `LazyArray` are checked now."""
        values = self.values
        if isinstance(rows, Tensor) and isinstance(values, Tensor):
            # indexed by numbers on the CPU a device would be waited for
            rows = rows.to(values.device, non_blocking=True)
        found = values[rows]
        if self.lazy:
            self._check(found)
        return found

    def subset(self, name: str, rows: Tensor) -> Dataset:
        """A data set of the events at ``rows``, lazy if this one is."""
        values = self.values
        only = (
            values.select(rows) if isinstance(values, LazyArray) else values[rows.to(values.device)]
        )
        return evolve(self, name=f"{self.name}/{name}", values=only)

    def _check(self, values: Tensor) -> None:
        if self.bins is None:
            floating(self.name, values)
            if self.missing:
                empty_events = values.isnan().flatten(1).all(1).sum().item()
                expect(
                    empty_events == 0,
                    self.name,
                    "a value in every event",
                    f"{empty_events} without any",
                )
            hint = "" if self.missing or not bool(values.isnan().any()) else _HINT
            present = values.masked_fill(values.isnan(), 0.0) if self.missing else values
            finite(self.name, present, hint)
            return
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{self.name}: expected integers, got {values.dtype}")
        low, high = int(values.min()), int(values.max())
        expected = f"integers from 0 to {self.bins - 1}"
        expect(low >= 0 and high < self.bins, self.name, expected, f"{low} to {high}")


def split(
    dataset: Dataset, fraction: float, seed: int | torch.Generator = 0
) -> tuple[Dataset, Dataset]:
    """Splits a data set at random: ``(train, held_out)``.

    Args:
        dataset: At least two events.
        fraction: Share of the events to train on, rounded so that neither part is empty.
        seed: The same seed gives the same split.

    Raises:
        ValueError: If ``fraction`` is not between 0 and 1, or there is only one event.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset, split
        >>> train, held_out = split(Dataset("mine", torch.randn(10, 2)), 0.8)
        >>> len(train), len(held_out)
        (8, 2)
    """
    count = len(dataset)
    expect(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
    expect(count > 1, dataset.name, "two events or more to split", count)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    order = torch.randperm(count, generator=generator, device=generator.device)
    cut = min(max(round(fraction * count), 1), count - 1)
    return dataset.subset("train", order[:cut]), dataset.subset("held_out", order[cut:])
