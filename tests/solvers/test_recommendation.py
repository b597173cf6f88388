"""Recommendations run, and say why."""

import pytest
import torch
from models import OrnsteinUhlenbeck, ScoreOnly
from strategies import gaussian

from scoresde import VP, DiagonalSDE, Haar, Identity, LogLinear, log_prob
from scoresde.sampling.grid import log_snr
from solvers import Adaptive, ExponentialMultistep, Heun
from solvers.recommendation import recommend

TASKS = ("samples", "stochastic samples", "likelihood", "reference")


def staged():
    return DiagonalSDE(LogLinear(), Haar((4,), 1), [1.0, 2.0], drop=[1.0, 0.5])


@pytest.mark.parametrize("make", [lambda: DiagonalSDE(VP(), Identity((2,))), staged])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_recommended_runs(task, make):
    model = gaussian(make(), 0)
    found = recommend(model.sde, task)
    assert found.reason
    assert found.solver.eta == (1.0 if task == "stochastic samples" else 0.0)
    x = found.solver.sample(model, (3,), dtype=torch.float64)
    assert torch.isfinite(x).all()
    if task == "likelihood":
        assert torch.isfinite(log_prob(model, x, found.solver).value).all()


@pytest.mark.parametrize("task", TASKS)
def test_of_an_sde_known_by_its_rates(task):
    sde = OrnsteinUhlenbeck((2,), eps=0.01)
    sde.prior = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1
    )
    model = ScoreOnly(sde, lambda z, t: -z)
    x = recommend(sde, task, 20 if task != "reference" else None).solver.sample(model, (3,))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("task", ["samples", "stochastic samples", "likelihood"])
@pytest.mark.parametrize("make", [lambda: DiagonalSDE(VP(), Identity((2,))), staged])
def test_budgets_are_kept(make, task):
    """A step costs an evaluation, and a stage has a step."""
    model = gaussian(make(), 0)
    for budget in (1, 2, 7, 20):
        solver = recommend(model.sde, task, budget).solver
        assert solver.steps == max(budget, len(model.sde.stages()))
        assert torch.isfinite(solver.sample(model, (3,))).all()


def test_budgets_of_an_sde_known_by_its_rates_are_kept():
    """Every step of Heun's asks twice."""
    sde = OrnsteinUhlenbeck((2,), eps=0.01)
    for budget, steps in ((1, 1), (2, 1), (3, 1), (4, 2), (21, 10)):
        assert recommend(sde, "samples", budget).solver == Heun(steps)
        assert recommend(sde, "stochastic samples", budget).solver == Heun(steps, eta=1.0)


def test_what_is_recommended_is_what_the_benchmarks_say():
    """Third order, second within stages; divergences in even steps; noise takes more of them."""
    plain, several = DiagonalSDE(VP(), Identity((2,))), staged()
    assert recommend(plain).solver == ExponentialMultistep(20, order=3)
    assert recommend(plain, "stochastic samples").solver == ExponentialMultistep(100, eta=1.0)
    assert recommend(plain, "likelihood").solver == ExponentialMultistep(60, grid=log_snr)
    assert recommend(several).solver == ExponentialMultistep(20, order=2)
    rates = OrnsteinUhlenbeck((2,), eps=0.01)
    assert recommend(rates).solver == Heun(100)
    assert recommend(rates, "stochastic samples").solver == Heun(200, eta=1.0)


def test_a_reference_can_be_trusted():
    model = gaussian(DiagonalSDE(VP(), Identity((2,))), 0)
    found, exact = (
        solver.sample(model, (1,), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for solver in (
            recommend(model.sde, "reference").solver,
            Adaptive(rtol=1e-8, atol=1e-8, max_steps=100_000),
        )
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_bad_questions_are_refused():
    sde = DiagonalSDE(VP(), Identity((2,)))
    with pytest.raises(ValueError, match="task: expected one of samples"):
        recommend(sde, "sampling")
    with pytest.raises(ValueError, match="evaluations: expected at least 1"):
        recommend(sde, "samples", 0)
