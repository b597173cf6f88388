"""A limit on the tensors that code which is not ours may make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.internals.dispatch_mode import DispatchMode


class AllocationLimit(DispatchMode):
    """Limits the numbers in new tensors that this thread makes inside.

    They are counted before they are allocated, so that a small configuration cannot ask for any
    amount of memory. Results of operations on tensors are not counted, nor tensors on torch's
    "meta" device, which take no memory.

    Args:
        count: Numbers.

    Raises:
        RuntimeError: In the place of the tensor that would be too much.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.total = count, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls an operation, if what it makes is not too much."""
        keywords = dict(kwargs or {})
        # factories take a device: on "meta", without memory, they say how large a tensor would be
        is_factory = any(argument.name == "device" for argument in func._schema.arguments)
        is_meta = torch.device(keywords.get("device") or "cpu").type == "meta"
        if is_factory and not is_meta and not any(isinstance(arg, Tensor) for arg in args):
            on_meta = {**keywords, "device": torch.device("meta"), "pin_memory": False}
            shape = tuple(func(*args, **on_meta).shape)
            self.total += torch.Size(shape).numel()
            if self.total > self.count:
                raise RuntimeError(
                    f"expected tensors of at most {self.count} numbers in all, got more with one "
                    f"of {shape}"
                )
        return func(*args, **keywords)
