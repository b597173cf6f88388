"""Tables in text files: every cell is a number, or there is an error that says where."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
import os
import re
import reprlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from attrs import define, field, frozen

from scoresde.checks import choice, expect
from scoresde.data.dataset import Dataset
from scoresde.data.tables import (
    MISSING,
    RECIPE,
    Columns,
    Missing,
    check_missing,
    table_dataset,
)
from scoresde.internals import limits

CHARACTER = 64
"""Bytes of memory for a character of a line, while it is split: three make a string of 51 bytes."""

_INFINITE = {"inf", "infinity"}
"""Cells that stand for what no event can have, in small letters."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Marks at the start of a file; those of UTF-32 first, as one begins with one of UTF-16."""


def read_csv(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    labels: str | None = None,
    condition: Sequence[str] | None = None,
    delimiter: str | None = None,
    decimal: str = ".",
    header: bool | None = None,
    comment: str | None = None,
    encoding: str | None = None,
    missing: Missing = None,
    bins: int | None = None,
    dtype: str | None = None,
    continuous: bool = False,
) -> Dataset:
    r"""Reads a table of numbers: every line is an event ``(columns,)``.

    Numbers are written as ``-1``, ``2.5`` or ``.5e-3``, without separators of thousands. Words,
    dates, and what a float64 cannot hold are refused.

    Args:
        path: A text file.
        columns: Names of those to read, in this order; all others if None.
        labels: The name of the column that says which class an event is of, by name: events are
            conditioned on it, and not made of it.
        condition: Names of columns of numbers that events are conditioned on.
        delimiter: Between cells: by default a tab in a ``.tsv`` file, else ``,``.
        decimal: Begins the fraction of a number: ``"."`` or ``","``.
        header: Whether the first line names the columns. By default it does if no cell is a
            number, and is an event if all are; it is refused if it can be either, as the whole
            numbers ``2019,2020``. Without one, names are ``"1"``, ``"2"``, and so on.
        comment: Lines that begin with it are left out.
        encoding: Of the text: by default UTF-8, or UTF-16 or UTF-32 if its mark says so.
        missing: ``"nan"`` makes NaN of cells that are empty, ``NA``, ``N/A``, ``NaN``, ``null`` or
            ``None``, in small or large letters. By default they are refused.
        bins: Number of bins, if all columns hold whole numbers of ``0..bins-1``.
        dtype: ``"float32"`` or ``"float64"``. By default torch's default dtype; values that differ
            and would be equal in it are refused.
        continuous: Whether columns of whole numbers are meant as real ones; by default there is a
            warning.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If there are no events, a column is unknown or two have the same name, a line
            is longer or shorter than the first, or a cell is not as it should be; the message
            names line and column.

    Warns:
        UserWarning: If columns hold whole numbers alone.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.data import read_csv
        >>> path = Path(tempfile.mkdtemp(), "x.csv")
        >>> _ = path.write_text("name,length,weight\nrose,1.5,20.5\nlily,2.5,30\n")
        >>> read_csv(path, columns=["weight", "length"]).values
        tensor([[20.5000,  1.5000],
                [30.0000,  2.5000]])
    """
    path = Path(path)
    check_missing(missing)
    choice("header", header, None, False, True)
    choice("decimal", decimal, ".", ",")
    delimiter = _delimiter(path, delimiter, decimal)
    worded = comment is None or (isinstance(comment, str) and comment != "")
    expect(worded, "comment", "what such lines begin with", repr(comment))
    numbers = NumberParser(decimal, missing == "nan", delimiter)
    chosen = Columns(columns, labels, condition)
    with limits.opened(path) as file, _decoded(file, encoding) as text:
        lines = _Lines(str(path), text, comment)
        try:
            names, values, classes = _read(lines, delimiter, numbers, header, chosen)
        except csv.Error as error:
            raise ValueError(f"{lines.location}: cannot be read as CSV: {error}") from error
        except UnicodeError as error:  # of a piece of text, which need not be the next line
            hint = "encoding= says how text is encoded"
            raise ValueError(f"{path}: cannot be read as CSV: {error} ({hint})") from error
    table = np.frombuffer(values).reshape(-1, len(names) + len(condition or ()))
    events, conditions = table[:, : len(names)], table[:, len(names) :] if condition else classes
    return table_dataset(path.name, events, names, missing, bins, dtype, continuous, conditions)


