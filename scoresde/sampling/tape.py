"""Walks in moves: what depends on times alone is prepared before a move is made.

A walk that is made once makes each move when it is prepared (`EagerWalk`); one that will be
repeated is recorded the first time (`Tape`), with its requests of noise (`NoiseTape`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from scoresde.equation import Equation
from scoresde.internals.dispatch_mode import DispatchMode
from scoresde.noise import Noise

Move = Callable[[Tensor, Noise, Any], tuple[Tensor, Any]]
"""``(state, noise, a solver's memory) -> (state, memory)``."""


class Walker(Protocol):
    """The methods of a solver that a walk uses; see `scoresde.Solver`."""

    def walk(
        self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """See `scoresde.Solver.walk`."""

    def moves(
        self, equation: Equation, ts: Tensor, like: Tensor, memory: Any = None
    ) -> Iterator[Move]:
        """See `scoresde.Solver.moves`."""


class EagerWalk:
    """A walk that is made once: moves are made as soon as they are prepared, and not kept."""

    def take(
        self, prepare: Callable[[], Move], y: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """Makes the move that is prepared by a function."""
        return prepare()(y, noise, memory)

    def walk(
        self, solver: Walker, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any
    ) -> Iterator[tuple[Tensor, Any]]:
        """The states of a solver's walk; see `scoresde.Solver.walk`."""
        return solver.walk(equation, y, ts, noise, memory)


class Tape(EagerWalk):
    """A walk that is recorded.

    Args:
        log_reads: Whether to note what is looked at, which takes longer than most of it.

    Attributes:
        moves: All that were made.
        read: The ``id`` of tensors whose values went into the moves.
    """

    def __init__(self, log_reads: bool = True) -> None:
        self.moves: list[Move] = []
        self._reading = _TensorLog()
        self._while_preparing = self._reading if log_reads else nullcontext()

    @property
    def read(self) -> set[int]:
        """See the class."""
        return self._reading.seen

    def take(
        self, prepare: Callable[[], Move], y: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        """See `EagerWalk`."""
        with self._while_preparing:
            self.moves.append(prepare())
        return self.moves[-1](y, noise, memory)

    def walk(
        self, solver: Walker, equation: Equation, y: Tensor, ts: Tensor, noise: Noise, memory: Any
    ) -> Iterator[tuple[Tensor, Any]]:
        """See `EagerWalk`."""
        with self._while_preparing:
            moves = list(solver.moves(equation, ts, y, memory))
        self.moves += moves
        for move in moves:
            y, memory = move(y, noise, memory)
            yield y, memory

    def replay(self, y: Tensor, noise: Noise, progress: bool = False) -> Tensor:
        """The end of the same walk from another state, with other noise; with a bar if asked to."""
        memory = None
        for move in tqdm(self.moves, desc="sampling") if progress else self.moves:
            y, memory = move(y, noise, memory)
        return y


class _TensorLog(DispatchMode):
    """Notes what tensors are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Notes the operation's tensors."""
        self.seen |= {id(v) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
        return func(*args, **(kwargs or {}))


class NoiseTape(Noise):
    """Noise that remembers what it was asked for, so that it can be drawn beforehand.

    Args:
        noise: Where the numbers come from.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise
        self.draws: list[Callable[[Noise], Tensor]] = []

    def draw_all(self, noise: Noise) -> list[Tensor]:
        """All that it was asked for, in that order, from another source."""
        return [draw(noise) for draw in self.draws]

    def __call__(self, like: Tensor) -> Tensor:
        """See `scoresde.Noise`."""
        like = _shell(like)
        return self._draw_now(lambda noise: noise(like))

    def uniform(self, like: Tensor) -> Tensor:
        """See `scoresde.Noise`."""
        like = _shell(like)
        return self._draw_now(lambda noise: noise.uniform(like))

    def stratified(self, like: Tensor, draws: int = 1) -> Tensor:
        """See `scoresde.Noise`."""
        like = _shell(like)
        return self._draw_now(lambda noise: noise.stratified(like, draws))

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """See `scoresde.Noise`."""
        like = _shell(like)
        return self._draw_now(lambda noise: noise.draw(distribution, like))

    def _draw_now(self, draw: Callable[[Noise], Tensor]) -> Tensor:
        self.draws.append(draw)
        return draw(self.noise)


class ReplayedNoise(Noise):
    """Numbers drawn before, one after the other, whatever is asked for.

    Args:
        numbers: See `NoiseTape.draw_all`.
    """

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self.generator, self.numbers, self.place = None, numbers, 0

    def __call__(self, like: Tensor) -> Tensor:
        """The next ones."""
        self.place += 1
        return self.numbers[self.place - 1]

    def uniform(self, like: Tensor) -> Tensor:
        """The next ones."""
        return self(like)

    def stratified(self, like: Tensor, draws: int = 1) -> Tensor:
        """The next ones."""
        return self(like)

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """The next ones."""
        return self(like)


def _shell(like: Tensor) -> Tensor:
    """Shape, dtype and device of a tensor, without its memory."""
    return torch.empty((), dtype=like.dtype, device=like.device).expand(like.shape)
