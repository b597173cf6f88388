"""Calibration of Gaussian posteriors: exact ones, and those that are wrong in a known way."""

import math
from functools import partial

import pytest
import scipy.stats
import torch

from scoresde.metrics import expected_coverage, local_c2st, ranks, tarp, uniformity

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
WRONG = {"shifted": (0.3, 1.0), "narrow": (0.0, 0.7), "wide": (0.0, 1.4)}


def posteriors(shift, width, dtype, count=1500, draws=199, dim=1):
    """``theta ~ N(0, 1)`` seen through ``N(0, 1)``: means ``x / 2``, variances ``1/2``."""
    torch.manual_seed(0)
    theta = torch.randn(count, dim, dtype=dtype)
    mean, std = (theta + torch.randn_like(theta)) / 2, 0.5**0.5
    noise = torch.randn(draws, count, dim, dtype=dtype)
    drawn = mean + shift * std + width * std * noise
    distribution = torch.distributions.Normal(mean + shift * std, width * std)
    return drawn, theta, distribution, 2 * mean


@both
def test_ranks_of_exact_posteriors_are_uniform(dtype):
    drawn, theta, *_ = posteriors(0.0, 1.0, dtype, dim=3)
    found = ranks(drawn, theta)
    assert (found.dtype, found.shape) == (dtype, theta.shape)
    assert 0 <= found.min() <= found.max() <= 199
    assert (uniformity(found, 199) > 0.01).all()


@both
@pytest.mark.parametrize(("shift", "width"), WRONG.values(), ids=WRONG)
def test_ranks_of_wrong_posteriors_are_not(shift, width, dtype):
    drawn, theta, *_ = posteriors(shift, width, dtype)
    found = ranks(drawn, theta)
    assert (uniformity(found, 199) < 1e-5).all()
    # the truth among draws is at Phi((e - shift) / width) with standard normal e
    e = torch.distributions.Normal(0.0, 1.0)
    below = float(e.cdf(torch.tensor(shift)))  # P(rank < half)
    assert (found < 100).double().mean() == pytest.approx(below, abs=0.04)
    tail = float(e.cdf(torch.tensor(shift + width * scipy.stats.norm.ppf(0.1))))
    assert (found < 20).double().mean() == pytest.approx(tail, abs=0.03)


def test_ties_count_half():
    drawn = torch.tensor([0.0, 1.0, 1.0, 2.0]).reshape(4, 1, 1)
    assert ranks(drawn, torch.ones(1, 1)).tolist() == [[2.0]]


@both
@pytest.mark.parametrize("draws", [1, 9])
def test_p_values_of_exact_posteriors_are_uniform_however_few_draws(draws, dtype):
    chance = torch.Generator().manual_seed(0)
    found = torch.randint(0, draws + 1, (500, 40), generator=chance).to(dtype)
    p = uniformity(found, draws, generator=chance)
    assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 1e-3


@both
@pytest.mark.parametrize("draws", [1, 2, 10, 99])
@pytest.mark.parametrize("ties", [False, True])
def test_coverage_of_exact_posteriors_is_the_level_in_expectation(draws, ties, dtype):
    """Summed over all places that the truth may have among the draws, each as probable."""
    order = torch.arange(draws + 1.0, dtype=dtype)
    order = (order / 3).floor() if ties else order
    others = [[j for j in range(draws + 1) if j != i] for i in range(draws + 1)]
    density, of_truth = order[torch.tensor(others)].mT, order
    levels = torch.linspace(0, 1, 23, dtype=torch.float64)
    found = expected_coverage(density, of_truth, levels)
    torch.testing.assert_close(found, levels)
    assert found[-1] == 1
    flat = expected_coverage(torch.zeros_like(density), torch.zeros_like(of_truth), levels)
    torch.testing.assert_close(flat, levels)


@both
def test_balls_of_exact_posteriors_hold_each_level_of_few_draws(dtype):
    drawn, theta, *_ = posteriors(0.0, 1.0, dtype, count=20_000, draws=3)
    levels = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = tarp(drawn, theta, levels, references=1, generator=torch.manual_seed(1))
    assert found[-1] == 1
    torch.testing.assert_close(found, levels, rtol=0, atol=0.015)  # four deviations
    same = tarp(torch.zeros_like(drawn), torch.zeros_like(theta), levels, references=1)
    torch.testing.assert_close(same, levels)


@both
@pytest.mark.parametrize("width", [0.7, 1.0, 1.4])
def test_coverage_of_gaussians(width, dtype):
    """Of the region of highest density, and of balls around any point: both have closed forms."""
    drawn, theta, distribution, _ = posteriors(0.0, width, dtype)
    density, own = (
        distribution.log_prob(drawn).squeeze(-1),
        distribution.log_prob(theta).squeeze(-1),
    )
    quantile = scipy.stats.norm.ppf((1 + LEVELS.numpy()) / 2)
    wanted = torch.from_numpy(2 * scipy.stats.norm.cdf(width * quantile) - 1)
    found = expected_coverage(density, own, LEVELS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.04)
    balls = tarp(drawn, theta, LEVELS, generator=torch.manual_seed(1))
    if width == 1:
        torch.testing.assert_close(balls, LEVELS, rtol=0, atol=0.03)
    else:  # far points ask how many are on one side
        assert (balls - LEVELS).abs().max() > 0.04


