"""Conditions of samples: classes by name, or rows of a file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.app import config
from scoresde.checks import expect
from scoresde.data import Dataset, load
from scoresde.internals.messages import join_names


def aligned(data: Dataset, facts: Mapping[str, Any]) -> Dataset:
    """Other data, with the numbers that a model has for their classes.

    Raises:
        ValueError: If there is a class that it does not know.
    """
    classes, conditions = facts.get("classes"), data.condition
    if not classes or data.classes is None or not isinstance(conditions, Tensor):
        return data
    unknown = [name for name in data.classes if name not in classes]
    expect(not unknown, "data", f"classes among {join_names(classes)}", join_names(unknown))
    indices = torch.tensor([classes.index(name) for name in data.classes], device="cpu")
    return attrs.evolve(data, condition=indices[conditions], classes=tuple(classes))


def classes_of(
    facts: Mapping[str, Any], names: Sequence[str], count: int, generator: torch.Generator
) -> Tensor:
    """The classes of samples, in blocks of equal size up to one.

    Args:
        facts: Of the model.
        names: Of classes, or, where none has a number for a name, their numbers; if there are
            none, classes are drawn as in the data.
        count: How many.
        generator: Of what is drawn.

    Returns:
        ``(count,)``.

    Raises:
        ValueError: If the model knows no labels, or not this one, or there are too few samples.
    """
    classes = facts.get("classes")
    expect(bool(classes), "--label", "a model of data with labels", "one without")
    assert classes is not None
    if not names:
        shares = torch.tensor(facts["class_counts"], dtype=torch.float64, device="cpu")
        return shares.multinomial(count, True, generator=generator).sort().values
    known, expected = {name: i for i, name in enumerate(classes)}, f"one of {join_names(classes)}"
    if not any(name.isdecimal() for name in classes):  # else nobody knows which number is meant
        known |= {str(label): label for label in range(len(classes))}
        expected += ", or its number"
    for name in names:
        expect(name in known, "--label", expected, repr(name))
    return torch.tensor([known[name] for name in names])[_blocks("--label", len(names), count)]


def conditions_from_file(
    settings: Mapping[str, Any], facts: Mapping[str, Any], path: str | os.PathLike[str], count: int
) -> Tensor:
    r"""Conditions from a file, each for a block of samples of equal size up to one.

    Args:
        settings: Of the model.
        facts: Of the model.
        path: An array ``(k, *shape)``, or a table with the columns that the data had.
        count: How many samples.

    Returns:
        ``(count, *shape)``.

    Raises:
        ValueError: If the model has no such conditions, or there are too few samples.
    """
    shape = facts.get("condition_shape")
    expect(bool(shape), "--condition", "a model of data with such conditions", "one without")
    table = os.fspath(path).lower().endswith((".csv", ".tsv", ".parquet"))
    names = config.section(settings, "data").get("condition") if table else None
    options = {"columns": names} if isinstance(names, list) else {}
    rows = load(path, continuous=True, **options).values[:]
    expect(list(rows.shape[1:]) == shape, "--condition", f"rows {shape}", tuple(rows.shape))
    return rows[_blocks("--condition", len(rows), count)]


def _blocks(name: str, rows: int, count: int) -> Tensor:
    """Which block each of many rows belongs to."""
    expect(count >= rows, "--count", f"at least {rows}, one for each {name}", count)
    return torch.arange(count, device="cpu") * rows // count


@attrs.frozen(eq=False)
class SampleConditions:
    """Conditions of samples, and how files show them.

    Attributes:
        condition: ``(count, *)``; None if there is none.
        message: What to tell the user, if anything.
        classes: Of each sample by name, where there are several.
        extra_columns: Columns of a table beside those of the events, by name.
    """

    condition: Tensor | None = None
    message: str | None = None
    classes: Sequence[str] | None = None
    extra_columns: Mapping[str, Sequence[str]] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        labels: Sequence[str],
        condition: str | os.PathLike[str] | None,
        count: int,
        seed: int,
    ) -> SampleConditions:
        """Conditions of a model's samples: classes by name, a file, or drawn as in the data.

        Raises:
            ValueError: See `classes_of` and `conditions_from_file`; or if both are given, or none
                are known.
        """
        expect(not labels or condition is None, "--condition", "none beside --label", condition)
        column = config.section(settings, "data").get(
            "labels" if condition is None else "condition"
        )
        if condition is not None:
            conditions = conditions_from_file(settings, facts, condition, count)
            columns = column if isinstance(column, list) and conditions.ndim == 2 else []
            cells = zip(columns, conditions.mT.numpy().astype(str).tolist(), strict=bool(columns))
            return cls(conditions, extra_columns=dict(cells))
        if not labels and not facts.get("classes"):
            shape = facts.get("condition_shape")
            wanted = "a file with what samples are conditioned on"
            expect(
                not shape, "--condition", f"{wanted}, (k, {', '.join(map(str, shape or ()))})", None
            )
            return cls()
        conditions = classes_of(facts, labels, count, torch.Generator("cpu").manual_seed(seed))
        classes = [facts["classes"][label] for label in conditions.tolist()]
        counts = ", ".join(f"{name} ({n})" for name, n in Counter(classes).items())
        how = "" if labels else " (drawn as in the data; --label chooses)"
        extra_columns = {column if isinstance(column, str) else "label": classes}
        names = None if len(labels) == 1 else classes
        return cls(conditions, f"labels: {counts}{how}", names, extra_columns)

    def repeated(self, times: int) -> SampleConditions:
        """The same again and again."""
        if self.condition is None or times == 1:
            return self
        conditions = self.condition.repeat(times, *[1] * (self.condition.ndim - 1))
        classes = None if self.classes is None else [*self.classes] * times
        extra_columns = {name: [*cells] * times for name, cells in self.extra_columns.items()}
        return SampleConditions(conditions, self.message, classes, extra_columns)


_FLAGS = {"guidance": "--guidance", "interval": "--guidance-interval"}
"""Options of the command line, by the arguments of estimators that they stand for."""


def with_options(
    settings: Mapping[str, Any], options: Mapping[str, Any] | None, imports: bool = False
) -> dict[str, Any]:
    """A configuration with other arguments of the estimator, those that are not None.

    Raises:
        ValueError: If it does not take them.
    """
    given_options = {name: value for name, value in (options or {}).items() if value is not None}
    if not given_options:
        return dict(settings)
    full = config.with_defaults(settings["estimator"], "estimator", imports=imports)
    for name in given_options:
        wanted = "a model whose estimator guides, such as classifier-free"
        expect(name in full, _FLAGS.get(name, name), wanted, repr(full["name"]))
    table = settings["estimator"]
    table = dict(table) if isinstance(table, Mapping) else {"name": table}
    return {**settings, "estimator": {**table, **given_options}}


def guides(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration sets a guidance."""
    table = settings["estimator"]
    return isinstance(table, Mapping) and table.get("guidance", 1) != 1
