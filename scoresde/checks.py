"""Checks of arguments.

Every message names the argument, what was expected and what came. Checks of values (`finite`,
`positive`) synchronise with the device: they belong where a user's data enter, never inside a
solver's loop.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.internals.messages import nearest

_F = TypeVar("_F", bound=Callable[..., Any])


def expect(condition: bool, name: str, expected: str, got: object) -> None:
    """Raises ``ValueError`` naming the argument unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def instance(name: str, value: object, kind: type) -> None:
    """Raises ``TypeError`` unless ``value`` is of a kind, for instance a `Schedule`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(f"{name}: expected {article} {kind.__name__}, got {reprlib.repr(value)}")


def whole(name: str, value: object, least: int, most: int = 2**31) -> None:
    """Raises ``ValueError`` unless ``value`` is a whole number from the least to the most."""
    good = isinstance(value, Integral) and not isinstance(value, bool)
    above = good and int(value) > most  # type: ignore[call-overload]
    limit = f"at most {most}" if above else f"at least {least}"
    good = good and least <= int(value) <= most  # type: ignore[call-overload]
    expect(good, name, f"a whole number of {limit}", reprlib.repr(value))


def real(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises ``ValueError`` unless ``value`` is a finite number from the least to the most."""
    largest = sys.float_info.max  # whole numbers beyond it are no floats
    good = isinstance(value, Real) and not isinstance(value, bool)
    good = good and max(least, -largest) <= value <= min(most, largest)  # type: ignore[operator]
    limit = "" if least == -math.inf else f" of at least {least:g}"
    limit = limit if most == math.inf else f" from {least:g} to {most:g}"
    expect(good, name, f"a finite number{limit}", reprlib.repr(value))


def choice(name: str, value: object, *known: object) -> None:
    """Raises ``ValueError`` unless ``value`` is among the known ones."""
    good = any(type(value) is type(option) and value == option for option in known)
    expect(good, name, f"one of {', '.join(map(repr, known))}", reprlib.repr(value))


def validator(check: Callable[..., None], *bounds: object) -> Callable[..., None]:
    """A check as a validator of an attrs field."""

    def validate(_: object, attribute: Any, value: object) -> None:
        check(attribute.name, value, *bounds)

    return validate


def numbers(name: str, value: Any) -> Tensor:
    """A tensor as it is, or numbers as a float64 one; raises ``TypeError`` for what is neither."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        expected = f"{name}: expected a number or a list of numbers"
        raise TypeError(f"{expected}, got {reprlib.repr(value)}") from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor


def sizes(name: str, value: Iterable[int]) -> torch.Size:
    """A shape; raises ``TypeError`` if it is none, ``ValueError`` if a size is negative."""
    try:
        shape = torch.Size(value)
    except (OverflowError, RuntimeError, TypeError) as error:
        expected = f"{name}: expected a list of whole numbers, as in (64,)"
        raise TypeError(f"{expected}, got {reprlib.repr(value)}") from error
    expect(min(shape, default=0) >= 0, name, "sizes of at least 0", tuple(shape))
    return shape


def floating(name: str, value: Tensor) -> None:
    """Raises ``TypeError`` unless ``value`` is a dense tensor of real floating-point numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor, got {value.layout}; to_dense() makes one"
        )


def readable(value: Tensor) -> bool:
    """Whether a tensor can be read without synchronisation with a device, or a break of a graph."""
    mapped = torch._C._functorch.is_batchedtensor(value)
    return value.device.type == "cpu" and not mapped and not torch.compiler.is_compiling()


def finite(name: str, value: Tensor, origin: str = "") -> None:
    """Raises ``ValueError`` if ``value`` has NaN or infinite entries, saying where the first is.

    Args:
        name: What is checked.
        value: Of any shape.
        origin: Where it is from, if the name does not say so.
    """
    if not all_finite(value):
        places = (~torch.isfinite(value)).nonzero()
        got = f"{len(places)} NaN or infinite of {value.numel()}, the first at {places[0].tolist()}"
        expect(False, name, f"finite numbers {origin}".rstrip(), got)


def all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite; synchronises with the device."""
    if not value.is_floating_point():
        return bool(torch.isfinite(value).all())
    # at a tenth of the cost, which counts for data sets, and for few numbers: 0, or NaN
    return not math.isnan((value - value).detach().sum().item())


def positive(name: str, value: Tensor | float) -> None:
    """Raises ``ValueError`` unless every entry is finite and above zero."""
    with torch.device("cpu"):  # numbers need no other
        tensor = numbers(name, value)
    good = bool((torch.isfinite(tensor) & (tensor > 0)).all())
    expect(good, name, "positive finite numbers", value)


def trailing_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    """Raises ``ValueError`` unless the last dimensions of ``value`` are ``shape``."""
    tail = value.shape[value.ndim - len(shape) :] if value.ndim >= len(shape) else None
    expect(tail == shape, name, f"shape (*batch, {', '.join(map(str, shape))})", tuple(value.shape))


def look_up(argument: str, value: str | _F, known: Mapping[str, _F]) -> _F:
    """A function by its name; a user's own function is returned as it is.

    Raises:
        TypeError: If it is neither.
        ValueError: If the name is unknown.
    """
    if not isinstance(value, str):
        if not callable(value) or isinstance(value, type):  # a class makes objects, no values
            raise TypeError(f"{argument}: expected a name or a function, got {reprlib.repr(value)}")
        return value
    if value not in known:
        raise ValueError(f"{argument}: unknown name {value!r}{nearest(value, known)}")
    return known[value]
