"""Objects from the tables of a TOML file, through the plugin registry.

A table with a ``name`` is an object of the group that its key stands for (``sde``, ``schedule``,
``basis``, ``estimator``, ``network``, ``solver``, ``operator``); its other entries are keyword
arguments, and tables among them are objects in turn. A name with a colon is an import path, if
those are allowed; otherwise a file runs nothing but what is installed as a plugin.

Arguments that a factory takes and the file leaves out are supplied from what is known of the data
and the model: `SUPPLIED` lists the names of each group. A factory with other names for them has an
attribute ``supplied``, as `scoresde.PCA` has.

    [sde]
    name = "diagonal"
    scale = "data_std"                 # a string that names something `MEASURED` stands for it
    [sde.schedule]
    name = "cosine"
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from scoresde import plugins
from scoresde.app.factories import ConfigError, call_factory, parameters
from scoresde.bases import Basis
from scoresde.checks import instance
from scoresde.estimator import ScoreEstimator
from scoresde.internals import limits
from scoresde.schedules import Schedule
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_GROUPS = {
    "sde": "sdes",
    "schedule": "schedules",
    "basis": "bases",
    "bases": "bases",
    "estimator": "estimators",
    "network": "networks",
    "networks": "networks",
    "embed": "networks",  # of the noise level, for a network of another library
    "solver": "solvers",
    "operator": "degradations",  # of an estimator that knows what it has left
}

_MADE_LATER = ("networks", "bases")
"""Arguments that are factories: one for every stage, or for every part."""

_KINDS: dict[str, type] = {
    "sdes": SDE,
    "schedules": Schedule,
    "bases": Basis,
    "estimators": ScoreEstimator,
    "networks": nn.Module,
    "solvers": Solver,
    "degradations": Callable,  # type: ignore[dict-item]
}

SUPPLIED: dict[str, tuple[str, ...]] = {
    "sdes": ("event_shape", "data_mean", "data_std"),
    "schedules": (),
    "bases": ("event_shape", "parts"),
    "estimators": ("sde", "basis", "event_shape", "data_mean", "data_std"),
    "networks": (
        *("event_shape", "classes", "condition_dim", "condition_channels"),
        *("condition_mean", "condition_std"),
    ),
    "solvers": (),
    "degradations": (),
}
"""Arguments that factories of a group are given where the file says nothing of them."""

_OF_DATA = {"null_condition": "labels or a condition", "parts": "parts"}
"""What data have that a value is supplied from, where not all have it."""

MEASURED = ("event_shape", "parts", "data_mean", "data_std", "data_components")
"""What is known of the data, and what a string in the file may stand for."""


class Lazy:
    """A value that is computed at its first use."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.value = functools.cache(compute)


def read(path: str | Path) -> dict[str, Any]:
    r"""Reads a TOML file.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ConfigError: If it is not TOML, no file, or larger than `scoresde.internals.limits` allows.
    """
    try:
        text = limits.read(path, limits.TOML)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for i, line in enumerate(text.splitlines()):
        if len(line) > limits.TOML_LINE:
            expected = f"expected at most {limits.TOML_LINE} characters, got {len(line)}"
            raise ConfigError(f"{path}, line {i + 1}: {expected} (lists may go over several lines)")
    try:
        content: dict[str, Any] = tomllib.loads(text.decode())
    # the parser recurses into nested brackets, and int() refuses numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    return content


