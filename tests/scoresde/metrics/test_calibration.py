"""Calibration of Gaussian posteriors: exact ones, and those that are wrong in a known way."""

import math

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
    ],
)
def test_bad_calibration(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_integers_are_refused():
    with pytest.raises(TypeError, match="draws: expected a floating-point tensor"):
        ranks(torch.zeros(3, 2, 1, dtype=torch.long), torch.zeros(2, 1))
