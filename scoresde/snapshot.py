"""Whether what something was made of is still what it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

_BESIDES = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
"""What every module has: its mode and its hooks, of which those who ask it know nothing."""

_KIND = attrgetter("dtype", "device")
_WRITTEN = attrgetter("_version")


class Snapshot:
    """Which objects there were, and what has become of tensors since.

    A tensor is as it was if it is the same one, on the same device and in the same dtype, and
    nobody has written to it. Modules are as they were if their attributes are the same objects,
    and so are the entries of lists, tuples, sets and dictionaries among these; what other objects
    are made of is not looked at. No tensor is kept alive.

    Args:
        tensors: Looked at.
        containers: Dictionaries and lists whose entries are to be the same; see `parts_of`.
        read: Whether it matters what is written to a tensor.
        placed: Whether it matters where in memory tensors are.

    Example:
        >>> import torch
        >>> from scoresde.snapshot import Snapshot
        >>> x = torch.zeros(2)
        >>> before = Snapshot([x])
        >>> before.holds(), x.add_(1) is x, before.holds()
        (True, True, False)
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
        written = [v for v in tensors if read(v) and not v.is_inference()]
        self._tensors, self._written = ([weakref.ref(v) for v in vs] for vs in (tensors, written))
        self._containers, self._placed = [*containers], placed
        # another object may not get the name of one that is gone
        self._entries = [v for v in self._found() if not isinstance(v, Tensor)]
        self._ids, self._marks = [*map(id, self._found())], self._look()

    def holds(self) -> bool:
        """Whether all is as it was."""
        return [*map(id, self._found())] == self._ids and self._look() == self._marks

    def _found(self) -> Iterator[Any]:
        each = (v.values() if isinstance(v, dict) else v for v in self._containers)
        return chain.from_iterable(each)

    def _look(self) -> list[Any] | None:
        """Of the tensors, if there are all of them: asked of every sample, hence few loops."""
        tensors = [reference() for reference in self._tensors]
        if any(tensor is None for tensor in tensors):
            return None
        places = [_place(tensor) for tensor in tensors if tensor is not None and self._placed]
        versions = map(_WRITTEN, [reference() for reference in self._written])
        return [*map(_KIND, tensors), *versions, *places]


def _place(tensor: Tensor) -> int:
    return 0 if is_functorch_wrapped_tensor(tensor) else tensor.data_ptr()


def parts_of(whole: Any) -> tuple[list[Tensor], list[Any]]:
    """All tensors of a module or a collection, and the dictionaries and lists that they are in.

    Example:
        >>> import torch
        >>> from scoresde.snapshot import Snapshot, parts_of
        >>> layer = torch.nn.Linear(1, 1)
        >>> before = Snapshot(*parts_of(layer))
        >>> layer.in_features = 2
        >>> before.holds()
        False
    """
    tensors: list[Tensor] = []
    containers: list[Any] = []
    seen: set[int] = set()
    todo: list[Any] = [whole]
    while todo:
        value = todo.pop()
        if id(value) in seen:
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
