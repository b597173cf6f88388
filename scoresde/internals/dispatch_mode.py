"""A base for modes that see this thread's operations before they are done."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """``TorchDispatchMode`` without the import of torch's compiler, which takes seconds.

    Example:
        >>> import torch
        >>> from scoresde.internals.dispatch_mode import DispatchMode
        >>> class Count(DispatchMode):
        ...     count = 0
        ...     def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        ...         self.count += 1
        ...         return func(*args, **(kwargs or {}))
        >>> with Count() as seen:
        ...     _ = torch.zeros(2) + torch.zeros(2)
        >>> seen.count
        3
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # what is wrapped so as not to be compiled imports the compiler to say so
        return False