def section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a configuration, empty if it is not there.

    Raises:
        ConfigError: If it is no table.
    """
    entries = settings.get(name, {})
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{name}: expected a table, [{name}] in a file, got {entries!r}")
    return dict(entries)


def to_json(value: Any, key: str) -> Any:
    """A configuration as JSON, in which a model keeps it.

    Args:
        value: Numbers, strings and truth values, and lists and tables of them; paths become
            strings.
        key: Where it stands in the file.

    Raises:
        ConfigError: For anything else, dates and infinite numbers for instance.
    """
    match value:
        case bool() | int() | str() | None:
            return value
        case float() if math.isfinite(value):
            return value
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {str(name): to_json(v, f"{key}.{name}") for name, v in value.items()}
        case list() | tuple():
            return [to_json(v, f"{key}[{i}]") for i, v in enumerate(value)]
    raise ConfigError(
        f"{key}: expected a finite number, a string, a list or a table, got {value!r}"
    )


def build(table: Any, key: str, supplied: Mapping[str, Any], *, imports: bool = False) -> Any:
    """The object described by a table.

    Args:
        table: A name, or a table with a name and keyword arguments.
        key: Where it stands in the file, as ``"estimator.network"``: the last part says what it
            is.
        supplied: Values that arguments may be supplied with, see `SUPPLIED`.
        imports: Whether names may be import paths, see `scoresde.plugins.get`.

    Raises:
        ConfigError: If a key is unknown or missing, the factory refuses its arguments, or what
            it returns is not of the kind that the key says.
        UnknownPlugin: If nothing has the name.
        PluginError: If the plugin cannot be imported.

    Example:
        >>> from scoresde.app.config import build
        >>> build({"name": "ddim", "steps": 5}, "solver", {}).steps
        5
    """
    name, entries = _named(table, key)
    group = _group(key)
    factory = _factory(name, key, imports)
    takes = parameters(factory, key)
    meanings = _supplied_arguments(factory, group, takes)
    arguments = {
        argument: _supplied_value(supplied, what)
        for argument, what in meanings.items()
        if what in supplied
    }
    for argument, value in entries.items():
        part = _GROUPS.get(argument)
        if argument in _MADE_LATER and argument in takes:
            value = _makers(value, f"{key}.{argument}", supplied, imports)
        elif part is not None and argument in takes and not isinstance(value, _KINDS[part]):
            value = build(value, f"{key}.{argument}", supplied, imports=imports)
        elif isinstance(value, str) and value in MEASURED and value in supplied:
            value = _supplied_value(supplied, value)
        arguments[argument] = value
    for argument in meanings.keys() - arguments.keys():
        source = _OF_DATA.get(meanings[argument])
        if source is not None and takes[argument].default is inspect.Parameter.empty:
            raise ConfigError(
                f"{key}.{argument}: expected a value, or {source} in [data], got none"
            )
    built = call_factory(factory, arguments, key)
    try:
        instance(f"{key}: {name!r}", built, _KINDS[group])
    except TypeError as error:
        raise ConfigError(str(error)) from error
    return built


def _makers(tables: Any, key: str, supplied: Mapping[str, Any], imports: bool) -> Any:
    """A function from the shape of events to the object that a table describes, or several."""

    def make(table: Any, key: str, event_shape: Sequence[int], width: int | None = None) -> Any:
        if width is not None:
            table = _widened(table, key, width, imports)
        return build(table, key, {**supplied, "event_shape": event_shape}, imports=imports)

    return _each(tables, key, partial(partial, make))


def _widened(table: Any, key: str, width: int, imports: bool) -> Any:
    """A table with another width; widths of several layers stay in proportion to the first."""
    name, entries = _named(table, key)
    factory = _factory(name, key, imports)
    argument = getattr(factory, "width_argument", None)
    if argument is None:
        expected = "a network that a budget can size, with a class attribute width_argument"
        raise ConfigError(f"{key}: expected {expected}, got {name!r}")
    value = entries.get(argument, parameters(factory, key)[argument].default)
    if isinstance(value, (list, tuple)):
        return {"name": name, **entries, argument: [max(1, width * v // value[0]) for v in value]}
    return {"name": name, **entries, argument: width}


def _each(tables: Any, key: str, function: Callable[[Any, str], Any]) -> Any:
    """Of a table and its key, or of each of several: in a list, or of parts by their names."""
    if isinstance(tables, list) and key.endswith(_MADE_LATER):
        return [function(table, f"{key}[{i}]") for i, table in enumerate(tables)]
    if isinstance(tables, Mapping) and key.endswith(".bases"):
        return {name: function(table, f"{key}.{name}") for name, table in tables.items()}
    return function(tables, key) if isinstance(tables, (str, Mapping)) else tables


def _group(key: str) -> str:
    """The plugin group of the object at a key."""
    *_, before, last = ("", *key.split("."))
    return _GROUPS[before if before == "bases" else last.partition("[")[0]]


def with_defaults(table: Any, key: str, *, imports: bool = False) -> dict[str, Any]:
    """A table with its defaults filled in, so that tables that mean the same are equal.

    Args:
        table: As of `build`, which has taken it.
        key: As there.
        imports: As there.

    Returns:
        Beside what is given, the defaults that a file could say, and the names of measured and
        supplied values.
    """
    name, entries = _named(table, key)
    factory = _factory(name, key, imports)
    takes = parameters(factory, key)
    full: dict[str, Any] = {"name": name}
    for argument, parameter in takes.items():
        with suppress(ConfigError):  # an object: no file can say that
            if parameter.default is not inspect.Parameter.empty:
                full[argument] = to_json(parameter.default, argument)
    meanings = _supplied_arguments(factory, _group(key), takes)
    full |= {argument: what for argument, what in meanings.items() if what in MEASURED}
    full |= entries
    for argument, value in entries.items():
        if argument in _GROUPS and argument in takes:
            fill = partial(with_defaults, imports=imports)
            full[argument] = _each(value, f"{key}.{argument}", fill)
    return full


def _named(table: Any, key: str) -> tuple[str, Mapping[str, Any]]:
    """A table's name, and what else is in it."""
    match table:
        case str(name):
            return name, {}
        case {"name": str(name)}:
            return name, {
                argument: value for argument, value in table.items() if argument != "name"
            }
        case {"name": other}:
            raise ConfigError(f"{key}.name: expected a name, got {other!r}")
        case Mapping():
            raise ConfigError(f"{key}.name: expected a name, got none")
    raise ConfigError(f"{key}: expected a name or a table with one, got {table!r}")


def arguments_of(
    table: Any, key: str, *, imports: bool = False
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A table's factory, and the table's entries.

    Raises:
        ConfigError, UnknownPlugin, PluginError: As of `build`.
    """
    name, entries = _named(table, key)
    return _factory(name, key, imports), dict(entries)


def _factory(name: str, key: str, imports: bool) -> Callable[..., Any]:
    factory = plugins.get(_group(key), name, imports=imports)
    if not callable(factory):
        expected = f"{key}: {name!r}: expected something that can be called"
        raise ConfigError(f"{expected}, got {factory!r}")
    return factory


def _supplied_arguments(factory: Any, group: str, parameters: Iterable[str]) -> dict[str, str]:
    """Arguments that a factory is supplied with, and the name of what each is given."""
    renamed = getattr(factory, "supplied", None)
    meanings = {name: name for name in SUPPLIED[group]} | (
        renamed if isinstance(renamed, dict) else {}
    )
    return {argument: what for argument, what in meanings.items() if argument in parameters}


def _supplied_value(supplied: Mapping[str, Any], name: str) -> Any:
    value = supplied[name]
    return value.value() if isinstance(value, Lazy) else value
