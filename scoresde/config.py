"""From a TOML file to objects, through the plugin registry.

A table with a ``name`` is an object of the group that its key stands for (``sde``, ``schedule``,
``basis``, ``estimator``, ``network``, ``solver``); its other entries are keyword arguments, and
tables among them are objects in turn. A name with a colon is an import path, if those are allowed;
otherwise a file runs nothing but what is installed as a plugin. Arguments that a factory takes and
the file leaves out are supplied if their name is one of the things known while building:
``event_shape``, ``sde``, ``network``, and ``data_mean`` and ``data_std``, which are measured from
the data.

    [sde]
    name = "diagonal"
    scale = "data_std"                 # a string that names a known thing stands for it
    [sde.schedule]
    name = "cosine"
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scoresde import plugins
from scoresde.checks import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_GROUPS = {
    "sde": "sdes",
    "schedule": "schedules",
    "basis": "bases",
    "estimator": "estimators",
    "network": "networks",
    "solver": "solvers",
}


class Later:
    """Something known that is computed when it is first asked for.

    Example:
        >>> from scoresde.config import Later
        >>> Later(lambda: 6 * 7).value()
        42
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.value = functools.cache(compute)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key.

    Example:
        >>> from scoresde.config import ConfigError, build
        >>> try:
        ...     build({"name": "ddim", "stepz": 5}, "solver", {})
        ... except ConfigError as error:
        ...     print(str(error)[:43])
        solver.stepz: unknown; did you mean 'steps'
    """


def read(path: str | Path) -> dict[str, Any]:
    r"""Reads a TOML file.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ConfigError: If it is not TOML.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.config import read
        >>> path = Path(tempfile.mkdtemp(), "x.toml")
        >>> _ = path.write_text('[solver]\nname = "ddim"')
        >>> read(path)
        {'solver': {'name': 'ddim'}}
    """
    text = Path(path).read_bytes()
    try:
        content: dict[str, Any] = tomllib.loads(text.decode())
    # the parser recurses into nested brackets, and int() refuses numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    return content


def build(table: Any, key: str, known: Mapping[str, Any], *, imports: bool = False) -> Any:
    """The object that a table describes.

    Args:
        table: A name, or a table with a name and keyword arguments.
        key: Where it stands in the file, as ``"estimator.network"``: the last part says what it
            is.
        known: Things that arguments may be supplied with.
        imports: Whether names may be import paths, see `scoresde.plugins.get`.

    Raises:
        ConfigError: If a key is unknown or missing, or the factory refuses its arguments.
        UnknownPlugin: If nothing has the name.
        PluginError: If the plugin cannot be imported.

    Example:
        >>> from scoresde.config import build
        >>> build({"name": "ddim", "steps": 5}, "solver", {}).steps
        5
    """
    match table:
        case str(name):
            table = {}
        case {"name": str(name), **table}:
            pass
        case {"name": other}:
            raise ConfigError(f"{key}.name: expected a name, got {other!r}")
        case Mapping():
            raise ConfigError(f"{key}.name: expected a name, got none")
        case _:
            raise ConfigError(f"{key}: expected a name or a table with one, got {table!r}")
    factory = plugins.get(_GROUPS[key.rpartition(".")[2]], name, imports=imports)
    if not callable(factory):
        raise ConfigError(f"{key}: expected something that can be called, got {factory!r}")
    parameters = _parameters(factory)
    arguments = {name: _known(known, name) for name in parameters if name in known}
    for name, value in table.items():
        path = f"{key}.{name}"
        if name not in parameters:
            raise ConfigError(f"{path}: unknown{nearest(name, parameters)}")
        if name in _GROUPS:
            arguments[name] = build(value, path, known, imports=imports)
        elif isinstance(value, str) and value in known:
            arguments[name] = _known(known, value)
        else:
            arguments[name] = value
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in arguments
    ]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: expected a value, got none")
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error
    # what else a factory raises for values it cannot use is up to its author
    except Exception as error:
        raise ConfigError(f"{key}: {error!r}") from error


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a factory can be given by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(factory)
    return {name: p for name, p in signature.parameters.items() if p.kind in by_name}


def _known(known: Mapping[str, Any], name: str) -> Any:
    value = known[name]
    return value.value() if isinstance(value, Later) else value
