"""Counts of operations and synchronisations of an accelerator, without one."""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from scoresde.internals.dispatch_mode import DispatchMode
from scoresde.testing.meta_results import MetaResults, tensors_of

_aten = torch.ops.aten

_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_ALLOCATING = frozenset((*_EMPTY, "_unsafe_view", "lift_fresh", "resize_"))
"""What launches nothing, besides views: memory comes from a pool, and shapes are the host's."""

_MOVING = frozenset(("_to_copy", "copy_"))
_CHECKING = frozenset(("_linalg_check_errors",))
_SUPPORTED = "_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"
_ASKING = "utils._foreach_utils", "optim.optimizer"
"""On which devices optimisers are fused, and many tensors handled at once; modules that ask it."""

_FROM_PYTHON = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

_results = MetaResults()

_ANSWERS = {bool: True, int: 0, float: 1.0}


class DeviceCalls:
    """Counts operations of this thread on tensors of a device, and answers for one without values.

    Tensors on torch's ``"meta"`` device stand in for those of an accelerator: they have a shape and
    no values, do not mix with the CPU's either, and cost nothing. Code does to them what it would
    do to those of a GPU:

    - an *operation* is a kernel that the host launches; views and allocations are none;
    - a *copy* of host memory blocks the host, unless it is asked for with ``non_blocking=True``;
    - a *read*, such as ``bool(x)``, ``x.tolist()`` or ``x[mask]``, waits for all that was launched;
    - fused optimisers, and operations on many tensors at once, are those of torch for a GPU.

    Reads are answered, so that code goes on: truths are true, integers 0 (often a count of errors)
    and other numbers 1, or as in ``answers``; of many numbers the last is twice the first, and
    those between are evenly spaced, as grids have to be.

    Parts of an operation are not seen, nor is compiled code. On a real device the same is counted,
    with its own values; of the CPU, `host` counts the operations.

    Args:
        answers: What reads find instead, of ``{bool: True, int: 0, float: 1.0}``.

    Attributes:
        operations: How often each was launched.
        views: The same of what launches nothing.
        host: Operations on the CPU alone, views left out.
        copies: Copies to the device for which the host waits, by what copies and where: the first
            line outside of torch.
        queued: Copies to the device for which it does not wait, likewise.
        reads: Reads by the host, likewise.
        queued_reads: Copies to the CPU for which it does not wait yet, likewise.
        drawn: Random numbers that were drawn on the CPU, likewise: how many.

    Example:
        >>> import torch
        >>> from scoresde.testing import DeviceCalls
        >>> x, scale = torch.ones(3, 2, device="meta"), torch.ones(2)
        >>> with DeviceCalls() as calls:
        ...     y = (x * scale.to("meta")).T.exp()
        ...     good = bool(y.isfinite().all())
        >>> good, calls.operations["exp"], calls.copies.total(), calls.reads.total()
        (True, 1, 1, 1)
    """

    def __init__(self, answers: Mapping[type, float] | None = None) -> None:
        self.answers = {**_ANSWERS, **(answers or {})}
        for name in _COUNTED:
            setattr(self, name, Counter())
        self._modes = ExitStack()

    operations: Counter[str]
    views: Counter[str]
    host: Counter[str]
    copies: Counter[str]
    queued: Counter[str]
    reads: Counter[str]
    queued_reads: Counter[str]
    drawn: Counter[str]

    def summary(self) -> dict[str, int]:
        """The total of each, by its name."""
        return {name: getattr(self, name).total() for name in _COUNTED}

    def __str__(self) -> str:
        """The totals, and where the host waits or draws, most often first."""
        lines = [", ".join(f"{count} {name}" for name, count in self.summary().items())]
        for name in ("copies", "reads", "drawn"):
            places = getattr(self, name).most_common()
            lines += [f"{name}: {count} x {place}" for place, count in places]
        return "\n".join(lines)

    def __enter__(self) -> DeviceCalls:
        self._modes.enter_context(_supported_on_meta())
        self._modes.enter_context(_FromPython(self))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()

    def call(self, func: Any, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Counts an operation of torch's dispatcher, and does it."""
        name = func.overloadpacket.__name__
        tensors = [*tensors_of((args, keywords))]
        on_device = [v for v in tensors if v.device.type != "cpu"]
        target = _target(name, args, keywords, on_device)
        if not on_device and target == "cpu":
            return self._by_host(func, name, args, keywords)
        if on_device and (target == "cpu" or _waits(func, name, args)):
            return self._read(func, name, args, keywords, on_device)
        sent = name in _MOVING and any(v.device.type == "cpu" for v in tensors)
        if sent and not _wrapped_number(tensors):
            self.copied(name, _is_queued(args, keywords))
        else:
            self._launched(func, name, tensors)
        return _results(func, args, keywords)

    def copied(self, name: str, queued: bool) -> None:
        """Counts a copy to the device."""
        (self.queued if queued else self.copies)[f"{name} at {_place()}"] += 1

    def _by_host(self, func: Any, name: str, args: Any, keywords: Mapping[str, Any]) -> Any:
        self.host[name] += not _launches_nothing(func, name)
        result = func(*args, **keywords)
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            self.drawn[f"{name} at {_place()}"] += result.numel()
        return result

    def _launched(self, func: Any, name: str, tensors: list[Tensor]) -> None:
        (self.views if _launches_nothing(func, name) else self.operations)[name] += 1
        for tensor in tensors:
            # one number of the host's is an argument of the kernel; indices and alternatives are
            # brought to the device
            if tensor.device.type == "cpu" and (tensor.ndim or name in ("where", "index")):
                self.copied(name, queued=False)

    def _read(
        self, func: Any, name: str, args: Any, keywords: Mapping[str, Any], on_device: list[Tensor]
    ) -> Any:
        queued = name in _MOVING and _is_queued(args, keywords)
        (self.queued_reads if queued else self.reads)[f"{name} at {_place()}"] += 1
        if any(v.device.type != "meta" for v in on_device):
            return func(*args, **keywords)
        if name in _CHECKING:
            return None
        args, keywords = tree_map_only(Tensor, self._made_up, (args, keywords))
        result = func(*args, **keywords)
        if torch.Tag.dynamic_output_shape not in func.tags:
            return result
        return tree_map_only(Tensor, lambda v: v.to("meta"), result)

    def _made_up(self, value: Tensor) -> Tensor:
        """A tensor of the CPU in the place of one that has no values."""
        if value.device.type != "meta":
            return value
        floating = value.is_floating_point() or value.is_complex()
        kind = bool if value.dtype == torch.bool else float if floating else int
        answer = self.answers[kind]
        ramp = torch.linspace(answer, 2 * answer, value.numel(), dtype=torch.float64, device="cpu")
        return ramp.reshape(value.shape).to(value.dtype)


_COUNTED = tuple(DeviceCalls.__annotations__)


@contextmanager
def _supported_on_meta() -> Iterator[None]:
    """Has torch's optimisers take the meta device for one that has all that they make use of."""
    owners = [importlib.import_module(f"torch.{name}") for name in _ASKING]
    asked = [(owner, name) for owner in owners for name in _SUPPORTED if hasattr(owner, name)]
    before = [getattr(owner, name) for owner, name in asked]
    for (owner, name), known in zip(asked, before, strict=True):
        setattr(owner, name, lambda known=known: [*known(), "meta"])
    try:
        yield
    finally:
        for (owner, name), known in zip(asked, before, strict=True):
            setattr(owner, name, known)


class _Operations(DispatchMode):
    """Sees what reaches torch's dispatcher."""

    def __init__(self, calls: DeviceCalls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func._can_decompose():  # what is made of others comes whole in inference mode
            with self:
                made = func.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        return self.calls.call(func, args, kwargs or {})


class _FromPython(TorchFunctionMode):
    """Sees numbers of Python become tensors of a device, below which torch shows no copy."""

    def __init__(self, calls: DeviceCalls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords, before = dict(kwargs or {}), self.calls.copies.total()
        result = func(*args, **keywords)
        made = func in _FROM_PYTHON and not isinstance(args[-1], Tensor)
        made |= func in _INDEXING and _is_listed(args[1])
        device = result if isinstance(result, Tensor) else args[0]
        if made and device.device.type != "cpu" and self.calls.copies.total() == before:
            self.calls.copied(func.__name__, queued=False)
        return result


def _launches_nothing(func: Any, name: str) -> bool:
    return bool(func.is_view) or name in _ALLOCATING


def _target(name: str, args: Any, keywords: Mapping[str, Any], on_device: list[Tensor]) -> str:
    """The kind of device on which there is a result."""
    if name == "copy_":
        return str(args[0].device.type)
    if keywords.get("device") is not None:
        return torch.device(keywords["device"]).type
    return on_device[0].device.type if on_device else "cpu"


def _wrapped_number(tensors: Sequence[Tensor]) -> bool:
    """Whether a number in code that is differentiated forwards is sent to where its factor is.

    `torch.func.jvp` makes tensors of numbers, which a device with kernels takes as arguments.
    """
    differentiating = forward_ad._current_level >= 0
    return differentiating and all(v.dtype == torch.int64 and v.ndim == 0 for v in tensors)


def _waits(func: Any, name: str, args: Any) -> bool:
    """Whether the host has to know values that are on a device."""
    if name == "index":  # by numbers it does not have to, by a mask it does
        return any(_is_mask(index) for index in args[1])
    if name.startswith(("index_put", "_index_put")):  # one value is put by a mask as it is
        return args[2].numel() > 1 and any(_is_mask(index) for index in args[1])
    dependent = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return name in _CHECKING or bool(dependent & {*func.tags})


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _is_listed(index: Any) -> bool:
    """Whether an index has to become a tensor first."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or type(part).__module__ == "numpy" for part in parts)


def _is_queued(args: Any, keywords: Mapping[str, Any]) -> bool:
    return bool(keywords.get("non_blocking") or (len(args) > 2 and args[2]))


_TORCH = os.path.dirname(torch.__file__) + os.sep


def _place() -> str:
    """``file:line`` of the innermost call that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith(_TORCH) and not name.startswith("<frozen"):
            folder, file = os.path.split(name)
            return f"{os.path.basename(folder)}/{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
