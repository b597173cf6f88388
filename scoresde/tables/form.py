"""Forms of tables: an array, a data frame, a structured array, a tensor."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.conversion import Array
from scoresde.data.dataset import Dataset
from scoresde.internals.messages import join_names
from scoresde.tables.cells import Cells

_KNOWN = "an array of rows, a data frame of pandas, a structured array or a scoresde.data.Dataset"


@attrs.frozen(eq=False)
class Form:
    """The form of a table without its rows.

    Args:
        names: Of the columns: those of a data frame, a structured array or a `Dataset`, places
            in others.
        template: The table, without rows.
    """

    names: tuple[Hashable, ...]
    template: Any

    @classmethod
    def read(cls, name: str, table: Any) -> tuple[Form, list[Cells]]:
        """The form of a table, and its columns.

        Args:
            name: What to call it.
            table: A data frame of pandas; an array or nested lists ``(N, columns)`` of numbers,
                words or objects; a structured array ``(N,)``; a tensor ``(N, columns)``; a
                `scoresde.data.Dataset` of such, without conditions.

        Raises:
            TypeError: If it is something else, or a column has neither numbers nor words.
            ValueError: If it has no rows or columns, or two columns have one name.
        """
        names: Sequence[Hashable] | None = None
        if isinstance(table, Dataset):
            got = "conditions (read them as columns)"
            expect(table.condition is None, name, "a table of columns alone", got)
            names, table = table.columns, table.read(slice(None))
        if _is_frame(table):
            form = cls(tuple(table.columns), table.iloc[:0])
            columns = [_of_series(n, table.iloc[:, i]) for i, n in enumerate(form.names)]
        elif isinstance(table, np.ndarray) and table.dtype.names:
            form = cls(tuple(table.dtype.names), table[:0])
            columns = [Cells.of(n, table[n]) for n in table.dtype.names]
        else:
            array = _array(name, table)
            form = cls(
                tuple(range(array.shape[1])) if names is None else tuple(names),
                table[:0] if isinstance(table, Tensor) else array[:0],
            )
            columns = [Cells.of(n, array[:, i]) for i, n in enumerate(form.names)]
        expect(len(columns) > 0, name, "columns", "none")
        expect(len(columns[0]) > 0, name, "rows", "none")
        unique = len(set(form.names)) == len(form.names)
        expect(unique, f"{name}, columns", "different names", join_names(map(str, form.names)))
        return form, columns

    def restore(self, columns: Sequence[Array], index: Any = None) -> Any:
        """A table of this form.

        Args:
            columns: Values, ``(N,)`` each.
            index: Of a data frame.
        """
        template, count = self.template, len(columns[0])
        if _is_frame(template):
            frame = type(template)(dict(enumerate(columns)), index=index)
            frame.columns = template.columns
            return frame.astype(dict(template.dtypes))
        if isinstance(template, Tensor):
            rows = np.stack([np.asarray(c, float) for c in columns], 1)
            return torch.from_numpy(rows).to(template.dtype)
        table: Any = np.empty((count, *template.shape[1:]), template.dtype)
        for i, (name, values) in enumerate(zip(self.names, columns, strict=True)):
            if template.dtype.names:
                table[name] = values
            else:
                table[:, i] = values
        return table

    def indices(self, names: Any) -> list[int]:
        """Places of columns by name, one or several.

        Raises:
            ValueError: If one is unknown.
        """
        several = isinstance(names, (list, tuple, set, np.ndarray)) and names not in self.names
        asked = list(names) if several else [names]
        unknown = [n for n in asked if n not in self.names]
        known = join_names(map(repr, self.names))
        expect(not unknown, "targets", f"some of {known}", join_names(map(repr, unknown)))
        return [self.names.index(n) for n in asked]


def _is_frame(table: Any) -> bool:
    """Whether it is a data frame, without an import of pandas, which may be missing."""
    return all(hasattr(table, name) for name in ("columns", "dtypes", "iloc"))


def _of_series(name: Hashable, series: Any) -> Cells:
    gone = np.asarray(series.isna(), bool)
    kind, dtype = getattr(series.dtype, "kind", "O"), series.dtype
    categories = getattr(dtype, "categories", None)
    if categories is None and kind in "iuf":
        if bool(gone.any()):
            return Cells.of(name, series.to_numpy(np.float64, na_value=np.nan))
        return Cells.of(name, series.to_numpy(f"{kind}8"))
    if kind in "mM":
        return Cells.of(name, np.empty(0, f"{kind}8[ns]"))
    objects = series.astype(object).to_numpy(copy=True)
    objects[gone] = None
    if categories is None:
        return Cells.of(name, objects)
    return Cells(objects, tuple(categories), bool(dtype.ordered))


def _array(name: str, table: Any) -> Array:
    if isinstance(table, Tensor):
        return _array(name, table.detach().cpu().numpy())
    if np.ma.isMaskedArray(table):  # what is masked is missing
        return _array(name, np.ma.filled(table.astype(np.float64), np.nan))
    if not isinstance(table, (np.ndarray, list, tuple)):
        kind = f"{type(table).__module__}.{type(table).__name__}"
        raise TypeError(f"{name}: expected {_KNOWN}, got {kind.removeprefix('builtins.')}")
    try:
        array = np.asarray(table)
        mixed = array.dtype.kind in "US" and not isinstance(table, np.ndarray)
        array = np.asarray(table, object) if mixed else array
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"{name}: expected rows of one length, got {error}") from error
    expect(array.ndim == 2, name, "rows of columns, (N, columns)", f"shape {array.shape}")
    return array
