"""A table as events of a diffusion: every column is one standard normal coordinate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect, instance
from scoresde.data.conversion import Array
from scoresde.internals.messages import join_names
from scoresde.tables.cells import Cells
from scoresde.tables.column import Column, column
from scoresde.tables.form import Form


@attrs.frozen(eq=False)
class TableCoordinates:
    """From tables of one form to events ``(N, columns)``, NaN where a value is missing, and back.

    Args:
        form: What tables come in.
        columns: What is known of each column.
    """

    form: Form
    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, table: Any, kinds: Mapping[Hashable, str] | None = None) -> TableCoordinates:
        """Coordinates of a table, see `Form.read`; kinds by name, see `column`."""
        form, cells = Form.read("X", table)
        instance("kinds", kinds or {}, Mapping)
        told = dict(kinds or {})
        unknown = [name for name in told if name not in form.names]
        known = join_names(map(repr, form.names))
        expect(not unknown, "kinds", f"some of the columns {known}", unknown)
        pairs = zip(form.names, cells, strict=True)
        return cls(form, tuple(column(name, values, told.get(name)) for name, values in pairs))

    def cells(self, table: Any, hidden: Sequence[int] = ()) -> list[Cells]:
        """Values of every column of another table, without those of the places ``hidden``.

        Columns that have names are found by them, in any order; hidden ones may be absent.

        Raises:
            ValueError: If a column is absent or unknown.
        """
        names, wanted = self.form.names, f"the columns {join_names(map(repr, self.form.names))}"
        form, columns = Form.read("X", table)
        named = any(isinstance(name, str) for name in names)
        if named and not any(isinstance(name, str) for name in form.names):
            form = attrs.evolve(
                form, names=names[: len(form.names)]
            )  # an array of the same columns
        by_name = dict(zip(form.names, columns, strict=True))
        unknown = [repr(name) for name in by_name if name not in names]
        expect(not unknown and len(form.names) <= len(names), "X", wanted, join_names(unknown))
        absent = [n for i, n in enumerate(names) if n not in by_name and i not in hidden]
        expect(not absent, "X", wanted, f"none called {join_names(map(repr, absent))}")
        none = Cells(np.full(len(columns[0]), np.nan))
        return [none if i in hidden else by_name[n] for i, n in enumerate(names)]

    def events(
        self, table: Any, chance: np.random.Generator, hidden: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Events ``(N, columns)`` in float64, and ``-log q`` of each value: see `column`.

        Args:
            table: Of any form.
            chance: Places of values in their intervals.
            hidden: Places of columns that are treated as missing.
        """
        cells = self.cells(table, hidden)
        u = chance.random((len(cells[0]), len(cells)))
        pairs = [
            c.encode(v, u[:, i]) for i, (c, v) in enumerate(zip(self.columns, cells, strict=True))
        ]
        events, factors = (torch.from_numpy(np.stack(part, 1)) for part in zip(*pairs, strict=True))
        return events, factors

    def values(self, events: Tensor) -> list[Array]:
        """Values of every column, of events ``(N, columns)``."""
        rows = events.detach().cpu().double().numpy()
        return [c.decode(rows[:, i]) for i, c in enumerate(self.columns)]

    def table(self, events: Tensor) -> Any:
        """A table in the form that the model was fitted on."""
        return self.form.restore(self.values(events))
