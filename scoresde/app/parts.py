"""Section ``data`` of a configuration: what is read, and the parts that its events are made of.

Events have parts if there is a table ``parts``. Each is one of

    x = "whole"                                 # a degradation of the source's events, by name
    y = { name = "downsample", factor = 8 }     # with arguments
    z = ["length", "width"]                     # columns of a table
    w = { source = "sketches", mode = "L" }     # data of its own, in the same order
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from scoresde import plugins
from scoresde.app import config
from scoresde.app.conditions import aligned
from scoresde.app.factories import ConfigError, call_factory, expect_known
from scoresde.checks import expect, real, whole
from scoresde.data import Dataset, degraded, joined, reader, select_columns, split
from scoresde.data.parts import expect_partition

OF_SPLIT = ("source", "parts", "held_out", "seed")
"""Entries of the section that are no options of a reader."""

SEEDS = 2**63 - 1
"""The largest seed: torch's are 64 bits, with a sign."""


def read_data(section: Mapping[str, Any], *, imports: bool = False) -> Dataset:
    """The data that a section ``data`` describes.

    Args:
        section: A ``source``, options of what reads it, and ``parts``; see the module.
        imports: Whether degradations may be import paths.

    Raises:
        ConfigError: If an entry is unknown, missing or wrong.

    Example:
        >>> from scoresde.app.parts import read_data
        >>> left, right = ({"name": "crop", "columns": [k, k + 4]} for k in (0, 4))
        >>> read_data({"source": "digits", "parts": {"y": left, "x": right}}).parts
        {'y': (1, 8, 4), 'x': (1, 8, 4)}
    """
    parts = section.get("parts")
    if parts is None:
        return _read(section, "data")
    if not isinstance(parts, Mapping):
        raise ConfigError(f"data.parts: expected a table, [data.parts] in a file, got {parts!r}")
    own = {name: part for name, part in parts.items() if _has_source(part)}
    common = None if len(own) == len(parts) else _read(section, "data")
    if common is None and "source" in section:
        raise ConfigError("data.source: expected none, as every part has its own, got one")
    build = partial(_part, common, imports=imports)
    columns = {name: part for name, part in parts.items() if isinstance(part, list)}
    try:
        read = {name: build(part, f"data.parts.{name}") for name, part in parts.items()}
        if columns and common is not None:
            expect_partition(common.columns or (), columns)
        return joined("data" if common is None else common.name, read)
    except (TypeError, ValueError) as error:
        raise ConfigError(_in_section(error)) from error


def data_of(settings: Mapping[str, Any], *, imports: bool = False) -> tuple[Dataset, Dataset]:
    """The training and held-out shares of a configuration's data.

    Args:
        settings: The configuration.
        imports: Whether names may be import paths.

    Raises:
        ConfigError: If the section is missing or an option is wrong.
    """
    options = config.section(settings, "data")
    share, seed = options.get("held_out", 0.1), options.get("seed", 0)
    real("data.held_out", share)
    expect(0 < share < 1, "data.held_out", "a share between 0 and 1", share)
    whole("data.seed", seed, 0, SEEDS)
    return split(read_data(options, imports=imports), 1 - share, seed)


def data_like(
    settings: Mapping[str, Any],
    source: str | Sequence[str],
    facts: Mapping[str, Any] | None = None,
    *,
    imports: bool = False,
) -> Dataset:
    """Other data, read with those options of a configuration's data that apply to them.

    Args:
        settings: The configuration.
        source: A built-in set, a file or a folder; of parts that have a source of their own
            ``part=path``, one for each.
        facts: Of the model that was trained: columns are those it knows, wherever they stand
            in the file, and bins of an array as many.
        imports: Whether names may be import paths.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        ValueError: If the data cannot be read or used.
    """
    known = {name: (facts or {}).get(name) for name in ("bins", "columns")}
    options = {name: value for name, value in known.items() if value is not None}
    section = config.section(settings, "data")
    parts = section.get("parts") or {}
    common, own = _sources([source] if isinstance(source, str) else source, parts)
    whole = {} if common is None else _read_like(common, {**options, **section})
    if parts:
        # columns are those of the parts that are made of them
        options.pop("columns", None)
        read = {name: _read_like(own[name], {**options, **parts[name]}) for name in own}
        whole["parts"] = {**parts, **read}
    return aligned(read_data(whole, imports=imports), facts or {})


def given_parts(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the parts that a configuration's estimator is given; none of most."""
    table = config.with_defaults(settings["estimator"], "estimator", imports=True)
    given = table.get("given", ())
    return (given,) if isinstance(given, str) else tuple(given)


def _sources(texts: Sequence[str], parts: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The common source of parts of other data, and their own sources."""
    wanted = [name for name, part in parts.items() if _has_source(part)]
    pairs = [text.partition("=") for text in texts]
    own = {name: path for name, sign, path in pairs if sign and name in wanted}
    common = [text for text, (name, _, _) in zip(texts, pairs, strict=True) if name not in own]
    alone = len(common) + len(own) == len(texts)
    expect(alone and own.keys() == {*wanted}, "data", _wanted(wanted, parts), list(texts))
    expect(len(common) == (len(wanted) < max(len(parts), 1)), "data", _wanted(wanted, parts), texts)
    return (common[0] if common else None), own


def _wanted(own: Sequence[str], parts: Mapping[str, Any]) -> str:
    """The sources that other data need, for messages."""
    named = [f"{name}=path" for name in own]
    return " and ".join([*(["a path"] if len(own) < max(len(parts), 1) else []), *named])


def _read_like(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A source with those options that apply to what reads it."""
    allowed = inspect.signature(reader(source)).parameters.keys() - {"seed"}  # there, of the split
    accepted = {key: options[key] for key in (allowed | {"parts"}) & options.keys()}
    return {**accepted, "source": source}


def _part(common: Dataset | None, entry: Any, key: str, imports: bool) -> Dataset:
    """A part, of the events of the section's source or of its own."""
    if _has_source(entry):
        return _read(entry, key)
    assert common is not None
    if isinstance(entry, list):
        return select_columns(common, entry)
    match entry:
        case str(name):
            arguments: dict[str, Any] = {}
        case {"name": str(name)}:
            arguments = {argument: v for argument, v in entry.items() if argument != "name"}
        case _:
            expected = "a name, a table with a name or a source, or columns"
            raise ConfigError(f"{key}: expected {expected}, got {entry!r}")
    factory: Any = plugins.get("degradations", name, imports=imports)
    degradation = call_factory(factory, arguments, key)
    if not callable(degradation):
        expected = "a plugin that makes a function of events"
        raise ConfigError(f"{key}: expected {expected}, got {degradation!r} of {name!r}")
    return degraded(common, degradation)


def _read(section: Mapping[str, Any], key: str) -> Dataset:
    """Data read with a reader's options."""
    options = {name: value for name, value in section.items() if name not in OF_SPLIT}
    source = section.get("source")
    if not isinstance(source, str) or not source:
        got = "none" if source is None else repr(source)
        raise ConfigError(f"{key}.source: expected a data set, a file or a folder, got {got}")
    read = reader(source)
    expect_known(read, options, key, OF_SPLIT)
    try:
        return read(**options)
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from error


def _has_source(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "source" in entry


def _in_section(error: Exception) -> str:
    text = str(error)
    return text if text.startswith("data") else f"data.{text}"
