"""Results of operations on tensors without values, cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_HASHED = frozenset(
    (
        type(None),
        bool,
        int,
        float,
        str,
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    )
)


class _Unknown(Exception):
    """The result may depend on more than the cache distinguishes."""


class MetaResults:
    """Does operations of torch's dispatcher, on its ``"meta"`` device, with a cache.

    Shapes of results follow from those of arguments, by rules in Python that take ten to a hundred
    times as long as a look into the cache.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __len__(self) -> int:
        """Number of cached results."""
        return len(self._known)

    def __call__(self, func: Any, args: Any, keywords: Mapping[str, Any]) -> Any:
        """The result of an operation, computed or from the cache."""
        # results may be arguments, or parts of them, and what else looks on has to see what is done
        if func.is_view or func._schema.is_mutable or torch._C._len_torch_dispatch_stack():
            return func(*args, **keywords)
        try:
            key = (func, *_kind(args), *_kind(tuple(keywords.items())))
        except _Unknown:
            return func(*args, **keywords)
        if key in self._known:
            return _copied(self._known[key])
        result = func(*args, **keywords)
        if all(map(_is_plain, tensors_of(result))):
            self._known[key] = _copied(result)
        return result


def tensors_of(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operation, also those in lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, dict):
        yield from tensors_of([*values.values()])


def _is_plain(value: Tensor) -> bool:
    return value.device.type == "meta" and not value.dtype.is_complex


def _kind(value: Any) -> tuple[Any, ...]:
    """All that a result can depend on; numbers have a type beside their value."""
    kind = type(value)
    if isinstance(value, Tensor):
        if not _is_plain(value):  # numbers of the CPU give way in type promotion, some of them
            raise _Unknown
        return (Tensor, value.dtype, *value.shape, *value.stride())
    if kind in _HASHED:
        return (kind, value)
    if isinstance(value, (tuple, list)):
        return (kind, len(value), *(part for item in value for part in _kind(item)))
    raise _Unknown


def _copied(result: Any) -> Any:
    """New tensors like those of a result."""
    if isinstance(result, Tensor):
        return torch.empty_strided(
            result.shape, result.stride(), dtype=result.dtype, device=result.device
        )
    if isinstance(result, (tuple, list)):
        return type(result)(map(_copied, result))
    return result
