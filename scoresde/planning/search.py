"""The search for drafts: steps are added where they gain most, and times are tuned in between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import attrs

from scoresde.checks import expect
from scoresde.planning.draft import MIDDLE, Draft
from scoresde.planning.draft_evaluator import DraftEvaluator

_IRREGULARITY = 0.1
"""What a stage that ends a factor of ``e`` from the middle, or has so many times the steps of the
next, must save in the logarithm of the error: many drafts are as good, and the plainest of them is
the one for all data alike."""

_ALIKE = 0.01
"""Logarithms of errors that differ by less are alike: far above rounding, far below what data or
their spectra are known to."""

_AS_GOOD = 0.98
"""Of the highest gain: of gains that differ by less the first is taken, the same on every
machine."""

_ENDS = (MIDDLE, 38, 43, 46, 48)
"""Where stages end before anything is known: late on schedules whose noise grows with time to a
power, as clocks that stop early have little left of them."""


_DELAYS = (0, 16, 32, 44)
"""Where delays start from, as one at a time they lead away from none slowly."""


@attrs.define
class Search:
    """A deterministic search of drafts.

    Args:
        evaluator: Of their errors.
        allowed: Which drafts may be taken.
        price: What a draft costs, of the budget.
        worth: By how much the logarithm of the error must fall for a unit of that.
    """

    evaluator: DraftEvaluator
    allowed: Callable[[Draft], bool]
    price: Callable[[Draft], float]
    worth: float
    _known: dict[Draft, float] = attrs.field(factory=dict, init=False)

    def scores(self, drafts: Sequence[Draft]) -> list[float]:
        """Logarithms of errors, and the irregularity of drafts with the same steps."""
        new = [draft for draft in dict.fromkeys(drafts) if draft not in self._known]
        if new:
            errors = self.evaluator.errors(new)
            for draft, error in zip(new, errors, strict=True):
                log = math.log(error) if 0 < error < math.inf else math.inf
                self._known[draft] = log + _IRREGULARITY * draft.irregularity
        return [self._known[draft] for draft in drafts]

    def best(self, drafts: Sequence[Draft]) -> tuple[Draft, float]:
        """The first of those within rounding of the best."""
        scores = self.scores(drafts)
        place = next(i for i, v in enumerate(scores) if v <= min(scores) + _ALIKE)
        return drafts[place], scores[place]

    def tuned(self, draft: Draft, distances: Sequence[int] = (4, 2, 1)) -> Draft:
        """The draft with the same steps at better times."""
        for distance in distances:
            while True:
                near = [draft, *draft.neighbours(distance, self.evaluator.fixed_sde is not None)]
                better, _ = self.best(near)
                if better == draft:
                    break
                draft = better
        return draft

    def delayed(self, draft: Draft) -> Draft:
        """The draft with the same steps and delayed clocks, where that is better."""
        late = [draft.delayed(delay) for delay in _DELAYS]
        return self.best([self.tuned(other) for other in late])[0]

    def run(self, enough: Callable[[Draft], bool]) -> Draft:
        """Grows a draft until it is enough, or more is not allowed or not worth its price.

        Steps are then exchanged between stages, so that their order matters less.
        """
        stages = len(self.evaluator.active)
        draft, score = self.best([Draft.first(stages, end) for end in _ENDS])
        wanted = "one that has room for as many stages as the basis has blocks"
        expect(score < math.inf, "schedule", wanted, self.evaluator.schedule)
        draft = self.tuned(draft)
        # neighbours in company: a stage's errors hide what another's steps are worth
        groups = [range(a, b) for b in range(1, stages + 1) for a in reversed(range(b))]
        while not enough(draft):
            grown = [self._grown(draft, group, share) for group in groups for share in (3, 1)]
            near = self._near([g for g in grown if g])
            gains = [self._gain(draft, other) for other in near]
            top = max(gains, default=-math.inf)
            if top <= self.worth:
                return self._exchanged(draft)
            alike = (d for d, v in zip(near, gains, strict=True) if v >= _AS_GOOD * top)
            draft = self.tuned(next(alike))
        return draft

    def _exchanged(self, draft: Draft) -> Draft:
        """The draft with steps moved between stages, as long as that is better."""
        while True:
            merits = {draft: self._merit(draft)}
            moved = []
            for less, more in itertools.permutations(range(len(draft.steps)), 2):
                steps = list(draft.steps)
                steps[less] -= max(1, steps[less] // 4)
                moved.append(attrs.evolve(draft, steps=tuple(steps)))
                steps[more] += max(1, steps[more] // 3)
                moved.append(attrs.evolve(draft, steps=tuple(steps)))
            possible = [d for d in moved if min(d.steps) > 0 and self.allowed(d)]
            for near in self._near(possible):
                merits[near] = self._merit(near)
            best = min(merits, key=lambda d: merits[d])
            if merits[best] > merits[draft] - 2 * _ALIKE:
                return draft
            draft = self.tuned(best)

    def _near(self, drafts: Sequence[Draft]) -> list[Draft]:
        """The best of each one's neighbours."""
        fixed = self.evaluator.fixed_sde is not None
        return [self.best([d, *d.neighbours(4, fixed)])[0] for d in dict.fromkeys(drafts)]

    def _merit(self, draft: Draft) -> float:
        return self.scores([draft])[0] + self.worth * self.price(draft)

    def _gain(self, draft: Draft, other: Draft) -> float:
        before, after = (self.scores([d])[0] for d in (draft, other))
        return (before - after) / (self.price(other) - self.price(draft))

    def _grown(self, draft: Draft, group: range, share: int) -> Draft | None:
        """The draft with ``share`` more steps in some stages, or one if that is not allowed."""
        for part in (share, max(draft.steps)):
            more = [max(1, n // part) if k in group else 0 for k, n in enumerate(draft.steps)]
            steps = tuple(n + m for n, m in zip(draft.steps, more, strict=True))
            if self.allowed(grown := attrs.evolve(draft, steps=steps)):
                return grown
        return None
