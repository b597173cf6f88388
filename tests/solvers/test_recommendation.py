"""Recommendations run, and say why."""

import pytest
import torch
from models import OrnsteinUhlenbeck, ScoreOnly
from strategies import gaussian

from scoresde import VP, DiagonalSDE, Haar, Identity, LogLinear, log_prob
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


@pytest.mark.parametrize("budget", [5, 8, 20])
def test_budgets_are_kept(budget):
    model = gaussian(DiagonalSDE(VP(), Identity((2,))), 0)
    assert recommend(model.sde, "samples", budget).solver.steps == budget


def test_bad_questions_are_refused():
    sde = DiagonalSDE(VP(), Identity((2,)))
    with pytest.raises(ValueError, match="task: expected one of samples"):
        recommend(sde, "sampling")
    with pytest.raises(ValueError, match="evaluations: expected at least 1"):
        recommend(sde, "samples", 0)
