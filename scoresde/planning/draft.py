"""Drafts of plans: few whole numbers each, and the times that they stand for.

What is planned is discrete. A stage's steps are equal in a power of how far the newest block's
noise has come, and end where the next block enters; the last step of all starts at a level of its
own. Neighbouring drafts differ in their errors by far more than what is rounded, so that every
machine finds the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch

from scoresde.diagonal import DiagonalSDE
from scoresde.schedules import Schedule

_UNIT = 50
"""Positions on a range of noise levels, in which those of a draft are counted: 2% each."""

MIDDLE = 30
"""Where a stage ends if that hardly matters."""

_BENDS = 4
"""Positions of a power between 0 and 1."""

_FAR = 7.0
"""Noise levels beyond which nothing is decided: ``sigma/alpha`` is a thousand, or a thousandth."""

_Floats = npt.NDArray[np.float64]


@attrs.frozen
class Draft:
    """How many steps every stage has, and where they are.

    Attributes:
        steps: Per stage, coarse first.
        knobs: Where every stage but the last ends and where the last step starts, on a range of
            noise levels, and the power in which steps are equal.

    Example:
        >>> from scoresde.planning.draft import Draft
        >>> first = Draft.first(2)
        >>> first.steps, first.grown(0, 2).steps
        ((1, 1), (3, 1))
        >>> len(list(first.neighbours(4)))
        6
    """

    steps: tuple[int, ...]
    knobs: tuple[int, ...]

    @classmethod
    def first(cls, stages: int, end: int = MIDDLE) -> Draft:
        """One step per stage, and stages that all end at one level."""
        return cls((1,) * stages, (end,) * (stages - 1) + (22, -2))

    def grown(self, stage: int, more: int) -> Draft:
        """With more steps in a stage."""
        steps = tuple(n + more * (k == stage) for k, n in enumerate(self.steps))
        return attrs.evolve(self, steps=steps)

    def neighbours(self, distance: int, fixed: bool = False) -> Iterator[Draft]:
        """Those with one knob turned, by a distance; the ends of stages may be ``fixed``."""
        stages = len(self.steps)
        for i in range(stages - 1 if fixed else 0, len(self.knobs)):
            for turn in (distance, -distance):
                turn, low, high = turn, 1, _UNIT - 1
                if i == stages:
                    turn, low, high = turn // abs(turn), -2 * _BENDS, 2 * _BENDS
                knob = min(max(self.knobs[i] + turn, low), high)
                yield attrs.evolve(self, knobs=(*self.knobs[:i], knob, *self.knobs[i + 1 :]))

    @property
    def strangeness(self) -> float:
        """How unlike its stages are: logarithms of where they end and of their steps, squared."""
        ends, steps = np.array(self.knobs[: len(self.steps) - 1]), np.array(self.steps)
        # the finest stage has what it needs, whatever the others have
        uneven = np.diff(np.log(steps[:-1]))
        return float((np.log(ends / MIDDLE) ** 2).sum() + (uneven**2).sum())


class Layout:
    """The times of drafts, on a schedule whose stages are free or on those of an SDE.

    Args:
        schedule: Read by every block.
        sde: Whose stages are kept; they are planned if None.

    Example:
        >>> from scoresde import LogLinear
        >>> from scoresde.planning.draft import Draft, Layout
        >>> starts, times = Layout(LogLinear()).times([Draft.first(2).grown(1, 1)])
        >>> starts.tolist(), times.tolist()
        ([[1.0, 0.6004]], [[1.0, 0.6004, 0.264736, 0.001]])
    """

    def __init__(self, schedule: Schedule, sde: DiagonalSDE | None = None) -> None:
        self.T, self.eps, self.sde = schedule.T, schedule.eps, sde
        u = np.linspace(0, 1, 4097)
        # dense at both ends, where levels change fastest
        self.dense = schedule.eps + (schedule.T - schedule.eps) * np.where(
            u < 0.5, 4 * u**3, 1 - 4 * (1 - u) ** 3
        )
        if sde is None:
            with torch.no_grad():
                snr = schedule.log_snr(torch.from_numpy(self.dense).unsqueeze(-1))
            self.levels = [_levels(-snr / 2)]
        else:
            at = sde.at(torch.from_numpy(self.dense).unsqueeze(-1))
            levels = at.noise_levels - sde.scale.log()
            noise = sde.blocks.expand(levels).expand(-1, sde.blocks.dim)
            self.levels = [_levels(noise[:, stage.dim - 1 :][:, :1]) for stage in sde.stages()]

    def times(self, drafts: Sequence[Draft]) -> tuple[_Floats, _Floats]:
        """Starts of the stages, ``(drafts, stages)``, and all times, ``(drafts, steps + 1)``.

        Args:
            drafts: With the same numbers of steps.
        """
        steps, knobs = drafts[0].steps, np.array([draft.knobs for draft in drafts], dtype=float)
        if self.sde is None:
            levels = self.levels[0]
            ends = levels[0] + knobs[:, : len(steps) - 1] / _UNIT * (levels[-1] - levels[0])
            ratios = np.interp(ends, levels, self.dense) / self.T
            starts = _rounded(self.T * np.cumprod(np.insert(ratios, 0, 1.0, axis=1), 1))
        else:
            starts = np.array([[stage.start for stage in self.sde.stages()]] * len(drafts))
        ends = np.append(starts[:, 1:], np.full((len(drafts), 1), self.eps), axis=1)
        columns = [starts[:, :1]]
        for stage, count in enumerate(steps):
            columns += [self._inner(stage, starts, ends, count, knobs), ends[:, stage : stage + 1]]
        return starts, np.concatenate(columns, 1)

    def _inner(
        self, stage: int, starts: _Floats, ends: _Floats, count: int, knobs: _Floats
    ) -> _Floats:
        """Times within a stage, ``(drafts, count - 1)``."""
        # a free stage is run through by its newest block, whose clock starts with it
        unit = np.ones(len(starts)) if self.sde is not None else starts[:, stage] / self.T
        levels = self.levels[0 if self.sde is None else stage]
        first, last, low = (
            np.interp(t / unit, self.dense, levels)
            for t in (starts[:, stage], ends[:, stage], np.full(len(starts), self.eps))
        )
        reach = knobs[:, -2] / _UNIT
        final = stage == starts.shape[1] - 1
        if not final:
            reach = np.clip((last - low) / np.maximum(first - low, 1e-9), 1e-9, 1.0)
        parts = np.arange(1, count) / max(count - final, 1)
        power = np.where(knobs[:, -1] == 0, 1e-6, knobs[:, -1] / _BENDS)[:, None]
        part = (1 + parts * (reach[:, None] ** power - 1)) ** (1 / power)
        inner = low[:, None] + part * (first - low)[:, None]
        return _rounded(np.interp(inner, levels, self.dense) * unit[:, None])


def _levels(noise: torch.Tensor) -> _Floats:
    found: _Floats = noise.squeeze(-1).clamp(-_FAR, _FAR).numpy()
    return found


def _rounded(times: _Floats) -> _Floats:
    """To six digits: what is written in a file is what was planned."""
    texts = [float(f"{t:.6g}") for t in times.ravel()]
    return np.array(texts).reshape(times.shape)
