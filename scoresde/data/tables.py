"""Tables: columns by name, and values that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from scoresde.checks import choice, expect, join_names
from scoresde.data.conversion import Array, conversion
from scoresde.data.dataset import Dataset

Missing = Literal["nan"] | None

MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""Cells of text that stand for no value, in small letters."""

RECIPE = (
    "columns=[...] leaves the column out; categories become numbers as a column of 0 and 1 for"
    " each, dates as days since the first"
)
"""What to do about what is no number."""


def column_indices(path: object, names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Places of the columns to read.

    Args:
        path: Of the table, for messages.
        names: Of all its columns.
        columns: Names of those to read, in this order; all if None.

    Raises:
        ValueError: If one is unknown or has no name, or two to be read have the same.

    Example:
        >>> from scoresde.data.tables import column_indices
        >>> column_indices("x.csv", ["a", "b", "c"], ["c", "a"])
        [2, 0]
    """
    if columns is not None:
        strings = not isinstance(columns, str) and all(isinstance(name, str) for name in columns)
        expect(strings and len(columns) > 0, "columns", "a list of names", repr(columns))
        unknown = sorted(set(columns) - set(names))
        expect(not unknown, "columns", f"some of {join_names(names)}", join_names(unknown))
    requested = list(names if columns is None else columns)
    places = {name: i for i, name in enumerate(names)}
    if "" in requested:
        place = f"{path}, column {names.index('') + 1}"
        expect(False, place, "a name", "none (columns=[...] leaves it out)")
    requested_set = set(requested)
    repeated = _repeated(requested) or _repeated(name for name in names if name in requested_set)
    expect(
        not repeated, f"{path}, columns", "different names", f"{join_names(repeated)} twice or more"
    )
    return [places[name] for name in requested]


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def check_missing(missing: Missing) -> None:
    """Raises ``ValueError`` for what `table_dataset` cannot do about missing values.

    Example:
        >>> from scoresde.data.tables import check_missing
        >>> check_missing("drop")
        Traceback (most recent call last):
            ...
        ValueError: missing: expected one of None, 'nan', got 'drop'
    """
    choice("missing", missing, None, "nan")


def table_dataset(
    name: str,
    values: Array,
    columns: Sequence[str],
    missing: Missing,
    bins: int | None,
    dtype: str | None,
    continuous: bool,
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

    Raises:
        ValueError: As there and of `Dataset`, or if a column has no value at all.

    Example:
        >>> import numpy as np
        >>> from scoresde.data.tables import table_dataset
        >>> lengths = np.array([[0.5], [1.5]])
        >>> table_dataset("mine", lengths, ["length"], None, None, None, False).columns
        ('length',)
    """
    if values.dtype.kind == "f":
        empty = [columns[i] for i in np.isnan(values).all(0).nonzero()[0].tolist()]
        expect(not empty, f"{name}, columns", "values in every one", f"none in {join_names(empty)}")
    convert, bins = conversion(name, [values], bins, dtype, continuous, columns)
    has_missing = missing == "nan"
    return Dataset(name, convert(values), bins, missing=has_missing, columns=tuple(columns))
