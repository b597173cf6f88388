"""The mode of networks while they are evaluated, not trained."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_lock = threading.Lock()
_evaluations: dict[int, int] = {}
"""How many evaluations are going on of each module that is otherwise in training, by the ``id`` of
its attributes: the last to end puts it back."""


@contextmanager
def evaluation_mode(module: nn.Module, parts: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Puts a module into evaluation mode, and restores its modes at the end.

    Samples and densities are those of one function, without dropout or batch statistics. Several
    threads may evaluate at a time. Inference mode, in which nothing can be differentiated, becomes
    ``torch.no_grad``.

    Args:
        module: With all of its parts.
        parts: All of its modules, itself included, where they are known.
    """
    with _lock:
        changed = []
        for part in module.modules() if parts is None else parts:
            attributes = vars(part)
            count = _evaluations.get(id(attributes), 0)
            if count or attributes["training"]:
                # past torch.nn.Module.__setattr__, which looks for weights and takes longer than
                # a step
                attributes["training"] = False
                _evaluations[id(attributes)] = count + 1
                changed.append(attributes)
    try:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield
    finally:
        with _lock:
            for attributes in changed:
                count = _evaluations.pop(id(attributes)) - 1
                if count:
                    _evaluations[id(attributes)] = count
                else:
                    attributes["training"] = True
