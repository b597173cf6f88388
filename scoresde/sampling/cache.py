"""Walks that are kept from one call to the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from scoresde.checks import numbers
from scoresde.estimator import ScoreEstimator
from scoresde.internals.copies import lasting
from scoresde.internals.modes import evaluation_mode
from scoresde.internals.snapshot import Snapshot, parts_of
from scoresde.noise import Noise
from scoresde.sampling.descent import Descent, Settings
from scoresde.sampling.grid import GRIDS
from scoresde.sampling.tape import Tape

E = TypeVar("E", bound=ScoreEstimator)

_MOST_WALKS = 4
"""Of an estimator: of two shapes, as the last batch of many is smaller, by two solvers."""

_MOST_NUMBERS = 2**18
"""Of a kind in a walk: of so many `scoresde.FixedStep` prepares all steps in one go."""


class _CachedWalk(NamedTuple):
    key: tuple[Any, ...]
    condition: Any
    tape: Tape
    start: Tensor
    times: Tensor | None
    modules: Sequence[nn.Module]
    snapshot: Snapshot


_lock = threading.Lock()
_walks: WeakKeyDictionary[ScoreEstimator, list[_CachedWalk]] = WeakKeyDictionary()


def events(
    solver: Settings,
    estimator: ScoreEstimator,
    sample_shape: Sequence[int],
    condition: Any,
    dtype: torch.dtype | None,
    noise: Noise,
    progress: bool = False,
) -> Tensor:
    """Samples of a descent, from a walk that is kept for the next call.

    The walk is used again if the same solver is asked for as many samples of the same estimator on
    the same condition, and all that it was made of is unchanged: the estimator's tensors, its
    modules' attributes and the condition's tensors (`scoresde.internals.snapshot.Snapshot`). It
    lives as long as the estimator, and changes no sample.

    Args:
        solver: See `scoresde.sampling.descent.Descent`.
        estimator: As there.
        sample_shape: Of the samples.
        condition: As there.
        dtype: Of the samples, see `scoresde.Solver.sample`.
        noise: Where random numbers come from.
        progress: Whether to show a bar.
    """
    key = _key(solver, estimator, sample_shape, condition, dtype)
    # without the lock: lists of walks are replaced, never changed
    for kept in [] if key is None else _walks.get(estimator, []):
        if kept.condition is condition and kept.key == key:
            with evaluation_mode(estimator, kept.modules):
                if kept.snapshot.holds() and _same(kept.times, solver, estimator):
                    return kept.tape.replay(kept.start, noise, progress)
    descent = Descent.of(solver, estimator, sample_shape, condition, dtype)
    modules = [*estimator.modules()]
    with evaluation_mode(estimator, modules):
        if key is None or not _lasts(descent.start) or _numbers(descent) > _MOST_NUMBERS:
            return descent.events(noise, progress=progress)
        twin, tape, times = _twin(estimator), Tape(log_reads=False), _times(solver, estimator)
        x = Descent(solver, twin, condition, descent.start).events(noise, tape, progress)
        made_of = [twin, *modules[1:]], Snapshot(*parts_of([twin, condition]), placed=True)
        _keep(estimator, _CachedWalk(key, condition, tape, descent.start, times, *made_of))
    return x


def _key(
    solver: Settings, estimator: object, shape: Any, condition: Any, dtype: torch.dtype | None
) -> tuple[Any, ...] | None:
    """The key of a walk; None for one that is not to be kept."""
    if torch.compiler.is_compiling() or not solver.planned or not _plain(condition):
        return None
    # what a class adds to its solvers without saying so is not compared
    known = isinstance(estimator, ScoreEstimator) and not getattr(solver, "__dict__", None)
    if not known or not isinstance(shape, tuple):
        return None
    numbers = torch.get_default_dtype(), torch._C._is_any_autocast_enabled()
    return solver, shape, *map(type, shape), dtype, *numbers


def _plain(condition: Any) -> bool:
    """Whether all of a condition can be looked at, and held."""
    tensors, containers = parts_of(condition)
    known = (type(v) in _PLAIN for v in chain([condition], *containers))
    small = sum(v.numel() for v in tensors) <= _MOST_NUMBERS
    return all(known) and small and all(map(lasting, tensors))


_PLAIN = {type(None), bool, int, float, str, Tensor, list, tuple}


def _lasts(start: Tensor) -> bool:
    """Whether what is prepared now can be kept."""
    return type(start) is Tensor and lasting(start)


def _numbers(descent: Descent) -> int:
    return (descent.solver.steps + 1) * descent.estimator.sde.basis.dim


def _times(solver: Settings, estimator: ScoreEstimator) -> Tensor | None:
    """The times of a user's grid, which may return others each time; None for built-in ones."""
    return None if solver.grid in GRIDS.values() else solver.times(estimator.sde).clone()


def _same(times: Tensor | None, solver: Settings, estimator: ScoreEstimator) -> bool:
    """Whether a grid says the times that were checked."""
    if times is None:
        return True
    return torch.equal(times, numbers("times", solver.grid(estimator.sde, solver.steps)).to(times))


def _keep(estimator: ScoreEstimator, new: _CachedWalk) -> None:
    """Replaces walks that are out of date, or else the oldest."""
    with _lock:
        others = [v for v in _walks.get(estimator, []) if v.snapshot.holds()]
        others = [v for v in others if v.condition is not new.condition or v.key != new.key]
        _walks[estimator] = [new, *others[: _MOST_WALKS - 1]]


def _twin(estimator: E) -> E:
    """Another object with the same attributes, now and later.

    A walk holds it in the estimator's place, which so goes when nobody else holds it, and its
    walks with it.
    """
    twin = object.__new__(type(estimator))
    twin.__dict__ = estimator.__dict__
    return twin
