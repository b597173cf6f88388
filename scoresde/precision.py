"""Modules whose constants keep their precision."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.blocks import Blocks
from scoresde.checks import expect, numbers
from scoresde.internals.copies import Copy, differentiated, lasting

Numbers = float | Sequence[float] | Tensor
"""A shared number, or one per block or component (the component axis of `scoresde.blocks`)."""

M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


def shallow_copy(module: M, **values: object) -> M:
    """A view of a module with other attributes, buffers or children."""
    view = copy.copy(module)
    for registry in ("_parameters", "_buffers", "_modules"):
        view.__dict__[registry] = dict(view.__dict__[registry])
    for name, value in values.items():
        setattr(view, name, value)
    return view


def precision(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, but float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def cast_like(value: Tensor, like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of others, moved without synchronisation."""
    return to_device(value.to(like.dtype), like.device)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Numbers on a device, moved without synchronisation, in float32 if it has no float64."""
    if value.device == device:
        return value
    if value.dtype == torch.float64:
        value = value.to(precision(device))
    # the driver takes what it copies out of ordinary memory, and goes on; not the other way
    return value.to(device, non_blocking=value.device.type == "cpu")


def full_precision(formula: Callable[P, R]) -> Callable[P, R]:
    """A formula that `torch.autocast`, which is for networks, does not affect."""

    @functools.wraps(formula)
    def whole(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        kind = next((v.device.type for v in tensors), "cpu")
        if not torch.amp.is_autocast_available(kind):
            return formula(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return formula(*args, **kwargs)

    return whole


def network_dtype(network: object) -> torch.dtype | None:
    """The dtype of a network's weights, None where it has none."""
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((w.dtype for w in weights if w.is_floating_point()), None)


def device_of(module: nn.Module, default: torch.device | None = None) -> torch.device:
    """The device of a module's constants, or of its weights; ``default``, or torch's, if none."""
    numbers = itertools.chain(module.buffers(), module.parameters())
    device = next((value.device for value in numbers), default)
    return torch.get_default_device() if device is None else device


def expect_near(name: str, value: object, module: object) -> None:
    """Raises ``ValueError`` unless a value that is a tensor is on a device of a module.

    Args:
        name: Of the value, for the message.
        value: Anything; only tensors are checked.
        module: Its device is that of its first constant, or else weight.
    """
    if not isinstance(value, Tensor) or not isinstance(module, nn.Module):
        return
    here, there = device_of(module, value.device), value.device
    expect(here == there, name, f"a tensor on {here}, where the model is", f"one on {there}")


class KeepsFloat64(nn.Module):
    """A module whose floating-point buffers stay in float64 when it is cast.

    They are moved between devices, and are float32 on one without float64 (MPS).
    """

    _cast_values: dict[tuple[str, torch.dtype, torch.device], Copy]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # of other bases, as `scoresde.DiagonalSDE` has
        self._cast_values = {}

    def cast(self, name: str, like: Tensor) -> Tensor:
        """A buffer in the dtype and on the device of a tensor, cached until it changes."""
        kept = self._as_asked(name, like)
        return self._cast(name, self.get_buffer(name), like) if kept is None else kept

    def _as_asked(self, name: str, t: Tensor) -> Tensor | None:
        """The buffer if it needs no cast, or a cast that is up to date."""
        value = self._buffers.get(name, self._parameters.get(name))
        if value is None or (value.dtype == t.dtype and value.device == t.device):
            return value
        if value.requires_grad or torch.compiler.is_compiling():
            return None
        read = self._cast_values.get((name, t.dtype, t.device))
        return read.value if read is not None and read.holds(value) else None

    def _cast(self, name: str, value: Tensor, t: Tensor) -> Tensor:
        if value.dtype == t.dtype or not lasting(value):
            return cast_like(value, t)
        key = name, t.dtype, t.device
        read = self._cast_values.get(key)
        if read is None or not read.holds(value):
            read = Copy.of(value, cast_like(value, t))
            if lasting(read.value):  # what a transform makes is its own
                self._cast_values[key] = read
        return read.value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        float_buffers = {
            id(b) for b in self._buffers.values() if b is not None and b.is_floating_point()
        }

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in float_buffers or tensor.is_meta:
                return fn(tensor)
            device = fn(tensor.new_empty(0, dtype=torch.float32)).device
            return tensor.to(device, precision(device))

        # torch's own replaces a tensor once it has been moved: what fails leaves all as it was
        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]


_CPU = torch.device("cpu")


