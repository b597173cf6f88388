"""Tables: columns by name, and values that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from attrs import frozen

from scoresde.checks import choice, expect
from scoresde.data.conversion import Array, conversion
from scoresde.data.dataset import Dataset
from scoresde.data.pairs import labelled
from scoresde.internals.messages import join_names

Missing = Literal["nan"] | None

MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""Cells of text that stand for no value, in small letters."""

RECIPE = (
    "columns=[...] leaves the column out; categories become numbers as a column of 0 and 1 for"
    " each, dates as days since the first"
)
"""What to do about what is no number."""


@frozen
class Columns:
    """The roles of a table's columns.

    Args:
        events: Names of those that events are made of, in this order; all others if None.
        labels: The name of the column of classes, if there is one.
        condition: Names of columns of numbers that events are conditioned on.

    Raises:
        ValueError: If a column has two roles, there are both labels and conditions, or names are
            none.
    """

    events: Sequence[str] | None = None
    labels: str | None = None
    condition: Sequence[str] | None = None

    def __attrs_post_init__(self) -> None:
        for name, value in (("columns", self.events), ("condition", self.condition)):
            strings = not isinstance(value, str) and all(isinstance(v, str) for v in value or ())
            good = value is None or (strings and len(value) > 0)
            expect(good, name, "a list of names", repr(value))
        one = self.labels is None or isinstance(self.labels, str)
        expect(one, "labels", "the name of a column", repr(self.labels))
        expect(not (self.labels and self.condition), "condition", "None with labels", "both")
        both = sorted(set(self._condition_names) & set(self.events or ()))
        expect(not both, "columns", "others than labels and condition", join_names(both))

    @property
    def _condition_names(self) -> list[str]:
        return [*(self.condition or ()), *([] if self.labels is None else [self.labels])]

    def indices(
        self, path: object, names: Sequence[str]
    ) -> tuple[list[int], list[int], int | None]:
        """Indices of events, of conditions, and of labels.

        Raises:
            ValueError: If one is unknown or has no name, or two to be read have the same.
        """
        own = self._condition_names
        conditions = column_indices(path, names, own) if own else []
        others = [name for name in names if name not in own] if own else None
        events = column_indices(path, names, others if self.events is None else self.events)
        return (events, conditions, None) if self.labels is None else (events, [], conditions[0])


def column_indices(path: object, names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Indices of the columns to read.

    Args:
        path: Of the table, for messages.
        names: Of all its columns.
        columns: Names of those to read, in this order; all if None.

    Raises:
        ValueError: If one is unknown or has no name, or two to be read have the same.
    """
    if columns is not None:
        expect(len(columns) > 0, "columns", "some beside labels and condition", "none")
        unknown = sorted(set(columns) - set(names))
        expect(not unknown, "columns", f"some of {join_names(names)}", join_names(unknown))
    requested = list(names if columns is None else columns)
    indices = {name: i for i, name in enumerate(names)}
    if "" in requested:
        location = f"{path}, column {names.index('') + 1}"
        expect(False, location, "a name", "none (columns=[...] leaves it out)")
    requested_set = set(requested)
    repeated = _repeated(requested) or _repeated(name for name in names if name in requested_set)
    expect(
        not repeated, f"{path}, columns", "different names", f"{join_names(repeated)} twice or more"
    )
    return [indices[name] for name in requested]


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def check_missing(missing: Missing) -> None:
    """Raises ``ValueError`` for a ``missing`` that `table_dataset` does not take."""
    choice("missing", missing, None, "nan")


def table_dataset(
    name: str,
    values: Array,
    columns: Sequence[str],
    missing: Missing,
    bins: int | None,
    dtype: str | None,
    continuous: bool,
    condition: Array | Sequence[str] | None = None,
) -> Dataset:
    """A data set of a table's numbers.

    Args:
        name: Where they come from.
        values: ``(N, columns)``, NaN where missing.
        columns: Their names.
        missing: ``"nan"`` if some may be.
        bins: As of `scoresde.data.conversion.conversion`.
        dtype: As there.
        continuous: As there.
        condition: Classes of the events by name, or numbers ``(N, c)``.

    Raises:
        ValueError: As there and of `Dataset`, or if a column has no value at all.
    """
    if values.dtype.kind == "f":
        empty = [columns[i] for i in np.isnan(values).all(0).nonzero()[0].tolist()]
        expect(not empty, f"{name}, columns", "values in every one", f"none in {join_names(empty)}")
    convert, bins = conversion(name, [values], bins, dtype, continuous, columns)
    options: dict[str, Any] = {}
    if isinstance(condition, np.ndarray):
        of_condition, _ = conversion(f"{name}, condition", [condition], None, dtype, True)
        options = {"condition": of_condition(condition)}
    elif condition is not None:
        options = labelled(condition)
    has_missing = missing == "nan"
    return Dataset(name, convert(values), bins, has_missing, tuple(columns), **options)
