"""What a training depends on, as plain values by name: to tell whether two are the same.

The fingerprint of an object is its type and that of its content: numbers, strings, tensors by their
values, functions by their names, parts by theirs. Numbers are equal up to the rounding of different
machines. It does not see the code of classes and importable functions, versions of packages, or
the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from scoresde.data import Dataset
from scoresde.internals.limits import chunk_size
from scoresde.internals.wrappers import unwrapped
from scoresde.training.seeds import seeded_globals

Plain = str | int | float | bool | None
Fingerprint = dict[str, Plain]

_INHERITED = vars(nn.Module()).keys() | {"_compiled_call_impl", "_is_torch_compile", "forward"}
"""Attributes that every module has, its mode, its hooks, its parts, which are gone through; and
those that compiling it, or a wrapper, gives it."""

_LISTED = 64
"""Of so many numbers each has a name; of more there is a digest."""

_CLOSE = 2e-7
_BITS = {torch.float64: 20}
"""How close numbers have to be: what two machines compute may differ in the last digits, of single
precision at the least. Digests take so many bits of numbers, 16 of those in less precision."""

_DIGEST = ", content "

_NUMBERS = 2**24
_SAMPLE = 1024
"""Data on a disk are read as a whole if they have at most so many numbers; so many events else."""


def fingerprint(name: str, value: object) -> Fingerprint:
    """An object's fingerprint, by the names of its parts.

    Args:
        name: The object's.
        value: Anything, an estimator or a schedule for instance.

    Returns:
        Values that JSON can hold, equal for equal objects in any process.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.training.fingerprint import fingerprint
        >>> for item in fingerprint("schedule", VP(beta_max=10.0)).items():
        ...     print(*item)
        schedule scoresde.schedules.vp.VP
        schedule.T 1.0
        schedule.eps 0.001
        schedule.beta_min 0.1
        schedule.beta_max 10.0
    """
    return dict(_parts(name, value, {}))


def content(name: str, data: Dataset | None) -> Fingerprint:
    """A data set's fingerprint by content: its name and location do not matter.

    In memory all numbers count. On a disk they do up to 2^24 of them; of more, 1024 events, evenly
    spaced, with the first and the last: changes of other events are not seen. Of events that are
    drawn at every reading only shape and type are known. Conditions, and names of classes, have
    entries of their own.

    Args:
        name: Of the entry.
        data: If there are any.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset
        >>> from scoresde.training.fingerprint import content
        >>> zeros, ones = (Dataset(str(k), torch.full((3, 2), float(k))) for k in (0, 1))
        >>> renamed = Dataset("another name", zeros.values)
        >>> content("data", zeros) == content("data", renamed)
        True
        >>> content("data", zeros) == content("data", ones)
        False
    """
    if data is None:
        return {name: None}
    kind = f"{data.values.dtype}" + ("" if data.bins is None else f", {data.bins} bins")
    count, shape = len(data), tuple(data.values.shape[1:])
    rows = torch.arange(count, device="cpu")
    size = math.prod(shape)
    if data.lazy and count * size > _NUMBERS:
        least = max(16, min(_SAMPLE, _NUMBERS // size))
        rows = torch.linspace(0, count - 1, least, dtype=torch.float64, device="cpu").long()
    with seeded_globals(0) if data.lazy else nullcontext():  # reading may draw
        events, conditions = _digests(data, rows, chunk_size(shape))
    entries: Fingerprint = {name: f"{count} events {shape} of {kind}{_DIGEST}{events}"}
    if data.flip:
        entries[f"{name}.flip"] = True
    if data.crop is not None:
        entries[f"{name}.crop"] = str(data.crop)
    if data.condition is not None:
        told = f"{tuple(data.condition.shape[1:])} of {data.condition.dtype}"
        entries[f"{name}.condition"] = f"{count} conditions {told}{_DIGEST}{conditions}"
    if data.classes is not None:
        entries[f"{name}.classes"] = ", ".join(data.classes)
    return entries


def _digests(data: Dataset, rows: Tensor, size: int) -> list[str]:
    """Of events and of conditions, those of some rows; of all conditions that are in memory."""
    digests = [hashlib.sha256(), hashlib.sha256()]
    for part in rows.split(size):
        for digest, values in zip(digests, data.stored(part), strict=True):
            digest.update(b"" if values is None else _bytes(values))
    if isinstance(data.condition, Tensor):
        digests[1] = hashlib.sha256(_bytes(data.condition))
    texts = [digest.hexdigest()[:16] for digest in digests]
    if data.lazy:
        twice = zip(data.stored(rows[:32]), data.stored(rows[:32]), strict=True)
        for i, (one, other) in enumerate(twice):
            if one is not None and other is not None and not torch.equal(one, other):
                texts[i] = "drawn anew"
    return texts


def differences(
    expected: Mapping[str, Plain], got: Mapping[str, Plain], besides: Iterable[str] = ()
) -> list[str]:
    """Differences of two fingerprints, in words; causes before their consequences.

    Args:
        expected: What was expected.
        got: What came.
        besides: Names that may differ.
    """
    names = [name for name in {**expected, **got} if name not in set(besides)]
    both = expected.keys() & got.keys()
    # what is computed from others has a digest mostly, or is there for them only
    names.sort(key=lambda name: (name not in both, _DIGEST in f"{expected.get(name)}"))
    return [
        f"{name}: expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
        for name in names
        if (name in expected) != (name in got) or not _alike(expected.get(name), got.get(name))
    ]


def _alike(first: Plain, second: Plain) -> bool:
    if first == second:
        return True
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_CLOSE)
    # the code of one function is not the same in two versions of Python
    codes = isinstance(first, str) and isinstance(second, str) and first.startswith("code ")
    return codes and str(first).split()[1] != str(second).split()[1]


def _parts(name: str, value: Any, seen: dict[int, tuple[str, Any]]) -> Iterator[tuple[str, Plain]]:
    """An object's fingerprint, in the order in which it holds its parts."""
    if isinstance(value, nn.Module):
        value = unwrapped(value)
    leaf = _plain(value)
    if leaf is not None:
        yield name, leaf
        return
    if id(value) in seen:  # one object in two places is not two
        yield name, f"= {seen[id(value)][0]}"
        return
    seen[id(value)] = name, value  # kept, so that nobody else gets its id
    if isinstance(value, (Tensor, np.ndarray)):
        yield from _array(name, value)
        return
    label, children = _label_and_children(value)
    yield name, label
    parts = (item for key, part in children for item in _parts(f"{name}.{key}", part, seen))
    if isinstance(value, (Mapping, list, tuple)) and len(value) > _LISTED:
        listed = json.dumps(list(parts)).encode()
        yield f"{name}.*", f"content {hashlib.sha256(listed).hexdigest()[:16]}"
    else:
        yield from parts


