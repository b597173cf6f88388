"""Calls of factories by keywords, with errors that name the key of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scoresde.internals.messages import describe_error, nearest

_INSTEAD = {
    "epochs": ("steps", "an epoch is as many as there are events over batch_size"),
    "iterations": ("steps", "updates are counted"),
    "learning_rate": ("lr", "the largest learning rate"),
}
"""What people write, what it is called here, and what that is."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, Any], key: str) -> Any:
    """Calls a factory; whatever goes wrong becomes a `ConfigError` that names the key.

    Raises:
        ConfigError: If an argument is unknown or missing, or the factory fails, however it does.
    """
    expect_known(factory, arguments, key)
    for name, parameter in parameters(factory, key).items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"{key}.{name}: expected a value, got none")
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {describe_error(error)}") from error
    # what else a factory raises, or whether it tries to exit, is up to its author
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        name = f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__name__)}"
        raise ConfigError(f"{key}: {name} failed: {describe_error(error, kind=True)}") from error


def expect_known(
    factory: Callable[..., Any], arguments: Iterable[str], key: str, others: Iterable[str] = ()
) -> None:
    """Raises `ConfigError` if a factory does not take an argument.

    A factory of any keywords checks them itself.

    Args:
        factory: Whatever can be called by keywords.
        arguments: Their names.
        key: Of the section they stand in.
        others: Further names that are allowed.
    """
    possible = [*parameters(factory, key), *others]
    kinds = {p.kind for p in inspect.signature(factory).parameters.values()}
    for name in arguments:
        if name not in possible and inspect.Parameter.VAR_KEYWORD not in kinds:
            instead, why = _INSTEAD.get(name, ("", ""))
            write = f"; write {instead} ({why})" if instead in possible else ""
            raise ConfigError(f"{key}.{name}: unknown{write or nearest(name, possible)}")


def parameters(factory: Callable[..., Any], key: str) -> dict[str, inspect.Parameter]:
    """Parameters of a factory that can be given by keyword.

    Raises:
        ConfigError: If it does not say what they are.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {factory!r} does not say what arguments it takes") from error
    return {name: p for name, p in signature.parameters.items() if p.kind in by_name}