def _delimiter(path: Path, delimiter: str | None, decimal: str) -> str:
    """The delimiter, by default that of the suffix."""
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        expect(delimiter != decimal, "delimiter", "what stands between cells if not a comma", None)
    single = isinstance(delimiter, str) and len(delimiter) == 1
    usable = single and delimiter not in '+-."\r\n' and not delimiter.isalnum()
    expect(usable, "delimiter", "one character that no number has", repr(delimiter))
    return delimiter


def _decoded(file: io.BufferedReader, encoding: str | None) -> io.TextIOWrapper:
    start = file.peek(4)[:4]
    marked = next(
        (name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig"
    )
    try:
        return io.TextIOWrapper(file, encoding or marked, newline="")
    except (LookupError, TypeError) as error:
        raise ValueError(f"encoding: expected one of Python's, got {encoding!r}") from error


@define
class _Lines:
    """Lines of a table, counted, without comments; a record has a bound.

    Attributes:
        most: Characters of a record.
        number: How many have been read.
        length: Characters of the record so far: cells in quotes go over several lines.
        begun: Whether there has been a record.
    """

    path: str
    text: TextIO
    comment: str | None
    most: int = field(factory=lambda: limits.memory() // CHARACTER)
    number: int = 0
    length: int = 0
    begun: bool = False

    @property
    def location(self) -> str:
        """The last line that was read, for messages."""
        return f"{self.path}, line {self.number}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while line := self.text.readline(self.most + 1):
            self.number += 1
            if self.length == 0 and self.comment and line.startswith(self.comment):
                continue
            self.length += len(line)
            expect(
                self.length <= self.most, self.location, f"at most {self.most} characters", "more"
            )
            return line
        raise StopIteration


def _read(
    lines: _Lines,
    delimiter: str,
    numbers: NumberParser,
    header: bool | None,
    columns: Columns,
) -> tuple[list[str], array[float], list[str] | None]:
    """Names of columns, their numbers and those of conditions, row by row, and classes."""
    records = _records(lines, delimiter)
    first = next(records, [])
    expect(len(first) > 0, lines.path, "lines of numbers", "none")
    named = _is_header(lines.location, first, numbers, header)
    names = [cell.strip() for cell in first] if named else [str(i + 1) for i in range(len(first))]
    indices, conditions, label = columns.indices(lines.path, names)
    values: array[float] = array("d")
    classes: list[str] = []
    for cells in records if named else itertools.chain([first], records):
        if len(cells) != len(names):
            mark = next((mark for mark in ";\t|" if mark in first[0] and mark != delimiter), None)
            hint = f" (delimiter={mark!r} may separate them)" if mark else ""
            expect(False, lines.location, f"{len(names)} columns", f"{len(cells)}{hint}")
        for i in (*indices, *conditions):
            try:
                values.append(numbers(cells[i]))
            except ValueError as error:
                column = f"{i + 1} ({names[i]})" if named else names[i]
                raise ValueError(f"{lines.location}, column {column}: {error}") from None
        if all(map(math.isnan, values[-len(indices) - len(conditions) :][: len(indices)])):
            expect(False, lines.location, "a value in every line", "none")
        if label is not None:
            cell = cells[label].strip()
            known = cell.lower() not in MISSING
            expect(known, f"{lines.location}, column {names[label]}", "a class", _short(cell))
            classes.append(cell)
    expect(len(values) > 0, lines.path, "lines of numbers", "none")
    return [names[i] for i in indices], values, None if label is None else classes


def _records(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    """Cells of every line that is not empty."""
    empty = ""
    for record in csv.reader(lines, delimiter=delimiter, strict=True):
        lines.length = 0
        if record:
            # a table of one column writes a missing value so; at the end it is nothing
            expect(len(record) > 1 or not empty, empty, "a number", "an empty line")
            yield record
        elif not empty and lines.begun:
            empty = lines.location
        lines.begun = lines.begun or bool(record)


def _is_header(
    location: str, first: Sequence[str], numbers: NumberParser, header: bool | None
) -> bool:
    """Whether the first line names the columns."""
    if header is not None:
        return bool(header)
    hint = "header=True takes them for names, header=False for numbers"
    remark = f"'#' at its start (comment='#' leaves such lines out, {hint})"
    expect(not first[0].startswith("#"), location, "names or numbers", remark)
    expect("\0" not in "".join(first), location, "text", "null characters (encoding= may help)")
    if all(map(numbers.is_number_or_missing, first)) and any(map(numbers.is_number, first)):
        whole = len(set(first)) == len(first) and all(cell.strip().isdecimal() for cell in first)
        got = f"whole numbers, all different ({hint})"
        expect(not whole, location, "either names or numbers", got)
        return False
    for cell in map(str.strip, first):
        got = f"{_short(cell)} beside others ({hint})"
        expect(cell == "" or _is_name(cell), location, "either names or numbers", got)
    return True


def _is_name(cell: str) -> bool:
    """Whether a cell has letters, and does not stand for a value."""
    value = cell.lower().lstrip("+-")
    return any(map(str.isalpha, cell)) and value not in {*MISSING, *_INFINITE}


@frozen
class NumberParser:
    """Parses the cells of a table.

    Args:
        decimal: Begins a fraction.
        missing: Whether a cell may stand for no value.
        delimiter: Between cells, for messages.
    """

    decimal: str
    missing: bool
    delimiter: str
    pattern: re.Pattern[str] = field(init=False)

    @pattern.default
    def _pattern(self) -> re.Pattern[str]:
        point = re.escape(self.decimal)
        return re.compile(rf"[+-]?([0-9]+({point}[0-9]*)?|{point}[0-9]+)([eE][+-]?[0-9]+)?")

    def __call__(self, cell: str) -> float:
        """The number, or NaN for none; raises ``ValueError`` for what is neither."""
        cell = cell.strip()
        if self.pattern.fullmatch(cell):
            value = float(cell.replace(self.decimal, "."))
            if len(cell) > 15 or value == 0 or math.isinf(value):
                self._expect_held(value, cell)
            return value
        if self.missing and cell.lower() in MISSING:
            return math.nan
        raise ValueError(f"expected a finite number, got {_short(cell)}{self._hint(cell)}")

    def _expect_held(self, value: float, cell: str) -> None:
        """Raises ValueError where a float64 is not what a cell says, but for digits it rounds."""
        if value == 0:
            representable = not re.search("[1-9]", re.split("[eE]", cell)[0])
        else:
            exact = not cell.lstrip("+-").isdecimal() or abs(value) < 2**53
            representable = exact and not math.isinf(value)
        if not representable:
            raise ValueError(f"expected a number that a float64 holds, got {_short(cell)}")

    def is_number(self, cell: str) -> bool:
        """Whether a cell is a number."""
        return self.pattern.fullmatch(cell.strip()) is not None

    def is_number_or_missing(self, cell: str) -> bool:
        """Whether a cell is a number, or stands for a missing one."""
        return self.is_number(cell) or cell.strip().lower() in MISSING

    def _hint(self, cell: str) -> str:
        """What would help."""
        if cell.lower() in MISSING:
            return " (missing='nan' reads it as a missing value)"
        if cell.lower().lstrip("+-") in _INFINITE:
            return ""
        marks = (mark for mark in ";\t|," if mark in cell)
        between = next((m for m in marks if m not in (self.delimiter, self.decimal)), None)
        other = (
            NumberParser(",", False, "") if self.decimal == "." else NumberParser(".", False, "")
        )
        if re.search(r"[^\W\d_]|\d[-/:]\d|^\d\d?\.\d\d?\.\d\d", cell):
            return f" ({RECIPE})"
        if other.is_number(cell):
            return f" (decimal={other.decimal!r} reads it, if that begins its fraction)"
        if between and not re.search(r"[^\d\s.,;|+-]", cell):
            return f" (delimiter={between!r} reads it, if that stands between two columns)"
        if re.fullmatch(r"[+-]?[\d.,'_\s]+", cell):
            return " (numbers are read without separators of thousands)"
        return ""


def _short(cell: str) -> str:
    return reprlib.repr(cell)
