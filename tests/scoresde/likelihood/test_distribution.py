"""The distribution object: Pyro's contract, gradients, inference with known answers."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from strategies import gaussian, mixture
from torch.distributions import (
    AffineTransform,
    ExpTransform,
    MultivariateNormal,
    SigmoidTransform,
    TransformedDistribution,
)

from estimators import Gaussian
from scoresde import (
    VP,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    LogLinear,
    Quadrature,
    ScoreDistribution,
    ScoreEstimator,
    log_prob,
)
from scoresde.conditioning import condition
from solvers import Adaptive, ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

SOLVER = ExponentialMultistep(30)


class Shifted(ScoreEstimator):
    """The exact estimator of ``N(condition, C)``: a condition with a closed form."""

    def __init__(self, sde, covariance):
        super().__init__(sde)
        self.centred = Gaussian(sde, torch.zeros(sde.basis.event_shape), covariance)

    def denoise(self, z, t, condition=None):
        mean = self.sde.basis(condition)
        alpha = self.sde.kernel(self.sde.time(t, z)).alpha
        return mean + self.centred.denoise(z - alpha * mean, t)


def shifted(**options):
    model = Shifted(DiagonalSDE(VP(), Identity((2,))), COVARIANCE)
    return ScoreDistribution(model, SOLVER, **options)


def image(**options):
    sde = DiagonalSDE(LogLinear(), Haar((1, 2, 2), 1), [1.0, 2.0], drop=[1.0, 0.5])
    return ScoreDistribution(mixture(sde, 3), SOLVER, **options)


COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
CONDITION = torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]], dtype=torch.float64)
CASES = {
    "unconditional": lambda: ScoreDistribution(
        gaussian(DiagonalSDE(VP(), Identity((2,))), 3), SOLVER
    ),
    "multi-scale": image,
    "conditional": lambda: shifted(condition=CONDITION),
    "one condition": lambda: shifted(condition=CONDITION[0]),
    "random trace": lambda: image(trace=Hutchinson(2)),
    "adaptive": lambda: image(method=Adaptive(rtol=0.1, atol=0.1)),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.mark.covering(1)
@every_case
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 1)])
def test_shapes(case, sample_shape):
    d = CASES[case]()
    x = d.sample(sample_shape)
    assert x.shape == d.shape(sample_shape) == (*sample_shape, *d.batch_shape, *d.event_shape)
    assert d.log_prob(x).shape == (*sample_shape, *d.batch_shape)
    assert d.has_rsample
    assert d.rsample(sample_shape).shape == x.shape
    assert d.support.check(x).shape == (*sample_shape, *d.batch_shape)
    assert d.expand_by((2,)).batch_shape == (2, *d.batch_shape)
    assert d.mask(False).log_prob(x).abs().sum() == 0
    repr(d), copy.deepcopy(d)


@pytest.mark.covering(1)
@every_case
@pytest.mark.parametrize("larger", [(3,), (4, 3)])
def test_expanded_distributions_agree(case, larger):
    d = CASES[case]()
    wide = d.expand(larger)
    assert wide.batch_shape == larger
    assert wide.expand((2, *larger)).batch_shape == (2, *larger)
    x = wide.sample()
    assert x.shape == (*larger, *d.event_shape)
    found, plain = wide.log_prob(x), d.log_prob(x)
    torch.testing.assert_close(found.mean(), plain.mean(), rtol=0.05, atol=0.05)
    if case != "random trace":
        torch.testing.assert_close(found, plain)
    whole = wide.to_event(1)
    assert whole.batch_shape == larger[:-1]
    torch.testing.assert_close(whole.log_prob(x), found.sum(-1))


def test_values_and_conditions_broadcast():
    d = shifted(condition=CONDITION)
    x = torch.randn(5, 1, 2)
    found = d.log_prob(x)
    assert found.shape == (5, 3)
    truth = MultivariateNormal(CONDITION, COVARIANCE).log_prob(x)
    torch.testing.assert_close(found, truth, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("method", [None, SOLVER])
def test_gradients_in_value_and_condition(method):
    value = torch.randn(3, 2).requires_grad_()
    condition = CONDITION.clone().requires_grad_()
    d = shifted(condition=condition, method=method or Quadrature(24))
    slopes = torch.autograd.grad(d.log_prob(value).sum(), (value, condition))
    truth = MultivariateNormal(condition, COVARIANCE).log_prob(value).sum()
    for found, exact in zip(slopes, torch.autograd.grad(truth, (value, condition)), strict=True):
        torch.testing.assert_close(found, exact, rtol=0.02, atol=0.05)
    one = value[:1].detach().requires_grad_()  # which every condition has
    assert torch.autograd.gradcheck(d.log_prob, one, atol=1e-5)


def test_samples_are_differentiable_and_those_of_the_density():
    condition = CONDITION[:1].clone().requires_grad_()
    d = shifted(condition=condition)
    x = d.rsample((4000,))
    mean, spread = x.mean(0).squeeze(), x.squeeze(1).mT.cov()
    torch.testing.assert_close(mean, CONDITION[0], atol=0.05, rtol=0)
    torch.testing.assert_close(spread, COVARIANCE, atol=0.05, rtol=0)
    slope = torch.autograd.grad(x[..., 0].mean(), condition)[0]
    torch.testing.assert_close(slope, torch.tensor([[1.0, 0.0]]), atol=0.02, rtol=0)


def test_random_probes_make_one_function():
    d, x = image(trace=Hutchinson(2)), torch.randn(3, 1, 2, 2)
    assert torch.equal(d.log_prob(x), d.log_prob(x))


def test_transforms_apply():
    base = ScoreDistribution(mixture(DiagonalSDE(VP(), Identity((2,))), 4), SOLVER)
    warped = TransformedDistribution(base, [AffineTransform(0.5, 2.0, 1), ExpTransform()])
    x = warped.sample((4,))
    inside = (x.log() - 0.5) / 2
    expected = base.log_prob(inside) - (x.log() + torch.tensor(2.0).log()).sum(-1)
    torch.testing.assert_close(warped.log_prob(x), expected)


def test_a_bounded_support_holds_all_the_mass():  # invariant 19
    base = ScoreDistribution(gaussian(DiagonalSDE(VP(), Identity((2,))), 4), SOLVER)
    boxed = TransformedDistribution(base, [SigmoidTransform()])
    side = (torch.arange(60) + 0.5) / 60
    x = torch.cartesian_prod(side, side)
    assert float(boxed.log_prob(x).exp().mean()) == pytest.approx(1, abs=0.01)
    assert boxed.support.check(boxed.sample((9,))).all()


@pytest.mark.parametrize("validate", [True, False])
def test_what_is_no_number_is_refused_or_unlikely(validate):
    d = ScoreDistribution(CASES["unconditional"]().estimator, SOLVER, validate_args=validate)
    bad = torch.tensor([[float("nan"), 0.0]])
    if validate:
        with pytest.raises(ValueError, match="support"):
            d.log_prob(bad)
    else:
        assert d.log_prob(bad) == -torch.inf


class Lost(Gaussian):
    """Answers nothing where values are above 3."""

    def denoise(self, z, t, condition=None):
        return super().denoise(z, t).masked_fill(z > 3, torch.nan)


def test_no_density_is_said_of_values_that_might_occur():
    model = Lost(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
    lost = ScoreDistribution(model, SOLVER)
    assert lost.log_prob(torch.tensor([[0.0], [1e100]])).isfinite().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"log_prob: .* none for those at \[\[1\]\] of \(2,\)"):
        lost.log_prob(torch.tensor([[0.0], [4.0]]))


def test_few_steps_are_warned_of_once():
    few = ScoreDistribution(CASES["unconditional"]().estimator, SOLVER, method=Quadrature(2))
    with pytest.warns(UserWarning, match=r"got up to .* of 2 of 2 events, by Quadrature\(steps=2"):
        few.log_prob(torch.ones(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few.log_prob(torch.ones(2, 2))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="condition: expected at least 1 axes"):
        shifted(condition=torch.tensor(1.0))
    with pytest.raises(ValueError, match="value"):
        CASES["unconditional"]()._validate_sample(torch.zeros(3, 5))


DATA = torch.tensor([[1.0, 0.5], [0.2, -0.3], [0.9, 0.4]], dtype=torch.float64)


def linear_model():
    """``x`` from the diffusion prior, seen three times through noise of known size."""
    quick = Quadrature(9, tolerance=None)
    x = pyro.sample("x", ScoreDistribution(PRIOR, SOLVER, method=quick, validate_args=False))
    with pyro.plate("looks", len(DATA)):
        pyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=DATA)


PRIOR = Gaussian(DiagonalSDE(LogLinear(), Identity((2,))), torch.zeros(2), COVARIANCE)


def posterior():
    precision = torch.linalg.inv(COVARIANCE) + torch.eye(2) * len(DATA) / 0.49
    covariance = torch.linalg.inv(precision)
    return covariance @ DATA.sum(0) / 0.49, covariance.diagonal().sqrt()


@pytest.fixture
def parameters():
    """Those of Pyro, of one test."""
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


@pytest.mark.usefixtures("parameters")
def test_svi_finds_the_posterior():
    """NUTS finds that of the example."""
    pyro.set_rng_seed(1)
    guide = pyro.infer.autoguide.AutoNormal(linear_model, init_scale=0.3)
    svi = SVI(linear_model, guide, pyro.optim.Adam({"lr": 0.1, "betas": (0.8, 0.9)}), Trace_ELBO())
    found = []
    for _ in range(30):
        svi.step()
        found.append(guide.median()["x"])
    mean, deviation = posterior()
    assert ((torch.stack(found[15:]).mean(0) - mean).abs() < 0.6 * deviation).all()


def test_a_conditional_model_is_a_likelihood_in_a_plate(parameters):
    """The gradient of a parameter that enters by the condition."""
    data = CONDITION[0] + 0.1 * torch.randn(6, 2)

    def model(data):
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(data)):
            pyro.sample("x", shifted(condition=shift.expand(len(data), 2)), obs=data)

    loss = Trace_ELBO().differentiable_loss(model, lambda data: None, data)
    slope = torch.autograd.grad(loss, parameters._params["shift"])[0]
    truth = -torch.linalg.solve(COVARIANCE, data.sum(0))
    torch.testing.assert_close(slope, truth, rtol=0.05, atol=0.1)


def test_densities_are_those_of_log_prob():
    d, x = image(), torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(d.log_prob(x), log_prob(d.estimator, x).value)


@pytest.mark.parametrize("y", [[0.5], [[0.5], [-1.0], [0.0]]])
def test_an_estimator_that_holds_its_conditions_brings_their_batch(y):
    """``p(x | y)`` of a joint model, in closed form."""
    y = torch.tensor(y)
    joint = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.1], [0.2, 0.1, 0.5]])
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    posterior = condition(Gaussian(sde, torch.zeros(3), joint), y=y, clean=True)
    d = ScoreDistribution(posterior, SOLVER, method=Quadrature(40))
    assert d.batch_shape == y.shape[:-1]
    assert d.expand((4, *d.batch_shape)).sample((2,)).shape == (2, 4, *d.batch_shape, 2)
    x = 0.5 * torch.randn(5, *d.batch_shape, 2)
    spread = joint[1:, 1:] - torch.outer(joint[1:, 0], joint[1:, 0])
    truth = MultivariateNormal(joint[1:, 0] * y, spread).log_prob(x)
    torch.testing.assert_close(d.log_prob(x), truth, rtol=0, atol=0.02)
