"""Drafts of plans: a few integers each, and the times that they stand for.

Plans are discrete. A stage's steps are equal in a power of the newest block's noise level, and end
where the next block enters; the last step of all starts at a level of its own. Errors of
neighbouring drafts differ by far more than rounding, so that every machine finds the same plan.

The clocks of a given SDE, of whatever speeds and delays, are kept: then drafts are of the steps
between two times at which a clock starts or stops, or a block is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch

from scoresde.schedules import Schedule
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import Stage

_UNIT = 50
"""Positions on a range of noise levels, in which those of a draft are counted: 2% each."""

MIDDLE = 30
"""Where a stage ends if that hardly matters."""

_FIRST = (22, -2)
"""Where last steps start, and the power, of first drafts. Measured: of 32 plans by four schedules,
two spectra, two budgets and two solvers the medians are 21 and -2."""

_BENDS = 4
"""Positions of a power between 0 and 1."""

_FAR = 7.0
"""Noise levels beyond which nothing is decided: ``sigma/alpha`` is a thousand, or a thousandth."""

_ALIKE = 1e-6
"""Levels of one time, however it has been rounded: a step is thousands of these."""

_Floats = npt.NDArray[np.float64]


@attrs.frozen
class Draft:
    """The number of steps of every stage, and where they are.

    Attributes:
        steps: Per stage, coarse first.
        parameters: Where every stage but the last ends and where the last step starts, on a range
            of noise levels, and the power in which steps are equal.
        delays: Of every block but the last, in hundredths of the time at which the next one enters:
            at 0 it runs to the end with that, at 50 it is finished before. None if none are
            planned.
    """

    steps: tuple[int, ...]
    parameters: tuple[int, ...]
    delays: tuple[int, ...] = ()

    @classmethod
    def first(cls, stages: int, end: int = MIDDLE) -> Draft:
        """One step per stage, and stages that all end at one level."""
        return cls((1,) * stages, (end,) * (stages - 1) + _FIRST)

    def grown(self, stage: int, more: int) -> Draft:
        """The draft with more steps in a stage."""
        steps = tuple(n + more * (k == stage) for k, n in enumerate(self.steps))
        return attrs.evolve(self, steps=steps)

    def delayed(self, delay: int) -> Draft:
        """The same, with a delay of all that there are, which may be changed from then on."""
        return attrs.evolve(self, delays=(delay,) * (len(self.steps) - 1))

    def neighbours(self, distance: int, fixed: bool = False) -> Iterator[Draft]:
        """Drafts with one parameter changed by a distance; ends of stages may be ``fixed``."""
        stages = len(self.steps)
        for i in range(stages - 1 if fixed else 0, len(self.parameters)):
            for change in (distance, -distance):
                change, low, high = change, 1, _UNIT - 1
                if i == stages:
                    change, low, high = change // abs(change), -2 * _BENDS, 2 * _BENDS
                value = min(max(self.parameters[i] + change, low), high)
                others = self.parameters[:i], self.parameters[i + 1 :]
                yield attrs.evolve(self, parameters=(*others[0], value, *others[1]))
        for i, delay in enumerate(self.delays):
            for change in (distance, -distance):
                late = min(max(delay + change, 0), _UNIT - 1)
                yield attrs.evolve(self, delays=(*self.delays[:i], late, *self.delays[i + 1 :]))

    @property
    def irregularity(self) -> float:
        """How unequal stages are: squares of logarithms of ends and steps, and of delays."""
        ends, steps = np.array(self.parameters[: len(self.steps) - 1]), np.array(self.steps)
        # the finest stage has what it needs, whatever the others have
        uneven = np.diff(np.log(steps[:-1]))
        late = np.array(self.delays) / _UNIT
        return float((np.log(ends / MIDDLE) ** 2).sum() + (uneven**2).sum() + (late**2).sum())


class Layout:
    """The times of drafts, with stages that are planned or those of an SDE.

    Args:
        schedule: Read by every block.
        sde: Whose stages are kept; they are planned if None.
    """

    def __init__(self, schedule: Schedule, sde: DiagonalSDE | None = None) -> None:
        self.T, self.eps, self.sde = schedule.T, schedule.eps, sde
        # dense at both ends, where noise levels change fastest, and eighty for each position
        u = np.linspace(0, 1, 4097)
        self.dense = schedule.eps + (schedule.T - schedule.eps) * np.where(
            u < 0.5, 4 * u**3, 1 - 4 * (1 - u) ** 3
        )
        self.pieces: list[Stage] = []
        if sde is None:
            with torch.no_grad():
                snr = schedule.log_snr(torch.from_numpy(self.dense).unsqueeze(-1))
            self.noise_levels = [_clamped(-snr.squeeze(-1) / 2)]
        else:
            self.pieces = pieces(sde)
            self.dense = np.union1d(self.dense, sde.breakpoints())
            at = sde.at(torch.from_numpy(self.dense).unsqueeze(-1))
            noise_levels, unit = sde.blocks.broadcastable(
                at.noise_levels, sde.scale.log().reshape(-1)
            )
            noise = _clamped(sde.blocks.expand(noise_levels - unit).expand(-1, sde.blocks.dim))
            self.noise_levels = [
                self._newest(noise[:, : piece.dim], piece) for piece in self.pieces
            ]

    def _newest(self, noise: _Floats, piece: Stage) -> _Floats:
        """Noise levels of the last component that moves in a piece; time if none does."""
        inside = (self.dense >= piece.end) & (self.dense <= piece.start)
        moving = np.flatnonzero(np.ptp(noise[inside], 0) > _ALIKE)
        return noise[:, moving[-1]] if len(moving) else self.dense

    def times(self, drafts: Sequence[Draft]) -> tuple[_Floats, _Floats, _Floats]:
        """Starts and delays of the stages, ``(drafts, stages)``, and ``(drafts, steps + 1)`` times.

        Args:
            drafts: With the same numbers of steps.
        """
        steps = drafts[0].steps
        parameters = np.array([draft.parameters for draft in drafts], dtype=float)
        starts, delays = self._stages(drafts, parameters)
        ends = np.append(starts[:, 1:], np.full((len(drafts), 1), self.eps), axis=1)
        columns = [starts[:, :1]]
        for stage, count in enumerate(steps):
            known = starts[:, stage], ends[:, stage], delays[:, stage]
            columns += [self._inner(stage, *known, count, parameters), ends[:, stage : stage + 1]]
        return starts, delays, np.concatenate(columns, 1)

    def _stages(self, drafts: Sequence[Draft], parameters: _Floats) -> tuple[_Floats, _Floats]:
        """Starts and delays of the stages, ``(drafts, stages)``."""
        if self.sde is not None:
            starts = np.array([[piece.start for piece in self.pieces]] * len(drafts))
            return starts, np.zeros_like(starts)
        noise_levels, inner = self.noise_levels[0], len(drafts[0].steps) - 1
        first, last = noise_levels[0], noise_levels[-1]
        ends = first + parameters[:, :inner] / _UNIT * (last - first)
        ratios = np.interp(ends, noise_levels, self.dense) / self.T
        late = np.array([draft.delays or (0,) * inner for draft in drafts]) / _UNIT
        starts = np.ones((len(drafts), inner + 1))
        for k in range(inner):
            # where the clock of block k, from its delay to its start, has come to the ratio
            ratio, part = ratios[:, k], late[:, k]
            starts[:, k + 1] = starts[:, k] * ratio / (1 - part * (1 - ratio))
        starts = _rounded(self.T * starts)
        delays = _rounded(late * starts[:, 1:])
        return starts, np.append(delays, np.zeros((len(drafts), 1)), axis=1)

    def _inner(
        self,
        stage: int,
        start: _Floats,
        end: _Floats,
        delay: _Floats,
        count: int,
        parameters: _Floats,
    ) -> _Floats:
        """Times within a stage, ``(drafts, count - 1)``."""
        # a free stage is run through by its newest block, whose clock starts with it
        free = self.sde is None
        unit = (start - delay) / self.T if free else np.ones(len(start))
        noise_levels = self.noise_levels[0 if free else stage]
        first, last, low = (
            np.interp((t - delay) / unit, self.dense, noise_levels)
            for t in (start, end, np.full(len(start), self.eps))
        )
        reach = parameters[:, -2] / _UNIT
        # from where a clock ends, a step goes to data that are clean
        final = bool((last - low < _ALIKE).all())
        if not final:
            # guarded: of a stage in which nothing moves
            reach = np.clip((last - low) / np.maximum(first - low, 1e-9), 1e-9, 1.0)
        parts = np.arange(1, count) / max(count - final, 1)
        # the limit of small powers, steps that are equal in the logarithm, to six digits
        power = np.where(parameters[:, -1] == 0, 1e-6, parameters[:, -1] / _BENDS)[:, None]
        part = (1 + parts * (reach[:, None] ** power - 1)) ** (1 / power)
        inner = low[:, None] + part * (first - low)[:, None]
        return _rounded(np.interp(inner, noise_levels, self.dense) * unit[:, None] + delay[:, None])


def pieces(sde: DiagonalSDE) -> list[Stage]:
    """Between every two breakpoints, latest first: stages, and where a clock starts or stops."""
    edges, stages = [sde.T, *reversed(sde.breakpoints()), sde.eps], sde.stages()
    return [
        Stage(start, end, next(stage.dim for stage in stages if stage.end < start <= stage.start))
        for start, end in itertools.pairwise(edges)
    ]


def _clamped(noise: torch.Tensor) -> _Floats:
    clamped: _Floats = noise.clamp(-_FAR, _FAR).numpy()
    return clamped


def _rounded(times: _Floats) -> _Floats:
    """Times to six digits, so that files hold what was planned."""
    texts = [float(f"{t:.6g}") for t in times.ravel()]
    return np.array(texts).reshape(times.shape)
