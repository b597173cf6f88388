"""The values of a column, some of them missing, from any form of table."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Sequence
from typing import Any

import attrs
import numpy as np

from scoresde.checks import expect
from scoresde.data.conversion import Array

_RECIPE = "dates become numbers as days since the first; columns of other things are to be left out"
_EXACT = 2**53
"""Beyond it float64 does not tell whole numbers apart."""


@attrs.frozen(eq=False)
class Cells:
    """Values of a column: numbers in float64, NaN where missing, or objects, None where missing.

    Args:
        values: ``(N,)``.
        categories: All that objects can be, in their order; sorted ones if None.
        ranked: Whether that order means something; numbers and truth values have one anyway.
    """

    values: Array
    categories: Sequence[Any] | None = None
    ranked: bool = False

    @classmethod
    def of(cls, name: Hashable, array: Array) -> Cells:
        """The cells of an array ``(N,)`` of numbers, truth values, words or objects.

        Raises:
            TypeError: If they are of another kind.
            ValueError: If there are infinite numbers, or whole ones that float64 would round.
        """
        location = f"column {name!r}"
        if array.dtype.kind in "iuf":
            whole = array.dtype.kind != "f"
            exact = not whole or not len(array) or max(-int(array.min()), int(array.max())) < _EXACT
            expect(exact, location, "whole numbers below 2**53", "larger ones")
            numbers = array.astype(np.float64)
            expect(not np.isinf(numbers).any(), location, "finite numbers", "infinite ones")
            return cls(numbers)
        if array.dtype.kind not in "bOUST":
            raise TypeError(f"{location}: expected numbers or words, got {array.dtype} ({_RECIPE})")
        objects = array.astype(object)
        gone = np.array([_is_missing(v) for v in objects], bool)
        present = objects[~gone]
        if len(present) and all(_is_number(v) for v in present):
            numbers = np.full(len(objects), np.nan)
            numbers[~gone] = [float(v) for v in present]
            return cls.of(name, numbers)
        odd = next((v for v in present if not isinstance(v, Hashable)), None)
        if odd is not None:
            raise TypeError(f"{location}: expected numbers or words, got {reprlib.repr(odd)}")
        objects[gone] = None
        return cls(objects)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def words(self) -> bool:
        """Whether these are no numbers."""
        return self.values.dtype == object

    @property
    def missing(self) -> Array:
        """Mask of missing values, ``(N,)``."""
        if self.words:
            return np.array([v is None for v in self.values], bool)
        gone: Array = np.isnan(self.values)
        return gone

    @property
    def ordered(self) -> bool:
        """Whether one value can be below another."""
        return self.ranked or not self.words or set(map(type, self.distinct())) == {bool}

    def distinct(self) -> list[Any]:
        """Different values, in their order."""
        if not self.words:
            numbers: list[Any] = np.unique(self.values[~self.missing]).tolist()
            return numbers
        present = {v for v in self.values if v is not None}
        if self.categories is not None:
            return [v for v in self.categories if v in present]
        try:
            return sorted(present)
        except TypeError:  # words beside numbers
            return sorted(present, key=lambda v: (type(v).__name__, str(v)))

    def numbers(self, name: Hashable) -> Array:
        """The values, ``(N,)``; raises ``TypeError`` if they are none."""
        if self.words and bool(self.missing.all()):
            return np.full(len(self), np.nan)
        if self.words:
            got = repr(next(v for v in self.values if v is not None))
            raise TypeError(f"column {name!r}: expected numbers, got {got}")
        return self.values


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT, or pandas' NA, which answers every question with itself."""
    if value is None:
        return True
    same = value == value
    return not (isinstance(same, (bool, np.bool_)) and same)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
