"""Tables in Parquet files, read by Arrow."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from scoresde.checks import expect
from scoresde.data.conversion import Array
from scoresde.data.dataset import Dataset
from scoresde.data.tables import RECIPE, Columns, Missing, check_missing, table_dataset
from scoresde.internals import limits
from scoresde.internals.messages import join_names

FOOTER = 256
"""Bytes of memory for a byte of a file's description: of three that describe a piece of a column
Arrow makes an object of several hundred."""


def read_parquet(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    labels: str | None = None,
    condition: Sequence[str] | None = None,
    missing: Missing = None,
    bins: int | None = None,
    dtype: str | None = None,
    continuous: bool = False,
) -> Dataset:
    """Reads a Parquet table of numbers: every row is an event ``(columns,)``.

    Needs ``pip install 'scoresde[tables]'``.

    Args:
        path: A file.
        columns: Names of those to read, in this order; all others if None.
        labels: The name of the column that says which class an event is of, by name: events are
            conditioned on it, and not made of it.
        condition: Names of columns of numbers that events are conditioned on.
        missing: ``"nan"`` makes NaN of nulls, and lets NaN be. By default they are refused.
        bins: Number of bins, if all columns hold whole numbers of ``0..bins-1``.
        dtype: ``"float32"`` or ``"float64"``. By default torch's default dtype; values that differ
            and would be equal in it are refused.
        continuous: Whether columns of whole numbers are meant as real ones; by default there is a
            warning.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it is garbled or has no rows, a column is unknown, is no column of numbers
            or has the name of another, values are missing where they may not be, or it takes more
            memory than `scoresde.internals.limits` allows.

    Warns:
        UserWarning: If columns hold whole numbers alone.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pyarrow
        >>> from pyarrow import parquet
        >>> from scoresde.data import read_parquet
        >>> path = Path(tempfile.mkdtemp(), "x.parquet")
        >>> parquet.write_table(pyarrow.table({"a": [0.5, 1.0], "b": ["x", "y"]}), path)
        >>> read_parquet(path, columns=["a"]).values.tolist()
        [[0.5], [1.0]]
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        message = "Parquet files need pyarrow: pip install 'scoresde[tables]'"
        raise ImportError(message) from error
    path = Path(path)
    check_missing(missing)
    chosen = Columns(columns, labels, condition)
    with limits.opened(path) as file:
        _afford_footer(path, file)
        with _garbled(path):
            table = parquet.ParquetFile(file)
            schema = table.schema_arrow
        if columns is None:
            _expect_no_index(path, schema.metadata)
        indices, conditions, label = chosen.indices(path, schema.names)
        names, others = ([schema.names[i] for i in part] for part in (indices, conditions))
        for name in (*names, *others):
            kind, types = schema.field(name).type, pyarrow.types
            good = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
            expect(good, f"{path}, column {name!r}", "numbers", f"{kind} ({RECIPE})")
        expect(table.metadata.num_rows > 0, str(path), "rows of numbers", "none")
        _afford_columns(path, table.metadata, len(names) + len(others) + (label is not None))
        values = _values(path, table, names + others, missing)
        classes = None if label is None else _classes(path, table, schema.names[label])
    events, told_numbers = values[:, : len(names)], values[:, len(names) :]
    given = told_numbers if others else classes
    return table_dataset(path.name, events, names, missing, bins, dtype, continuous, given)


def _afford_footer(path: Path, file: IO[bytes]) -> None:
    """The description at the end of a file, of which everything else depends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    file.seek(0)
    marked = len(end) == 8 and end[4:] == b"PAR1"
    expect(marked, str(path), "a Parquet file, with its mark at its end", repr(end[4:]))
    needed = FOOTER * int.from_bytes(end[:4], "little")
    limits.expect_memory(f"{path}, description", needed, limits.size_on_disk(path))


def _afford_columns(path: Path, metadata: Any, count: int) -> None:
    """Numbers as read, as float64 and as they are returned, beside the largest group of rows."""
    groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    needed = 24 * metadata.num_rows * count + max(groups, default=0)
    limits.expect_memory(str(path), needed, limits.size_on_disk(path))


def _expect_no_index(path: Path, metadata: dict[bytes, bytes] | None) -> None:
    """Raises ValueError if pandas has written an index among the columns."""
    try:
        stored = json.loads((metadata or {}).get(b"pandas", b"{}"))["index_columns"]
        index = [name for name in stored if isinstance(name, str)]
    except (KeyError, TypeError, ValueError, RecursionError):
        return
    got = f"the index {join_names(index)} among them (name those to read)"
    expect(not index, f"{path}, columns", "columns of data alone", got)


def _classes(path: Path, table: Any, name: str) -> list[str]:
    """The class of every row, by name."""
    location, classes = f"{path}, column {name!r}", []
    with _garbled(path):
        # as many names as Arrow reads at a time by default
        for batch in table.iter_batches(2**16, columns=[name], use_threads=False):
            column = batch.column(name)
            expect(column.null_count == 0, location, "a class in every row", "nulls")
            for value in column.to_pylist():
                known = isinstance(value, (str, int))
                expect(known, location, "names or whole numbers", repr(value))
                classes.append(str(value))
    return classes


def _values(path: Path, table: Any, names: list[str], missing: Missing) -> Array:
    """``(rows, columns)`` in float64, NaN where missing."""
    values = np.empty((table.metadata.num_rows, len(names)))
    size, filled = max(1, 2**20 // len(names)), 0  # 8 MiB at a time in float64
    with _garbled(path):
        for batch in table.iter_batches(size, columns=names, use_threads=False):
            rows = values[filled : filled + len(batch)]
            for i, name in enumerate(names):
                rows[:, i] = _column(f"{path}, column {name!r}", batch.column(name), missing)
            filled += len(batch)
        expect(filled == len(values), "rows", str(len(values)), filled)
    return values


def _column(location: str, column: Any, missing: Missing) -> Array:
    nulls = column.null_count
    got = f"{nulls} or more (missing='nan' reads them as missing values)"
    expect(nulls == 0 or missing == "nan", location, "no nulls", got)
    # of whole numbers with gaps Arrow would make rounded ones
    filled: Array = (column.fill_null(0) if nulls else column).to_numpy(zero_copy_only=False)
    exact = filled.dtype.kind == "f" or bool((np.abs(filled.astype("f8")) < 2**53).all())
    expect(exact, location, "whole numbers below 2**53", "larger ones")
    if not nulls:
        return filled
    return np.where(column.is_null().to_numpy(zero_copy_only=False), np.nan, filled)


@contextlib.contextmanager
def _garbled(path: Path) -> Iterator[None]:
    """Damage shows in Arrow, with errors of its own; what is said of a column stays as it is."""
    try:
        yield
    except Exception as error:
        if str(error).startswith(f"{path}, column"):
            raise
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
