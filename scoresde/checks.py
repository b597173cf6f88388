"""Checks at the public boundary.

Every message names the argument, what was expected and what came. Checks that read tensor
values (`finite`, `positive`) force a device synchronisation: they belong where a user's data
enters, never inside a solver's loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])


def expect(condition: bool, name: str, expected: str, got: object) -> None:
    """Raises ``ValueError`` naming the argument unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def floating(name: str, value: Tensor) -> None:
    """Raises ``TypeError`` unless ``value`` is a real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")


def finite(name: str, value: Tensor) -> None:
    """Raises ``ValueError`` if ``value`` has NaN or infinite entries."""
    bad = (~torch.isfinite(value)).sum().item()
    expect(bad == 0, name, "finite numbers", f"{bad} NaN or infinite of {value.numel()}")


def positive(name: str, value: Tensor | float) -> None:
    """Raises ``ValueError`` unless every entry is finite and above zero."""
    tensor = torch.as_tensor(value)
    good = bool((torch.isfinite(tensor) & (tensor > 0)).all())
    expect(good, name, "positive finite numbers", value)


def trailing_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    """Raises ``ValueError`` unless the last dimensions of ``value`` are ``shape``."""
    tail = value.shape[value.ndim - len(shape) :] if value.ndim >= len(shape) else None
    expect(tail == shape, name, f"shape (*batch, {', '.join(map(str, shape))})", tuple(value.shape))


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known names are closest to an unknown one, for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{hint} Available: {', '.join(known) if known else '(none)'}"


def named(argument: str, value: str | _F, known: Mapping[str, _F]) -> _F:
    """A function by its name, or one of a user's own as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    if not isinstance(value, str):
        return value
    if value not in known:
        raise ValueError(f"{argument}: unknown name {value!r}{nearest(value, known)}")
    return known[value]