def _together(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on another device, in one copy."""
    if len(values) == 1:
        return [to_device(values[0], device)]
    kind = functools.reduce(torch.promote_types, (v.dtype for v in values))
    flat = to_device(torch.cat([v.to(kind).flatten() for v in values]), device)
    parts = flat.split([v.numel() for v in values])
    return [part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)]


class Float64Constants(KeepsFloat64):
    """A module with constants along the component axis that no cast rounds.

    Casting a network to float32 or bfloat16 must not round ``beta_min = 0.1`` or a speed of 1/3:
    coefficients of steps are computed in float64 and cast last.

    Example:
        >>> import torch
        >>> from scoresde.precision import Float64Constants
        >>> class Rate(Float64Constants):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.constant("rate", 0.1, positive=True)
        >>> Rate().to(torch.bfloat16).rate
        tensor(0.1000, dtype=torch.float64)
    """

    _on_cpu: dict[str, Copy]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_cpu = {}

    def constant(self, name: str, value: Numbers, positive: bool = False) -> None:
        """Registers a float64 buffer, or a learned ``nn.Parameter`` as it is.

        Raises:
            TypeError: If ``value`` is neither a number nor several.
            ValueError: If it is empty, not finite, or not positive where that is asked for.
        """
        with torch.device("cpu"):  # where numbers are looked at, whatever the default
            tensor = numbers(name, value)
        expect(tensor.numel() > 0, name, "a number or a vector of numbers", value)
        expect(bool(torch.isfinite(tensor).all()), name, "finite numbers", value)
        if positive:
            expect(bool((tensor > 0).all()), name, "positive numbers", value)
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            device = tensor.device if tensor is value else torch.get_default_device()
            # its own: who gave the numbers may change them, and loading does
            self.register_buffer(name, tensor.to(device, precision(device), copy=True))

    def constants(self, t: Tensor, *names: str) -> tuple[Tensor, ...]:
        """The named constants in the dtype and on the device of ``t``."""
        kept = [self._as_asked(name, t) for name in names]
        if not any(value is None for value in kept):  # mostly, and asked in every update
            return tuple(kept)  # type: ignore[arg-type]
        if t.device == _CPU:
            self._read_together(names)
        values = [self.constant_on(name, t.device) for name in names]
        learned = [v for v in values if v.device != t.device]
        if len(learned) > 1:
            read = iter(_together(learned, t.device))
            values = [v if v.device == t.device else next(read) for v in values]
        return tuple(self._cast(name, v, t) for name, v in zip(names, values, strict=True))

    def constant_on(self, name: str, device: torch.device) -> Tensor:
        """A constant on its own device, or on the CPU if that is asked for.

        A constant on another device is copied to the CPU once for every value that it takes, so
        that plans on the CPU do not synchronise. Learned ones are copied every time where they are
        differentiated.
        """
        value: Tensor = getattr(self, name)
        if device != _CPU or value.device == _CPU or differentiated(value):
            return value
        self._read_together([name])
        return self._on_cpu[name].value

    def _read_together(self, names: Sequence[str]) -> None:
        """Copies to the CPU what has not been, together: with one synchronisation."""
        values = ((name, getattr(self, name)) for name in names)
        new = [
            (name, value)
            for name, value in values
            if value.device != _CPU and not differentiated(value)
            if name not in self._on_cpu or not self._on_cpu[name].holds(value)
        ]
        read = _together([value for _, value in new], _CPU) if new else []
        for (name, value), number in zip(new, read, strict=True):
            self._on_cpu[name] = Copy.of(value, number)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        known = {
            name: self.constant_on(name, _CPU)
            for name, buffer in self._buffers.items()
            if buffer is not None and (buffer.device == _CPU or name in self._on_cpu)
        }
        super()._apply(fn, recurse)
        for name, value in known.items():
            buffer = self._buffers[name]
            if buffer is not None and buffer.device != _CPU:
                self._on_cpu[name] = Copy.of(buffer, value)
        return self

    @property
    def width(self) -> int:
        """The length of the constants' component axis, 1 if all are shared."""
        tensors = [
            v for v in (*self._parameters.values(), *self._buffers.values()) if v is not None
        ]
        inner = [m.width for m in self._modules.values() if isinstance(m, Float64Constants)]
        return max([1, *(v.shape[-1] for v in tensors if v.ndim), *inner])

    def per_component(self, blocks: Blocks, device: torch.device | None = None) -> Self:
        """A view of the module with per-block constants repeated over their components.

        On another device if one is given, see `constant_on`.
        """
        view = copy.copy(self)
        view._on_cpu, view._cast_values = {}, {}

        def repeated(name: str, value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return blocks.expand(value if device is None else self.constant_on(name, device))

        view._parameters = {}
        view._buffers = {
            k: repeated(k, v) for k, v in {**self._parameters, **self._buffers}.items()
        }
        view._modules = {
            k: m.per_component(blocks, device) if isinstance(m, Float64Constants) else m
            for k, m in self._modules.items()
        }
        return view
