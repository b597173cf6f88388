"""Random numbers of a run: those of every step follow from a seed and the step's number alone.

So no state has to be kept: a resumed run, a batch that is read ahead by another process and a
repeated step have the same numbers.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SEEDS = 2**32
"""How many seeds the Mersenne twister of the CPU's generators tells apart."""

_global = threading.RLock()
"""Held while the global generators, which all threads share, are seeded."""


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """A seed for every purpose, and for every step of a run.

    Args:
        seed: Of the run.
        purpose: What the numbers are for.
        step: Those of consecutive steps are consecutive, so that none comes twice.
    """
    return (_first(seed, purpose) + step) % _SEEDS


@functools.lru_cache(maxsize=64)
def _first(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{purpose} of {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def device_generator(device: torch.device) -> torch.Generator:
    """A generator of a device, or of the CPU where a device has none."""
    if device.type == "meta":
        return _WithoutNumbers("cpu")
    try:
        return torch.Generator(device)
    except RuntimeError:  # as torch says it of devices that have none
        return torch.Generator("cpu")


class _WithoutNumbers(torch.Generator):
    """A generator of the meta device, which has no numbers."""

    device = torch.device("meta")


@contextmanager
def seeded_globals(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, torch's global generators follow a seed; they are restored at the end.

    For code that takes no generator: dropout, its recomputation, and augmentation. Threads wait for
    each other.

    Args:
        seed: Of the numbers.
        device: Whose generator it is, besides the CPU's.
    """
    device = torch.device(device)
    of_device = getattr(getattr(torch, device.type, None), "default_generators", ())
    generators = [torch.default_generator, *of_device[device.index or 0 :][:1]]
    with _global:
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)


def _own_lock() -> None:
    """A child is alone: a thread of its parent that held the lock will never free it there."""
    global _global
    _global = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_lock)
