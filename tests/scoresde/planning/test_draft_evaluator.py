"""What drafts of plans are measured by."""

import attrs
import numpy as np
import pytest
import torch
from torch.distributions import Normal

from estimators import Gaussian
from scoresde import EDM, DiagonalSDE, Haar, Identity, LogLinear
from scoresde.planning import DenoisingErrors, draft_evaluator, equal, plan, replan
from scoresde.planning.draft import Draft, Layout
from scoresde.planning.draft_evaluator import DraftEvaluator, ScaleMixtures, quantiles
from scoresde.planning.independent_gaussian import IndependentGaussian, UnitNoise
from scoresde.sdes.fronts import front
from solvers import DDIM, ExponentialMultistep, Heun

pytestmark = pytest.mark.usefixtures("float64")

BASIS = Haar((1, 8, 8), 1)
BANDS = {
    "a1": torch.cat([torch.tensor([40.0, 10.0, 6.0, 3.0]), torch.linspace(0.6, 0.1, 12)]).double(),
    "d1": torch.linspace(0.1, 0.01, 48).double(),
}
DRAFTS = [Draft((4, 2), (35, 22, -2)), Draft((4, 2), (10, 5, 3))]


@pytest.mark.parametrize("solver", [DDIM(), ExponentialMultistep(), Heun()])
@pytest.mark.parametrize("case", ["free", "late", "given", "delayed", "wide"])
def test_drafts_are_measured_together_as_each_alone(solver, case):
    """On the SDE that each stands for, at the variances that stand for all."""
    scale, sde, drafts = [2.0, 0.2], None, DRAFTS
    match case:
        case "late":
            drafts = [draft.delayed(delay) for draft, delay in zip(DRAFTS, (30, 4), strict=True)]
        case "given":
            sde = equal(BASIS, LogLinear(), 1, scale).sde
        case "delayed":
            sde = DiagonalSDE(LogLinear(), BASIS, front([0, 1], 0.4), scale)
            drafts = [attrs.evolve(draft, steps=(3, 2, 2)) for draft in DRAFTS]
        case "wide":
            sde = DiagonalSDE(LogLinear(), BASIS, 1.0, scale, [1.0, 0.6], std=[1.5, 0.1])
    evaluator = DraftEvaluator(BASIS, LogLinear(), BANDS, solver, sde=sde)
    errors = evaluator.errors(drafts)
    # Heun's asks for rates, which warped time has others of
    assert evaluator._together == (not isinstance(solver, Heun))
    for draft, error in zip(drafts, errors, strict=True):
        own, times = evaluator.sde(draft)
        count = len(draft_evaluator._RATIOS)
        nodes = Identity((2 * count,), dict.fromkeys(BANDS, count))
        known = DiagonalSDE(
            LogLinear(), nodes, own.clock, 1.0, own.drop, std=own.std.cpu() / own.scale
        )
        model = IndependentGaussian(known, draft_evaluator._RATIOS.repeat(2))
        steps = len(times) - 1
        exact = attrs.evolve(solver, steps=steps, grid=lambda *_, times=times: times)
        ends = exact.rsample(model, generator=UnitNoise(), dtype=torch.float64)
        gap = (ends - model.variances.sqrt()) ** 2
        assert error == pytest.approx(float((gap * evaluator.weights.flatten()).sum()), rel=1e-6)


def test_variances_that_stand_for_all_have_their_power():
    evaluator = DraftEvaluator(BASIS, LogLinear(), BANDS, DDIM())
    total = sum(float(band.sum()) for band in BANDS.values())
    power = evaluator.weights @ draft_evaluator._RATIOS
    torch.testing.assert_close(
        power, torch.stack([band.sum() for band in BANDS.values()]) / total, rtol=1e-3, atol=0
    )


