"""Tables of numbers in text files."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scoresde.checks import expect
from scoresde.data.dataset import Dataset
from scoresde.data.stored import Array, native


def read_csv(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, delimiter: str = ","
) -> Dataset:
    r"""Reads a table of numbers: every line is an event ``(columns,)``.

    Args:
        path: A text file in UTF-8. A first line without a single number names the columns;
            without one, their names are ``"1"``, ``"2"``, and so on.
        columns: Names of those to read, in this order; all if None.
        delimiter: What stands between two numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no events, a column is unknown, a line is longer or shorter than
            the first, or something is not a finite number; the message names line and column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.data import read_csv
        >>> path = Path(tempfile.mkdtemp(), "x.csv")
        >>> _ = path.write_text("name,length,weight\nrose,1.5,20\nlily,2.5,30\n")
        >>> read_csv(path, columns=["weight", "length"]).values
        tensor([[20.0000,  1.5000],
                [30.0000,  2.5000]])
    """
    path = Path(path)
    return Dataset(path.name, native(table(path, columns, delimiter)))


def table(path: Path, columns: Sequence[str] | None, delimiter: str) -> Array:
    r"""The numbers of a CSV file, ``(lines, columns)``; see `scoresde.data.read_csv`.

    Raises:
        ValueError: As for `scoresde.data.read_csv`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.data.tables import table
        >>> path = Path(tempfile.mkdtemp(), "x.csv")
        >>> _ = path.write_text("1;2\n3;4\n")
        >>> table(path, columns=["2"], delimiter=";")
        array([[2.],
               [4.]])
    """
    names: list[str] = []
    chosen: list[int] = []
    labels: list[str] = []
    events: list[list[float]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for cells in filter(None, reader):
                line = f"{path}, line {reader.line_num}"
                if not names:
                    numbers = any(map(_is_number, cells))
                    places = [str(i + 1) for i in range(len(cells))]
                    names = places if numbers else [cell.strip() for cell in cells]
                    for name in columns or ():
                        expect(name in names, "columns", f"some of {', '.join(names)}", name)
                    chosen = [names.index(name) for name in columns or names]
                    labels = places
                    if not numbers:
                        labels = [f"{i} ({name})" for i, name in zip(places, names, strict=True)]
                        continue
                expect(len(cells) == len(names), line, f"{len(names)} columns", len(cells))
                for i in chosen:
                    place = f"{line}, column {labels[i]}"
                    expect(_is_number(cells[i]), place, "a finite number", repr(cells[i]))
                events.append([float(cells[i]) for i in chosen])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as CSV: {error}") from error
    expect(len(events) > 0, str(path), "lines of numbers", "none")
    return np.array(events)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