def _plain(value: Any) -> Plain:
    """A value without parts; None if it has some."""
    if value is None or isinstance(value, (torch.device, ModuleType)):
        return "None" if value is None else _name(type(value))
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, (bool, int, str)):
        return value if type(value) in (bool, int, str) else str(value)
    if isinstance(value, (float, np.generic)):
        number = value.item() if isinstance(value, np.generic) else float(value)
        return number if not isinstance(number, float) or math.isfinite(number) else repr(number)
    if isinstance(value, (torch.dtype, complex, bytes, range, slice, PurePath)):
        return repr(value)
    if isinstance(value, (type, BuiltinFunctionType, np.ufunc)):
        return _name(value)
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(repr, value)))
    return None


def _label_and_children(value: Any) -> tuple[Plain, Iterable[tuple[str, Any]]]:
    """An object's label, and its parts by name."""
    kind = _name(type(value))
    if isinstance(value, nn.Module):
        return kind, _of_module(value)
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, MethodType):
        return _name(value.__func__), [("self", value.__self__)]
    if isinstance(value, partial):
        return kind, [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, Mapping):
        return f"{len(value)} entries", [(str(key), part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return f"{len(value)} entries", [(str(i), part) for i, part in enumerate(value)]
    if attrs.has(type(value)) or dataclasses.is_dataclass(value):
        fields: Any = (attrs.fields if attrs.has(type(value)) else dataclasses.fields)(type(value))
        return kind, [(field.name, getattr(value, field.name)) for field in fields]
    # loggers, locks, files: what a process has of its own
    standard = kind.partition(".")[0] in sys.stdlib_module_names - {"argparse", "types"}
    return kind, [] if standard else _public(_attributes(value))


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    attributes = {key: value for key, value in vars(module).items() if key not in _INHERITED}
    yield from _public(attributes)
    for key, parameter in module._parameters.items():
        if parameter is not None:
            learned = "" if parameter.requires_grad else ", frozen"
            yield key, f"{tuple(parameter.shape)} of {parameter.dtype}{learned}"
    for registry in (module._buffers, module._modules):
        yield from ((key, value) for key, value in registry.items() if value is not None)


def _attributes(value: Any) -> dict[str, Any]:
    slots = (vars(owner).get("__slots__", ()) for owner in type(value).__mro__)
    names = [
        name
        for declared in slots
        for name in ([declared] if isinstance(declared, str) else declared)
    ]
    slotted = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return {
        **{k: v for k, v in slotted.items() if k != "__dict__"},
        **getattr(value, "__dict__", {}),
    }


def _public(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Attributes; of private ones those that say something by themselves, as caches do not."""
    for key, value in values.items():
        says = isinstance(value, Tensor) or (value is not None and _plain(value) is not None)
        if says or not key.startswith("_"):
            yield key, value


def _of_function(function: FunctionType) -> tuple[Plain, list[tuple[str, Any]]]:
    """A function's name, and its content if it cannot be imported by that."""
    name = _name(function)
    scope: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        scope = getattr(scope, part, None)
    if scope is function and function.__module__ != "__main__":
        return name, []
    version = sys.implementation.cache_tag
    code = hashlib.sha256(repr(_code(function.__code__)).encode()).hexdigest()[:16]
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    children: list[tuple[str, Any]] = [("code", f"code {version} {code}")]
    children += [("defaults", (function.__defaults__, function.__kwdefaults__))]
    return name, children + [(key, _cell(cell)) for key, cell in cells]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_code(constant))
        elif isinstance(constant, frozenset):  # in an order that changes from process to process
            constants.append(tuple(sorted(map(repr, constant))))
        else:
            constants.append(constant)
    return code.co_code, code.co_names, tuple(constants)


def _array(name: str, value: Any) -> Iterator[tuple[str, Plain]]:
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    if tensor.numel() <= _LISTED and not tensor.is_complex() and tensor.layout is torch.strided:
        numbers = tensor.flatten().tolist()
        names = [name] if tensor.ndim == 0 else [f"{name}.{i}" for i in range(len(numbers))]
        if tensor.ndim:
            yield name, f"{tuple(tensor.shape)} of {tensor.dtype}"
        for key, number in zip(names, numbers, strict=True):
            yield key, _plain(number)
    else:
        digest = hashlib.sha256(_bytes(_rounded(tensor))).hexdigest()[:16]
        yield name, f"{tuple(tensor.shape)} of {tensor.dtype}{_DIGEST}{digest}"


def _rounded(tensor: Tensor) -> Tensor:
    """Numbers to as many bits as two machines agree on."""
    if not tensor.is_floating_point():
        return tensor
    mantissa, exponent = torch.frexp(tensor.detach().cpu().to_dense().double())
    bits = _BITS.get(tensor.dtype, 16)
    return torch.stack([(mantissa * 2**bits).round() + 0.0, exponent.double()])  # one zero only


def _bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor in memory."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    contiguous = dense.cpu().resolve_conj().resolve_neg().contiguous()
    return contiguous.reshape(-1).view(torch.uint8).numpy()


def _name(value: Callable[..., Any]) -> str:
    qualified = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', None) or 'builtins'}.{qualified}"
