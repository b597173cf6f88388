"""What is said of a model on data is what its densities say, event by event."""

import math

import pytest
import torch
from strategies import gaussian
from torch.distributions import Normal

from estimators import Gaussian
from scoresde import (
    VP,
    DiagonalSDE,
    Hutchinson,
    Identity,
    Quadrature,
    ScoreEstimator,
    log_prob,
)
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset, dequantize
from solvers import DDIM

SOLVER = DDIM(5)


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def model():
    return gaussian(DiagonalSDE(VP(), Identity((3,))), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_and_standard_errors(model, dtype):
    """Of events that differ, under probes whose errors differ from event to event."""
    x = torch.tensor([[0.0, 0.1, 0.2], [1.0, -5.0, 2.0], [9.0, 3.0, -4.0], [0.5, 0.5, 20.0]])
    x, trace = x.to(dtype), Hutchinson(3)
    found = log_prob(model, x, SOLVER, trace=trace, generator=seeded())
    report = evaluate(model, Dataset("four", x), SOLVER, trace, generator=seeded())
    assert report["count"] == 4
    assert report["nats"] == pytest.approx(sum(found.value.tolist()) / 4)
    squares = sum((v - report["nats"]) ** 2 for v in found.value.tolist())
    assert report["nats_stderr"] == pytest.approx((squares / 3 / 4) ** 0.5)
    # independent errors add in squares, and the mean is a quarter of the sum
    errors = sum(e**2 for e in found.standard_error.tolist()) ** 0.5 / 4
    assert report["trace_stderr"] == pytest.approx(errors)
    assert report["evaluations"] == 5 + 4
    assert report["solver_error"] == pytest.approx(float(found.error.mean()))
    assert "bits_per_dim" not in report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_events_are_judged_given_what_they_are_conditioned_on(dtype):
    class Around(ScoreEstimator):
        """Standard normal around its condition."""

        def denoise(self, z, t, condition=None):
            (alpha,), (sigma,) = (v.to(z) for v in self.sde.kernel(torch.as_tensor(t).reshape(1)))
            return condition + alpha / (alpha**2 + sigma**2) * (z - alpha * condition)

    model, given = Around(DiagonalSDE(VP(), Identity((2,)))), torch.randn(5, 2, dtype=dtype)
    data = Dataset("five", given + torch.randn(5, 2, dtype=dtype), condition=given)
    report = evaluate(model, data, Quadrature(24), batch_size=2)
    wanted = Normal(0.0, 1.0).log_prob(data.values - given).sum(-1).mean()
    assert report["nats"] == pytest.approx(float(wanted), abs=0.01)  # of a prior at 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_method_says_of_its_error_is_reported(model, dtype):
    """Its mean over events, so at least that of their mean."""
    x = 5 * torch.randn(5, 3, dtype=dtype)
    found = log_prob(model, x, Quadrature(6)).error
    report = evaluate(model, Dataset("five", x), Quadrature(6), batch_size=2)
    assert found.min() < found.max()
    assert report["solver_error"] == pytest.approx(sum(found.tolist()) / 5, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("count", [4, 5, None])
def test_batches_do_not_matter(model, count, batch_size):
    """Whatever is over in the last one."""
    x = 3 * torch.randn(5, 3)
    report = evaluate(model, Dataset("five", x), SOLVER, count=count, batch_size=batch_size)
    values = log_prob(model, x[:count], SOLVER).value
    assert report["count"] == len(values)
    assert report["nats"] == pytest.approx(float(values.mean()), rel=1e-5)
    error = float(values.std() / len(values) ** 0.5)
    assert report["nats_stderr"] == pytest.approx(error, rel=1e-5)
    assert report["trace_stderr"] == 0
    assert report["evaluations"] == 5 + 4


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_bits_are_nats_of_the_levels(model, bins):
    """``x = 2 (v + u) / bins - 1``: a bin is ``2 / bins`` wide."""
    v = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]])
    x = dequantize(v, bins, seeded())
    values = log_prob(model, x, SOLVER).value
    report = evaluate(model, Dataset("bins", v, bins=bins), SOLVER, generator=seeded())
    bits = math.log2(bins / 2) - values / 3 / math.log(2)
    assert report["nats"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert report["bits_per_dim"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert report["bits_per_dim_stderr"] == pytest.approx(float(bits.std() / 3**0.5), rel=1e-3)


def test_evaluations_are_means_over_events(model):
    """Where some get more nodes than others, and the last batch is smaller."""
    x = torch.cat([torch.zeros(3, 3), torch.full((1, 3), 30.0)])
    method = Quadrature(6, tolerance=1.0)
    report = evaluate(model, Dataset("four", x), method, batch_size=3)
    parts = [log_prob(model, part, method).evaluations for part in (x[:3], x[3:])]
    assert parts[0] != parts[1]
    assert report["evaluations"] == pytest.approx((3 * parts[0] + parts[1]) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_event_without_a_density_is_named(dtype):
    """By its place in the data, not in its batch."""

    class Torn(Gaussian):
        def denoise(self, z, t, condition=None):
            return super().denoise(z, t).masked_fill(z.abs() > 50, torch.nan)

    model = Torn(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
    x = torch.zeros(7, 1, dtype=dtype)
    x[5] = 100
    with pytest.raises(FloatingPointError, match="log-density of event 5 of torn is nan"):
        evaluate(model, Dataset("torn", x), SOLVER, batch_size=4)
