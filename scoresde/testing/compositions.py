"""Laws of estimators that others are made of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.conditioning import ConditionalEstimator
from scoresde.conditioning.observation import Observation
from scoresde.estimator import ScoreEstimator
from scoresde.likelihood import log_prob
from scoresde.likelihood.variational import bound, prior_loss
from scoresde.noise import Noise
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.selection import samples
from scoresde.testing.measures import DOUBLE, assert_holds, assert_same, standard_normal

_BATCH = (5,)


class CompositionLaws(ABC):
    """Laws of estimators that are conditioned on some components of their state.

    Asked of estimators whose SDE can be conditioned, as a part of `EstimatorLaws`.
    """

    exact = False

    @abstractmethod
    def make(self) -> ScoreEstimator:
        """The estimator that is tested, a new one at every call."""

    @abstractmethod
    def condition(self, batch: Sequence[int]) -> Any:
        """Its condition, None without any."""

    def _conditional(self, batch: Sequence[int]) -> ConditionalEstimator | None:
        """The estimator conditioned on its first component; None if it cannot be."""
        model = self.make().double().eval()
        sde, n = model.sde, model.sde.basis.dim
        unobserved = (~sde.observed).nonzero().flatten()
        if not isinstance(sde, DiagonalSDE) or sde.prior is not None or len(unobserved) < 2:
            return None
        # vector time, in which what is observed is clean, is nothing that all have learned
        observation = Observation(
            torch.arange(n) == unobserved[0], standard_normal(*batch, n, seed=3)
        )
        return ConditionalEstimator(model, observation, clean=self.exact)

    def test_what_is_observed_goes_with_its_samples(self) -> None:
        """Some samples of a conditional are the conditional of some samples."""
        if (whole := self._conditional(_BATCH)) is None:
            return
        rows, condition = torch.tensor([3, 1, 3]), self.condition(_BATCH)
        selected, part_condition = whole.select(rows, _BATCH), samples(condition, rows, _BATCH)
        mask = whole.observation.mask & ~whole.joint.sde.observed
        observation = Observation(mask, whole.observation.values[rows])
        rebuilt = ConditionalEstimator(whole.joint.select(rows, _BATCH), observation, whole.clean)
        z, t = standard_normal(*_BATCH, whole.sde.basis.dim), whole.sde.T / 2

        def appended(model: ScoreEstimator, seeds: Tensor) -> Tensor:
            noise = Noise([torch.Generator().manual_seed(int(seed)) for seed in seeds])
            empty, first = z.new_empty(len(seeds), 0), model.sde.stages()[0]
            return model.sde.append(empty, first, noise)

        every = torch.arange(*_BATCH)
        with torch.no_grad():
            for model in (selected, rebuilt):
                law = "a conditional of some samples is some samples of a conditional"
                expected = whole.denoise(z, t, condition)[rows]
                assert_same(
                    law, model.denoise(z[rows], t, part_condition), expected, rtol=1e-6, atol=1e-8
                )
                law = "samples start from what is observed of them"
                assert_same(law, appended(model, rows), appended(whole, every)[rows])
                law = "samples end as what is observed of them"
                expected = whole.sde.basis.inverse(z)[rows]
                assert_same(law, model.sde.basis.inverse(z[rows]), expected)

    def test_conditionals_of_exact_scores_are_exact(self) -> None:
        """What is observed is clean while the rest diffuses: they obey Fokker-Planck still."""
        if not self.exact or self._conditional(()) is None:
            return
        of_conditionals: Any = copy.copy(self)
        of_conditionals.make = lambda: self._conditional(())
        of_conditionals.test_exact_scores_obey_fokker_planck()

    def test_the_bound_is_no_density_above(self) -> None:
        """``bound >= -log_prob`` of exact scores, for every event, conditioned or not.

        As far as what enters has lost its signal: the bound is that of the SDE's density.
        """
        if not self.exact or (conditional := self._conditional(())) is None:
            return
        for model in (conditional.joint, conditional):
            self._is_bounded(model)

    def _is_bounded(self, model: ScoreEstimator) -> None:
        sde, condition = model.sde, self.condition((4,))
        assert isinstance(sde, DiagonalSDE)
        last_noise = sde.kernel(torch.tensor([sde.T])).sigma.expand(sde.basis.dim)
        if bool((last_noise[~sde.observed] == 0).any()):
            return  # what stands still has no density
        with torch.no_grad():
            # denoised means are no events that the data exclude
            last = sde.stages()[-1]
            z = model.denoise(
                standard_normal(4, sde.basis.dim), (last.start + last.end) / 2, condition
            )
            x, count = sde.basis.inverse(z).to(DOUBLE), 16
            neg_log_prob = -log_prob(model, x, condition=condition).value
            repeated = x.expand(count, *x.shape)
            conditions = samples(condition, torch.arange(4).repeat(count), (4,))
            bounds = bound(
                model,
                repeated,
                condition=conditions,
                draws=100,
                generator=torch.Generator().manual_seed(0),
            )
            # of the solver; of blocks that are dropped before their signal is gone; of the mean
            slack = 0.05 + prior_loss(sde, x).sqrt() + 5 * bounds.std(0) / count**0.5
        law = "bound >= -log_prob, for every event and to the error of the estimate"
        assert_holds(
            law, bounds.mean(0) > neg_log_prob - slack, (bounds.mean(0), neg_log_prob, slack)
        )
