"""Precisions of the products of networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from scoresde.internals.messages import warn

AUTO = "auto"

PRECISIONS = {
    "float32": None,
    "tf32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What products of networks are rounded to, by name; None where they are in the weights' dtype, as
with ``"tf32"``, which is a switch of devices. ``"auto"`` is ``"bfloat16"`` or ``"float32"``."""

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
"""Of processors, that multiply in bfloat16, as torch calls them: of x86 (two) and of ARM."""


def multiplies_bfloat16(device: torch.device) -> bool | None:
    """Whether a device has instructions for products in bfloat16; None if torch does not tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of networks' products; None if it is the weights'.

    Warns of processors without instructions for numbers of 16 bits, which take several times as
    long for them as for float32, fifteen times for a convolution.

    Args:
        precision: A name in `PRECISIONS`, or ``"auto"``.
        device: Where the networks are.
    """
    fast = multiplies_bfloat16(device)
    if precision == AUTO:
        return torch.bfloat16 if fast else None
    dtype = PRECISIONS[precision]
    if dtype is not None and device.type == "cpu" and fast is False:
        warn(
            f"precision: this processor has no instructions for {precision}, which takes several "
            f"times as long as float32; {AUTO!r} is bfloat16 where it is fast, and else float32"
        )
    return dtype


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products of networks are rounded; not if there is no dtype to round to."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
