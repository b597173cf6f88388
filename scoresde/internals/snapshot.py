"""Whether what something was made of is still what it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from itertools import chain, compress
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

_BESIDES = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
"""What every module has: its mode and its hooks, of which those who ask it know nothing."""

_ATOMS = {type(None), bool, int, float, str}
"""Of which most attributes are: there is nothing in them."""

_KIND = attrgetter("dtype", "device")
_WRITTEN = attrgetter("_version")


class Snapshot:
    """Which objects there were, and the state of their tensors.

    A tensor is unchanged if it is the same object, on the same device and in the same dtype, and
    has not been written to. Modules are unchanged if their attributes are the same objects, and so
    are entries of lists, tuples, sets and dictionaries among these; other objects are not looked
    into. No tensor is kept alive.

    Args:
        tensors: Looked at.
        containers: Dictionaries and lists whose entries are to be the same; see `parts_of`.
        read: Whether it matters what is written to a tensor.
        placed: Whether it matters where in memory tensors are.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        containers: Iterable[Any] = (),
        read: Callable[[Tensor], bool] = lambda tensor: True,
        placed: bool = False,
    ) -> None:
        tensors = [*tensors]
        # what inference mode has made does not know how often it was written to
        self._written = [read(v) and not v.is_inference() for v in tensors]
        self._tensors, self._placed = [*map(weakref.ref, tensors)], placed
        # views, so that what is asked of every sample is one loop
        self._containers = [v.values() if isinstance(v, dict) else v for v in containers]
        entries = [*chain.from_iterable(self._containers)]
        # another object may not get the name of one that is gone
        self._entries = [v for v in entries if not isinstance(v, Tensor)]
        self._ids, self._marks = [*map(id, entries)], self._look()

    def holds(self) -> bool:
        """Whether all is as it was."""
        ids = [*map(id, chain.from_iterable(self._containers))]
        return ids == self._ids and self._look() == self._marks

    def _look(self) -> list[Any] | None:
        """Of the tensors, if there are all of them: asked of every sample, hence few loops."""
        tensors = [tensor for reference in self._tensors if (tensor := reference()) is not None]
        if len(tensors) < len(self._tensors):
            return None
        places = map(_place, tensors) if self._placed else ()
        return [*map(_KIND, tensors), *map(_WRITTEN, compress(tensors, self._written)), *places]


def _place(tensor: Tensor) -> int:
    return 0 if is_functorch_wrapped_tensor(tensor) else tensor.data_ptr()


def parts_of(whole: Any) -> tuple[list[Tensor], list[Any]]:
    """All tensors of a module or a collection, and the dictionaries and lists that they are in."""
    tensors: list[Tensor] = []
    containers: list[Any] = []
    seen: set[int] = set()
    todo: list[Any] = [whole]
    while todo:
        value = todo.pop()
        if type(value) in _ATOMS or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, nn.Module):
            containers.append(vars(value))
            todo += [v for name, v in vars(value).items() if name not in _BESIDES]
        elif isinstance(value, (dict, list, tuple, set)):
            containers.append(value)
            todo += value.values() if isinstance(value, dict) else value
    return tensors, containers
