"""States of torch's global generators, for code that draws from no other: dropout."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GLOBAL = threading.RLock()
"""Held by whoever has put a state in the place of the global ones, which all threads share."""


class RNGState:
    """States of torch's global generators that follow a seed and nothing else.

    Dropout, and what recomputes it, know no generator but torch's global ones. While these states
    are `installed`, those go on from them, and afterwards from where they were. Of two threads that
    install states one waits.

    Args:
        seed: Of the numbers.
        index: Which of several independent sequences of the seed.
        device: Whose generator it is, besides the CPU's.

    Example:
        >>> import torch
        >>> from scoresde.training.rng_state import RNGState
        >>> def numbers():
        ...     with RNGState(0).installed():
        ...         return torch.rand(3)
        >>> torch.equal(numbers(), numbers())
        True
    """

    def __init__(self, seed: int, index: int = 0, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        digest = hashlib.sha256(f"stream {index} of {seed}".encode()).digest()
        derived = int.from_bytes(digest[:7], "big")  # not the seed itself, whose numbers data have
        kinds = ["cpu", *(["cuda"] if self.device.type == "cuda" else [])]
        generators = {kind: torch.Generator(kind).manual_seed(derived) for kind in kinds}
        self.states = {kind: generator.get_state() for kind, generator in generators.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Makes these the states of the global generators, and puts theirs back at the end."""
        with _GLOBAL:
            before = self._swap(self.states)
            try:
                yield
            finally:
                self.states = self._swap(before)

    def _swap(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the global generators other states, and returns those that they had."""
        before = {"cpu": torch.get_rng_state()}
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            before["cuda"] = torch.cuda.get_rng_state(self.device)
            torch.cuda.set_rng_state(states["cuda"], self.device)
        return before
