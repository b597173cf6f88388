"""Modules inside wrappers that only run them: compiled ones, or those of several devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")

_PREFIXES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers call the module they run: torch.compile; DataParallel, DistributedDataParallel and
AveragedModel; FullyShardedDataParallel; checkpoint_wrapper."""

_COMMON = "module"
"""The one of these that users may give to a part, too."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of whatever wraps it; the module itself if nothing does."""
    # by name: importing the classes of wrappers that nobody has used takes seconds
    parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    for prefix in _PREFIXES:
        wrapped = module._modules.get(prefix)
        if wrapped is not None and (parallel or prefix != _COMMON):
            return unwrapped(wrapped)
    return module


def match_names(values: Mapping[str, _T], names: Iterable[str]) -> dict[str, _T]:
    """Tensors by the names that a module has for them, with or without wrappers on either side.

    A part that holds nothing but one part, under a name that wrappers give, is taken for a wrapper.
    Names stay different from each other, also where a user's own part has such a name.

    Args:
        values: Tensors by name, of a module that may have been wrapped.
        names: Of the module that is to have them; others keep theirs.
    """
    names = set(names)
    if values.keys() <= names or names <= values.keys():
        return dict(values)
    by_plain_name = {plain: name for name, plain in _plain(names).items()}
    return {by_plain_name.get(plain, n): values[n] for n, plain in _plain(values).items()}


def _plain(names: Iterable[str]) -> dict[str, str]:
    """Names without the parts that are of wrappers, by name."""
    parts: dict[tuple[str, ...], set[str]] = {}
    paths = {name: tuple(name.split(".")) for name in names}
    for path in paths.values():
        for i, part in enumerate(path):
            parts.setdefault(path[:i], set()).add(part)
    wrapper_paths = {
        path for path, children in parts.items() if len(children) == 1 and children <= {*_PREFIXES}
    }
    return {
        name: ".".join(part for i, part in enumerate(path) if path[:i] not in wrapper_paths)
        for name, path in paths.items()
    }