def test_balls_see_what_ranks_of_parameters_do_not():
    """Marginals that are right, of parameters that do not hang together."""
    torch.manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.95, math.sqrt(1 - 0.95**2)]])
    truth = torch.randn(2000, 2) @ root.mT
    drawn = torch.randn(200, 2000, 2)
    assert (uniformity(ranks(drawn, truth), 200) > 0.01).all()
    wrong = tarp(drawn, truth, LEVELS, generator=torch.manual_seed(0))
    right = tarp(drawn @ root.mT, truth, LEVELS, generator=torch.manual_seed(0))
    assert (right - LEVELS).abs().max() < 0.03 < 0.04 < (wrong - LEVELS).abs().max()


@both
def test_a_posterior_that_is_wrong_for_some_observations_alone(dtype):
    drawn, theta, _, x = posteriors(0.0, 1.0, dtype, count=400, draws=1)
    one = drawn[0] + torch.where(x > 1, 1.0, 0.0)
    chance = torch.Generator().manual_seed(0)
    for seen, wrong in ((2.0, True), (-1.5, False)):
        at = seen / 2 + float(wrong) + 0.5**0.5 * torch.randn(200, 1, dtype=dtype)
        observation = torch.full((1,), seen, dtype=dtype)
        found = local_c2st(one, theta, x, at, observation, trials=19, updates=120, generator=chance)
        assert (found.p_value < 0.05) == wrong


def local(**other):
    given = {
        "draws": torch.randn(5, 1),
        "truth": torch.randn(5, 1),
        "observed": torch.randn(5, 2),
        "at": torch.randn(4, 1),
        "observation": torch.randn(2),
    }
    return local_c2st(**{**given, **other}, trials=1, updates=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ranks(torch.zeros(3, 2, 1), torch.zeros(4, 1)), "draws: expected at least one"),
        (lambda: ranks(torch.zeros(0, 2, 1), torch.zeros(2, 1)), "draws: expected at least one"),
        (lambda: expected_coverage(torch.zeros(3, 2), torch.zeros(2), [1.5]), "levels: expected"),
        (lambda: tarp(torch.zeros(3, 2, 1), torch.zeros(2, 1), [0.5], references=0), "references"),
        (lambda: uniformity(torch.zeros(0, 1), 9), "ranks: expected at least one"),
        (
            lambda: local_c2st(*[torch.zeros(3, 1)] * 2, *[torch.zeros(2, 1)] * 2, torch.zeros(1)),
            "observed: expected 3 observations",
        ),
        (
            lambda: expected_coverage(torch.zeros(3, 2), torch.zeros(3), LEVELS),
            r"density: expected at least one draw for each truth, \(L, 3\), got \(3, 2\)",
        ),
        (
            lambda: uniformity(torch.full((3, 1), 10.0), 9),
            "ranks: expected numbers from 0 to 9, got",
        ),
        (lambda: uniformity(torch.full((3, 1), torch.nan), 9), "ranks: expected numbers .* nan"),
        (
            lambda: local(at=torch.zeros(0, 1)),
            r"at: expected at least one draw, \(M, 1\), got \(0,",
        ),
        (
            lambda: local(at=torch.zeros(3, 2)),
            r"at: expected at least one draw, \(M, 1\), got \(3,",
        ),
        (lambda: local(observation=torch.zeros(3)), r"observation: expected one, \(2,\), got \(3,"),
    ],
)
def test_bad_calibration(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


ASKED = {
    ranks: {"draws": (4, 5, 1), "truth": (5, 1)},
    partial(tarp, credibility_levels=LEVELS): {"draws": (4, 5, 1), "truth": (5, 1)},
    partial(expected_coverage, credibility_levels=LEVELS): {"density": (4, 5), "of_truth": (5,)},
    partial(local_c2st, trials=1, updates=1): {
        "draws": (5, 1),
        "truth": (5, 1),
        "observed": (5, 2),
        "at": (4, 1),
        "observation": (2,),
    },
}


@both
@pytest.mark.parametrize(
    ("measure", "name"), [(measure, name) for measure, shapes in ASKED.items() for name in shapes]
)
def test_nothing_is_said_of_nan(measure, name, dtype):
    given = {key: torch.randn(shape, dtype=dtype) for key, shape in ASKED[measure].items()}
    measure(**given)
    given[name].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"^{name}: expected .*NaN"):
        measure(**given)


def test_truths_may_be_impossible():
    impossible = torch.full((5,), -torch.inf)
    found = expected_coverage(torch.zeros(9, 5), impossible, [0.5, 0.9, 0.95])
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="draws: expected a floating-point tensor"):
        ranks(torch.zeros(3, 2, 1, dtype=torch.long), torch.zeros(2, 1))
