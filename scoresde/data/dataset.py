"""A data set: checked events, and parts of it."""

from __future__ import annotations

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from scoresde.checks import expect, finite, floating
from scoresde.data.lazy_array import LazyArray
from scoresde.data.levels import check_levels

_HINT = "(missing= lets NaN stand for missing values)"


@frozen(eq=False)
class Dataset:
    """Checked data.

    Args:
        name: Where they come from.
        values: ``(N, *event_shape)``: all of them, or `LazyArray` ones, which are checked as they
            are read.
        levels: Number of levels of integer values; ``None`` for floating-point ones.
        missing: Whether NaN stands for values that are missing, which estimators with
            ``observe`` take. Every event needs one that is not.
        columns: Names of the columns, if this is a table.

    Raises:
        TypeError: If ``levels`` is ``None`` and the values are not floating-point, or the reverse.
        ValueError: If there are no events, values are not finite, missing where they may not be,
            or not in ``0..levels-1``, or there is not one name for a column.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset
        >>> data = Dataset("mine", torch.tensor([[0, 3], [1, 2]]), levels=4)
        >>> len(data), data.read(slice(1))
        (2, tensor([[0, 3]]))
    """

    name: str
    values: Tensor | LazyArray = field(
        repr=lambda values: f"{tuple(values.shape)} of {values.dtype}"
    )
    levels: int | None = None
    missing: bool = field(default=False, repr=False)
    columns: tuple[str, ...] | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        shape = tuple(self.values.shape)
        expect(
            len(shape) > 1 and min(shape) > 0, self.name, "a shape (N, *event), no size 0", shape
        )
        if self.levels is not None:
            check_levels(self.levels)
            expect(not self.missing, "missing", "False for integers", self.missing)
        if self.columns is not None:
            names = len(set(self.columns))
            expected = f"{', '.join(map(str, shape[1:]))} different names"
            expect(shape[1:] == (names,), "columns", expected, names)
        self._check(self.values[:1] if self.stored else self.values[:])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def stored(self) -> bool:
        """Whether events are read as they are needed."""
        return isinstance(self.values, LazyArray)

    def read(self, rows: Tensor | slice) -> Tensor:
        """The events at some places ``(k,)``, or in a slice; `LazyArray` ones are checked now."""
        values = self.values[rows]
        if self.stored:
            self._check(values)
        return values

    def part(self, name: str, rows: Tensor) -> Dataset:
        """A data set of some events only, read as late as these."""
        values = self.values
        only = (
            values.only(rows) if isinstance(values, LazyArray) else values[rows.to(values.device)]
        )
        return evolve(self, name=f"{self.name}/{name}", values=only)

    def _check(self, values: Tensor) -> None:
        if self.levels is None:
            floating(self.name, values)
            if self.missing:
                whole = values.isnan().flatten(1).all(1).sum().item()
                expect(whole == 0, self.name, "a value in every event", f"{whole} without any")
            hint = "" if self.missing or not bool(values.isnan().any()) else _HINT
            known = values.masked_fill(values.isnan(), 0.0) if self.missing else values
            finite(self.name, known, hint)
            return
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{self.name}: expected integers, got {values.dtype}")
        low, high = int(values.min()), int(values.max())
        expected = f"integers from 0 to {self.levels - 1}"
        expect(low >= 0 and high < self.levels, self.name, expected, f"{low} to {high}")


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
    return dataset.part("train", order[:cut]), dataset.part("held_out", order[cut:])
