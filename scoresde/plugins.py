"""Plugins: classes that are found through entry points, built in or not.

A distribution offers a class under a name in its ``pyproject.toml``:

    [project.entry-points."scoresde.solvers"]
    my-solver = "my_package.module:MySolver"

Listing reads metadata only and imports nothing, so that a broken plugin fails only when it is
loaded. Where import paths are allowed, a path is a name as well, and a class needs no plugin. By
default they are not: a path runs any code, and names come from files.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from attrs import frozen

from scoresde.checks import expect
from scoresde.internals.messages import describe_error, nearest

GROUPS = ("sdes", "schedules", "bases", "estimators", "networks", "solvers", "degradations")
"""What there are plugins of; their entry points are in ``scoresde.`` and the group."""

BUILT_IN = "scoresde"


class UnknownPlugin(LookupError):
    """No installed distribution offers this name."""


class PluginError(ImportError):
    """An installed plugin cannot be imported."""


@frozen
class Plugin:
    """One entry point, not yet imported.

    Args:
        name: By which it is found.
        group: One of `GROUPS`.
        value: Where it is: ``"package.module:attribute"``.
        distribution: Name of the distribution that offers it; empty for a bare import path.
        version: Version of that distribution.

    Example:
        >>> from scoresde.plugins import Plugin
        >>> Plugin("mine", "solvers", "solvers:DDIM").load().__name__
        'DDIM'
    """

    name: str
    group: str
    value: str
    distribution: str = ""
    version: str = ""

    def load(self) -> object:
        """Imports the object.

        Raises:
            PluginError: If that fails, whatever the cause.
        """
        try:
            _expect_path(self.value)
            if self.distribution == BUILT_IN:
                _expect_own(self.value.partition(":")[0].partition(".")[0])
            return metadata.EntryPoint(self.name, self.value, self.group).load()
        except KeyboardInterrupt:
            raise
        # A stranger's module may do anything at import, `sys.exit` included.
        except BaseException as error:
            origin = f" of {self.distribution} {self.version}" if self.distribution else ""
            raise PluginError(
                f"{self.group}: cannot load {self.name!r}{origin} from {self.value!r}: "
                f"{describe_error(error, kind=True)}{_where_sought(self.value, error)}"
            ) from error


def _expect_path(value: str) -> None:
    module, _, name = value.partition(":")
    good = all(part.isidentifier() for path in (module, name) for part in path.split("."))
    expect(good, "import path", "package.module:Name", repr(value))


def _expect_own(package: str) -> None:
    """Raises ImportError if a user's own module of the same name would be imported instead."""
    spec = importlib.util.find_spec(package)
    home = Path(__file__).resolve().parent.parent / package
    if spec is not None and spec.origin and Path(spec.origin).resolve().parent != home:
        raise ImportError(
            f"{spec.origin} hides the package {package!r} that belongs to scoresde; "
            "rename it, or take its folder off the path"
        )


def _where_sought(value: str, error: BaseException) -> str:
    """Words on the current folder, if a module that was not found was sought there."""
    if not isinstance(error, ModuleNotFoundError) or error.name != value.partition(":")[0]:
        return ""
    here = os.getcwd()
    if here in map(os.path.abspath, sys.path):
        return f"; the current folder, {here}, is on the path and has no such module"
    return f"; the current folder, {here}, is not on the path: PYTHONPATH=. puts it there"


def _installed() -> Iterator[Plugin]:
    """Every entry point of our groups, once: the first, if a distribution is on the path twice."""
    groups = {f"scoresde.{group}": group for group in GROUPS}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            points = [point for point in distribution.entry_points if point.group in groups]
            if not points:
                continue  # its metadata is slow to parse
            name, version = str(distribution.metadata["Name"]), str(distribution.version)
        # One unreadable distribution must not hide the others.
        except Exception as error:
            where = getattr(distribution, "_path", distribution)
            warnings.warn(f"skipped the plugins of {where}: {error!r}", stacklevel=4)
            continue
        if name not in seen:
            seen.add(name)
            for point in points:
                yield Plugin(point.name, groups[point.group], point.value, name, version)


@functools.cache
def _listing() -> dict[str, dict[str, Plugin]]:
    listing: dict[str, dict[str, Plugin]] = {group: {} for group in GROUPS}
    plugins = sorted(
        _installed(), key=lambda p: (p.name, p.distribution != BUILT_IN, p.distribution)
    )
    for plugin in plugins:
        first = listing[plugin.group].setdefault(plugin.name, plugin)
        if first is not plugin:
            warnings.warn(
                f"{plugin.group}: {plugin.name!r} is offered by {first.distribution} "
                f"({first.value}) and {plugin.distribution} ({plugin.value}); "
                f"using that of {first.distribution}",
                stacklevel=3,
            )
    return listing


def available(group: str) -> dict[str, Plugin]:
    """Lists the plugins of a group by name, without importing them.

        The environment is read once per process; see `refresh`. Of several plugins with one name
        the built-in one is listed, else that of the alphabetically first distribution, with a
        warning.

    Raises:
        ValueError: If there is no such group.

    Example:
        >>> from scoresde.plugins import available
        >>> available("solvers")["ddim"].value
        'solvers:DDIM'
    """
    if group not in GROUPS:
        raise ValueError(f"group: no group {group!r}{nearest(group, GROUPS)}")
    return dict(_listing()[group])


def refresh() -> None:
    """Reads the environment again at the next listing, for plugins installed since."""
    importlib.invalidate_caches()
    _listing.cache_clear()


def get(group: str, name: str, *, imports: bool = False) -> object:
    """Loads a plugin, or any object by its import path.

    Args:
        group: One of `GROUPS`.
        name: Name of an installed plugin, or ``"package.module:attribute"``.
        imports: Whether import paths are allowed, which can run any code.

    Returns:
        The object itself, typically a class.

    Raises:
        ValueError: If there is no such group.
        UnknownPlugin: If no plugin has this name, or it is an import path and none is allowed.
        PluginError: If its import fails.

    Example:
        >>> from scoresde.plugins import get
        >>> get("solvers", "ddim").__name__
        'DDIM'
    """
    plugins = available(group)
    if ":" in name:
        return by_path(group, name, imports=imports)
    if name not in plugins:
        path = " (an import path is written package.module:Name)" if "." in name else ""
        raise UnknownPlugin(f"{group}: no plugin {name!r}{path}{nearest(name, plugins)}")
    return plugins[name].load()


def by_path(kind: str, path: str, *, imports: bool) -> object:
    """Loads an object by its import path.

    Args:
        kind: Of the object, for messages.
        path: ``"package.module:attribute"``.
        imports: Whether import paths are allowed.

    Raises:
        UnknownPlugin: If they are not.
        PluginError: If the import fails.
    """
    if not imports:
        raise UnknownPlugin(
            f"{kind}: {path!r} is an import path, which can run any code; allow it only if "
            "you trust where the name comes from (imports=True, --allow-imports)"
        )
    return Plugin(path, kind, value=path).load()


def check(group: str) -> dict[str, Exception]:
    """Tries to load every plugin of a group; warns of those that fail.

    Returns:
        The error of each plugin that failed, by name.

    Raises:
        ValueError: If there is no such group.

    Example:
        >>> from scoresde.plugins import check
        >>> check("schedules")
        {}
    """
    failed: dict[str, Exception] = {}
    for name, plugin in available(group).items():
        try:
            plugin.load()
        except PluginError as error:
            failed[name] = error
            warnings.warn(str(error), stacklevel=2)
    return failed
