"""Rows whose missing values are filled: draws of them given the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from scoresde.data.conversion import Array
from scoresde.tables.cells import Cells
from scoresde.tables.coordinates import TableCoordinates


@attrs.frozen(eq=False)
class Completions:
    """Draws of the missing values of some rows.

    Args:
        coordinates: Of the table.
        cells: What is known of every column, ``(N,)`` each; it stays as it is.
        events: Draws, ``(draws, N, columns)``.
        index: Of the rows, if they came in a data frame.
    """

    coordinates: TableCoordinates
    cells: Sequence[Cells]
    events: Tensor
    index: Any = None

    def drawn(self) -> Any:
        """A table of all draws, those of a row one after the other."""
        count = len(self.events)
        index = None if self.index is None else np.repeat(self.index, count)
        known = [Cells(cell.values.repeat(count)) for cell in self.cells]
        return self._filled(known, self.events.transpose(0, 1).flatten(0, 1), index)

    def quantile(self, q: float) -> Any:
        """A table of one quantile of every missing value; of categories without an order, a mode.

        See `scoresde.tables.column.Column.quantile`.
        """
        pairs = zip(self.coordinates.columns, self.events.unbind(-1), strict=True)
        rows = torch.stack([column.quantile(z, q) for column, z in pairs], -1)
        return self._filled(self.cells, rows, self.index)

    def _filled(self, known: Sequence[Cells], rows: Tensor, index: Any) -> Any:
        values = self.coordinates.values(rows)
        pairs = zip(values, known, strict=True)
        return self.coordinates.form.restore([_where_missing(c, v) for v, c in pairs], index)


def _where_missing(cells: Cells, filled: Array) -> Array:
    values: Array = cells.values.copy()
    missing = cells.missing
    if values.dtype != filled.dtype:  # a column that was absent has no kind yet
        values = values.astype(object)
    values[missing] = filled[missing]
    return values
