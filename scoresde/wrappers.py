"""Modules inside others that only run them: compiled, or computed by several devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")

_PREFIXES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers call the module they run: torch.compile; DataParallel, DistributedDataParallel and
AveragedModel; FullyShardedDataParallel; checkpoint_wrapper."""

_COMMON = "module"
"""The one of these that may be anybody's name for a part."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, whatever runs it.

    Example:
        >>> import torch
        >>> from scoresde.wrappers import unwrapped
        >>> layer = torch.nn.Linear(1, 1)
        >>> unwrapped(torch.nn.DataParallel(layer)) is layer
        True
    """
    # by name: importing the classes of wrappers that nobody has used takes seconds
    parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    for prefix in _PREFIXES:
        inner = module._modules.get(prefix)
        if inner is not None and (parallel or prefix != _COMMON):
            return unwrapped(inner)
    return module


def matched(found: Mapping[str, _T], wanted: Iterable[str]) -> dict[str, _T]:
    """Tensors by the names that a module has for them, whatever wraps it or wrapped it.

    A name that is wanted is kept. Of the others two mean the same if they do so without the
    prefixes of wrappers; where that is not one to one they are left as they are.

    Args:
        found: Tensors by name, of a module that may have been wrapped.
        wanted: Names of the module that is to have them.

    Example:
        >>> from scoresde.wrappers import matched
        >>> matched({"_orig_mod.weight": 1, "bias": 2}, ["module.weight", "bias"])
        {'module.weight': 1, 'bias': 2}
    """
    wanted = set(wanted)
    missing = _plain(wanted - found.keys())
    extra = _plain(found.keys() - wanted)
    names = {extra[plain]: missing[plain] for plain in extra.keys() & missing.keys()}
    return {names.get(name, name): value for name, value in found.items()}


def _plain(names: Iterable[str]) -> dict[str, str]:
    """Names by what they are without prefixes, if no other is the same."""
    plain = {n: ".".join(p for p in n.split(".") if p not in _PREFIXES) for n in names}
    count = Counter(plain.values())
    return {value: name for name, value in plain.items() if count[value] == 1}
