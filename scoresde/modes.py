"""The mode of networks while they are evaluated, not trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

_lock = threading.Lock()
_evaluations: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many evaluations are going on of each module that is otherwise in training: the last to end
puts it back."""


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and back as it was at the end.

    Samples and densities are those of one function: dropout would add noise to them, and batch
    statistics mix them. Several threads may evaluate at a time. Inference mode, under which nothing
    can be differentiated, becomes ``torch.no_grad``.

    Example:
        >>> import torch
        >>> from scoresde.modes import evaluation_mode
        >>> network = torch.nn.Dropout()
        >>> with evaluation_mode(network):
        ...     print(network.training)
        False
        >>> network.training
        True
    """
    with _lock:
        training_modules = [
            part for part in module.modules() if part.training or part in _evaluations
        ]
        for part in training_modules:
            _evaluations[part] = _evaluations.get(part, 0) + 1
            _set_training(part, False)
    try:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield
    finally:
        with _lock:
            for part in training_modules:
                _evaluations[part] -= 1
                if not _evaluations[part]:
                    del _evaluations[part]
                    _set_training(part, True)


def _set_training(module: nn.Module, training: bool) -> None:
    """Past `torch.nn.Module.__setattr__`, which looks for weights and takes longer than a step."""
    module.__dict__["training"] = training