def test_stages_end_and_steps_are_where_parameters_say():
    starts, _, times = Layout(LogLinear()).times([Draft((2, 2), (25, 10, 4))])
    # halfway of the levels, which are those of time; equal steps; a fifth of the way at last
    assert starts[0].tolist() == pytest.approx([1.0, 0.5], abs=1e-3)
    assert times[0].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.1, 0.001], abs=2e-3)
    assert all(float(f"{t:.6g}") == t for t in times.ravel())
    _, _, geometric = Layout(LogLinear()).times([Draft((3,), (10, 0))])
    ratios = geometric[0][1:3] / geometric[0][:2]
    assert np.allclose(ratios, 0.2**0.5, rtol=5e-3)


def test_steps_are_placed_by_the_newest_block_that_does_not_stand_still():
    sde = DiagonalSDE(LogLinear(), BASIS, front([0, 1], 0.4), [2.0, 0.2])
    layout = Layout(LogLinear(), sde)
    at = sde.at(torch.from_numpy(layout.dense).unsqueeze(-1))
    noise = (at.noise_levels - sde.scale.log()).numpy()
    for levels, block in zip(layout.noise_levels, (0, 1, 1), strict=True):
        assert np.allclose(levels, noise[:, block])


def test_impossible_drafts_are_infinitely_bad():
    """A stage for which no time is left."""
    bands = {"a2": torch.ones(4), "d2": torch.ones(12), "d1": torch.ones(48)}
    evaluator = DraftEvaluator(Haar((1, 8, 8), 2), EDM(), bands, DDIM())
    bad, good = Draft((1, 1, 1), (2, 2, 22, 0)), Draft((1, 1, 1), (48, 48, 22, 0))
    found = evaluator.errors([bad, good])
    assert found[0] == float("inf")
    assert found[1:] == evaluator.errors([good])
    assert evaluator.errors([bad]) == [float("inf")]


def test_mixtures_are_denoised_by_their_posteriors():
    sde = DiagonalSDE(EDM(), Identity((2,)))
    variances, shares = torch.tensor([[0.1, 1.0], [4.0, 2.0]]), torch.tensor([0.7, 0.3])
    model = ScaleMixtures(sde, variances, shares)
    z, x = torch.tensor([1.3, -0.4]), torch.linspace(-30, 30, 200001)
    for i in range(2):
        prior = sum(
            w * Normal(0.0, v[i].sqrt()).log_prob(x).exp()
            for w, v in zip(shares, variances, strict=True)
        )
        weight = prior * Normal(x, 0.8).log_prob(z[i]).exp()
        mean = (weight * x).sum() / weight.sum()
        torch.testing.assert_close(model.denoise(z, 0.8)[i], mean, rtol=1e-6, atol=1e-9)


