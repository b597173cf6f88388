"""Chunks of a computation that fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.internals import limits

_WORK = 100
"""Times the bytes of a state that a network takes on the way to its answer, as `limits` has it."""

_SHARE = 2
"""Half of what is free is made use of: `_WORK` is a guess."""

_SMALL = 2**28
"""Bytes that are taken without a look at what is free."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, without synchronising with it.

    Those that the driver has, and those that torch has reserved and does not use. On the CPU, and
    on devices that do not tell, `scoresde.internals.limits.memory`.
    """
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return limits.memory()
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def device_chunk_size(count: int, like: Tensor, buffered: int = 0) -> int | None:
    """How many evaluations of a network fit into memory at a time; None for all.

    Args:
        count: How many there are.
        like: A batch of states, the input of each.
        buffered: Numbers of the same dtype that are kept for each, per number of the states.
    """
    each = (_WORK + buffered) * like.numel() * like.element_size()
    if torch.compiler.is_compiling() or count * each <= _SMALL:
        return None
    most = max(1, free_memory(like.device) // _SHARE // each)
    return most if most < count else None
