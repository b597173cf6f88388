"""Files of what samples are to be given, read as a model's data were."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from scoresde.app import config
from scoresde.app.model import Model
from scoresde.checks import expect
from scoresde.data import Dataset, reader

_OF_EVENTS = ("size", "key", "lazy", "seed", "parts", "flip", "crop", "labels", "condition")
"""Options of the data that are not those of what is given: it has the size that it has, or else it
is refused."""


def read_given(
    model: Model,
    path: str,
    shape: Sequence[int],
    what: str,
    own: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
) -> Dataset:
    """Reads what samples are given.

    Args:
        model: Whose data have said how.
        path: A file or a folder.
        shape: Of what is given for one event.
        what: That is, for messages.
        own: Options that it has for itself.
        columns: Of a table.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not as it was said, or has another shape or other bins.
    """
    read = reader(path)
    options = {**config.section(model.settings, "data"), "bins": model.facts["bins"], **(own or {})}
    options |= {"columns": columns, "mode": "L" if shape[0] == 1 else "RGB"}
    accepted = inspect.signature(read).parameters.keys() - set(_OF_EVENTS)
    known = {key: options[key] for key in accepted & options.keys() if options[key] is not None}
    data = read(**known)
    got = tuple(data.values.shape[1:])
    expect(got == tuple(shape), "--given", f"events {tuple(shape)}{what}", f"{got} in {path}")
    expect_bins("--given", model, data, path)
    return data


def expect_bins(option: str, model: Model, data: Dataset, path: str) -> None:
    """Raises ``ValueError`` for data of another kind than those of the training."""
    got, expected = (f"{n} bins" if n else "real numbers" for n in (data.bins, model.facts["bins"]))
    expect(got == expected, option, f"{expected}, as trained on", f"{got} in {path}")