def test_quantiles_of_mixtures():
    variances, shares = torch.tensor([0.1, 4.0]), torch.tensor([0.7, 0.3])
    z = torch.tensor([0.3, 1.0, 4.0])
    x = quantiles(z, variances, shares)
    above = sum(w * Normal(0.0, v.sqrt()).cdf(-x) for w, v in zip(shares, variances, strict=True))
    torch.testing.assert_close(above, Normal(0.0, 1.0).cdf(-z), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kurtosis", [3.0, 9.0])
def test_many_steps_end_at_the_datas_quantiles(kurtosis):
    """The flow is monotone: as far as the prior is one, nothing is missed."""
    tails = dict.fromkeys(BANDS, kurtosis)
    evaluator = DraftEvaluator(BASIS, LogLinear(), BANDS, ExponentialMultistep(), kurtosis=tails)
    coarse, fine = (Draft((n, n), (30, 5, -1)) for n in (5, 40))
    assert evaluator.errors([fine])[0] < 1e-4
    assert evaluator.errors([coarse])[0] > 20 * evaluator.errors([fine])[0]


def test_tails_take_more_steps():
    """They are worth longer where a linear map is not all that there is."""
    solver = ExponentialMultistep(order=2)
    normal, heavy = (
        plan(BASIS, LogLinear(), BANDS, solver, cost=6.0, kurtosis=dict.fromkeys(BANDS, value))
        for value in (3.0, 20.0)
    )
    assert heavy.steps[-1] > normal.steps[-1]


def test_what_an_exact_estimator_misses_is_the_posterior_variance():
    made = equal(BASIS, LogLinear(), 2, [2.0, 0.2])
    rotation = BASIS(torch.eye(64).reshape(64, 1, 8, 8))
    variances = torch.cat(list(BANDS.values()))
    covariance = rotation @ torch.diag(variances) @ rotation.mT
    model = Gaussian(made.sde, torch.zeros(1, 8, 8), covariance)
    torch.manual_seed(0)
    x = BASIS.inverse(torch.randn(1500, 64) * variances.sqrt())
    found = DenoisingErrors.of(model, x, count=9)
    for name, band in BANDS.items():
        noise = (2 * found.noise_levels[name]).exp().unsqueeze(-1)
        linear = (band * noise / (band + noise)).mean(-1)
        torch.testing.assert_close(found.errors[name], linear, rtol=0.1, atol=1e-9)
        assert (found.noise_levels[name].diff() > 0).all()
    # fine blocks are asked of where they are part of the state
    assert len(found.noise_levels["d1"]) < len(found.noise_levels["a1"]) == 9
    evaluator = DraftEvaluator(BASIS, LogLinear(), BANDS, DDIM(), learned=found)
    assert max(float(missed.max()) for _, missed in evaluator.excess) < 0.2


def errors_above_linear(excess):
    """What an estimator misses that adds so much to the best one's errors, by level."""
    levels = torch.linspace(-8, 8, 801)
    errors = {}
    for name, band in BANDS.items():
        noise = (2 * levels).exp().unsqueeze(-1)
        added = excess(name, levels - band.mean().sqrt().log())
        errors[name] = (band * noise / (band + noise)).mean(-1) + band.mean() * added
    return DenoisingErrors(dict.fromkeys(BANDS, levels), errors)


def test_nothing_missed_changes_nothing():
    options = {"solver": ExponentialMultistep(order=2), "cost": 2.0}
    none = errors_above_linear(lambda name, levels: -1e-3 + 0 * levels)
    one = plan(BASIS, LogLinear(), BANDS, **options)
    other = plan(BASIS, LogLinear(), BANDS, **options, learned=none)
    assert one.steps == other.steps
    assert torch.equal(one.times, other.times)


def test_no_estimator_is_asked_where_it_knows_nothing():
    """At some of the fine band's levels it misses everything: steps go over them."""
    solver = ExponentialMultistep(order=2)

    def asked(made):
        """Levels of the fine band at which denoised means count."""
        at = made.sde.at(made.times[:-1].unsqueeze(-1)).log_snr[:, -1] / -2
        return [float(v) for v in at if v < 4.0]

    sde = plan(BASIS, LogLinear(), BANDS, solver, evaluations=2).sde
    low, high = -0.6, 1.4
    scale = float(sde.scale[-1])

    def lost(name, levels):
        inside = (levels > low) & (levels < high) & (name == "d1")
        return torch.where(inside, torch.inf, 0.0)

    usual = replan(sde, BANDS, solver, cost=4.0)
    other = replan(sde, BANDS, solver, cost=4.0, learned=errors_above_linear(lost))
    levels = [[v - np.log(scale) for v in asked(made)] for made in (usual, other)]
    assert any(low < v < high for v in levels[0])
    assert not any(low < v < high for v in levels[1])


def test_no_step_is_spent_where_the_estimator_misses_more():
    solver = ExponentialMultistep(order=2)
    poor = errors_above_linear(lambda name, levels: 0.05 + 0 * levels)
    good, bad = (
        plan(BASIS, LogLinear(), BANDS, solver, cost=5.0, learned=learned)
        for learned in (None, poor)
    )
    assert bad.cost < good.cost / 1.2
