"""A limit on the tensors that code which is not ours may make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.internals.dispatch_mode import DispatchMode


class AllocationLimit(DispatchMode):
    """Inside, this thread makes new tensors of so many numbers in all, and no more.

    They are counted before they are made, so that a few bytes of configuration cannot ask for
    memory without end. What is computed from tensors is not counted, nor what takes no memory, on
    torch's "meta" device.

    Args:
        count: Numbers.

    Raises:
        RuntimeError: In the place of the tensor that would be too much.

    Example:
        >>> import torch
        >>> from scoresde.internals.allocation import AllocationLimit
        >>> with AllocationLimit(100):
        ...     small = torch.nn.Linear(5, 5)
        ...     try:
        ...         torch.nn.Linear(10**6, 10**6)
        ...     except RuntimeError as error:
        ...         print(error)
        expected tensors of at most 100 numbers in all, got more with one of (1000000, 1000000)
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
