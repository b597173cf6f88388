"""Data sets: events that have been checked, in memory or on a disk."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from scoresde.checks import choice, expect, finite, floating, validator
from scoresde.data.augmentation import check_crop, check_flip, middle, sides, window_shape
from scoresde.data.lazy_array import LazyArray
from scoresde.data.pairs import Pairs, conditions
from scoresde.data.quantization import check_bins

_HINT = "(missing= lets NaN stand for missing values)"


def _wide(condition: Any) -> Any:
    whole = isinstance(condition, Tensor) and not (
        condition.is_floating_point() or condition.is_complex()
    )
    return condition.long() if whole else condition


def _crop(value: Any) -> tuple[int, int] | None:
    return sides("crop", value)


@frozen(eq=False)
class Dataset:
    """Checked events with a name, and their conditions: what training takes.

    Args:
        name: Where they come from.
        values: ``(N, *event_shape)``: all of them, or `LazyArray` ones, which are checked as they
            are read; with ``crop``, images from which events are cut.
        bins: Number of bins of integer values; ``None`` for floating-point ones.
        missing: Whether NaN stands for values that are missing, which estimators with vector time
            take. No event may be missing as a whole.
        columns: Names of the columns, if this is a table.
        condition: What each event is conditioned on, as `scoresde.ScoreEstimator.loss` takes it:
            integer labels ``(N,)``, real numbers ``(N, c)``, or maps ``(N, *shape)``; none if
            None. A `LazyArray` that reads both at once is given with its own ``condition``.
        classes: Names of the labels ``0, 1, ...``.
        flip: Whether training mirrors images left to right, at random with probability 1/2; a
            condition that is a map is mirrored with its event. Held-out events are not mirrored.
        parts: Shapes of the parts, by name, of which every event is made: see
            `scoresde.data.parts.joined`.
        crop: Height and width of events, if they are windows of the images that are stored: in
            training at random places, anew every time; elsewhere, as of held-out events, the ones
            in the middle. Conditions that are maps are cut as their events are. A side, or both.

    Raises:
        TypeError: If ``bins`` is ``None`` and the values are not floating-point, or the reverse, or
            conditions are complex.
        ValueError: If there are no events, values are not finite, missing where they may not be,
            or not in ``0..bins-1``, there is not one name for a column, not one condition for an
            event, a label has no name, or events or conditions cannot be mirrored or cut.

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
    condition: Tensor | LazyArray | None = field(default=None, repr=False, converter=_wide)
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    flip: bool = field(default=False, repr=False, validator=validator(choice, False, True))
    parts: dict[str, tuple[int, ...]] | None = field(default=None, repr=False)
    crop: tuple[int, int] | None = field(default=None, repr=False, converter=_crop)

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
        if self.parts is not None:
            size = sum(map(math.prod, self.parts.values()))
            expect(shape[1:] == (size,), "parts", f"events of {size} numbers in all", shape[1:])
        if self.condition is None:
            expect(self.classes is None, "classes", "None without a condition", self.classes)
        else:
            got, wanted = len(self.condition), f"one for each of {len(self)} events"
            expect(got == len(self), "condition", wanted, got)
            different = len(set(self.classes or ())) == len(self.classes or ())
            expect(different, "classes", "different names", self.classes)
            self._check_conditions(_first(self.condition))
        self._check(_first(self.values))
        told = None if self.condition is None else self.condition.shape[1:]
        if self.crop is not None:
            check_crop(shape[1:], self.crop, told)
        if self.flip:
            check_flip(self.shapes, told)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lazy(self) -> bool:
        """Whether events are read as they are needed."""
        return isinstance(self.values, LazyArray)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one event."""
        return window_shape(self.values.shape[1:], self.crop)

    @property
    def condition_shape(self) -> torch.Size | None:
        """Shape of the condition of one event, if there is any."""
        condition = self.condition
        return None if condition is None else window_shape(condition.shape[1:], self.crop)

    @property
    def shapes(self) -> list[torch.Size]:
        """Shapes of the parts of an event, or of the whole where it has none."""
        if self.parts is None:
            return [self.event_shape]
        return [torch.Size(shape) for shape in self.parts.values()]

    def read(self, rows: Tensor | slice) -> Tensor:
        """Events by index ``(k,)`` or slice; those of a `LazyArray` are checked now."""
        return middle(self._stored_values(rows), self.crop)

    def pairs(self, rows: Tensor | slice) -> Pairs:
        """The same, with their conditions: read together where they come together."""
        return self.stored(rows).map(partial(middle, size=self.crop))

    def stored(self, rows: Tensor | slice) -> Pairs:
        """The same, before anything is cut from them."""
        values, condition = self.values, self.condition
        if condition is None:
            return Pairs(self._stored_values(rows))
        if self._read_together and isinstance(values, LazyArray):
            pairs = values.pairs(rows)
            self._check(pairs.values)
        else:
            pairs = Pairs(self._stored_values(rows), _at(condition, rows))
        if isinstance(condition, LazyArray) and pairs.condition is not None:
            pairs = pairs._replace(condition=self._check_conditions(pairs.condition))
        return pairs

    @property
    def _read_together(self) -> bool:
        own = self.values.condition if isinstance(self.values, LazyArray) else None
        return own is not None and self.condition is own

    def subset(self, name: str, rows: Tensor) -> Dataset:
        """A data set of the events at ``rows`` with their conditions, lazy if this one is."""
        values, condition = _select(self.values, rows), self.condition
        if self._read_together and isinstance(values, LazyArray):
            condition = values.condition
        elif condition is not None:
            condition = _select(condition, rows)
        return evolve(self, name=f"{self.name}/{name}", values=values, condition=condition)

    def _stored_values(self, rows: Tensor | slice) -> Tensor:
        values = _at(self.values, rows)
        if self.lazy:
            self._check(values)
        return values

    def _check_conditions(self, values: Tensor) -> Tensor:
        return conditions(f"{self.name}, condition", values, self.classes)

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


def _first(values: Tensor | LazyArray) -> Tensor:
    """Events that are checked at once: all that are in memory."""
    return values[:1] if isinstance(values, LazyArray) else values


def _at(values: Tensor | LazyArray, rows: Tensor | slice) -> Tensor:
    if isinstance(rows, Tensor) and isinstance(values, Tensor):
        # indexed by numbers on the CPU a device would be waited for
        rows = rows.to(values.device, non_blocking=True)
    return values[rows]


def _select(values: Tensor | LazyArray, rows: Tensor) -> Tensor | LazyArray:
    return values.select(rows) if isinstance(values, LazyArray) else values[rows.to(values.device)]


def split(
    dataset: Dataset, fraction: float, seed: int | torch.Generator = 0
) -> tuple[Dataset, Dataset]:
    """Splits a data set at random: ``(train, held_out)``; the latter is never augmented.

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
    held_out = dataset.subset("held_out", order[cut:])
    return dataset.subset("train", order[:cut]), evolve(held_out, flip=False)
