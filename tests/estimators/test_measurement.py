"""Operators that are not linear, noise that is not Gaussian, and what is asked of either."""

import math
from types import SimpleNamespace

import pytest
import torch
from strategies import mixture
from torch import nn
from torch.distributions import (
    AffineTransform,
    Binomial,
    Distribution,
    Exponential,
    Normal,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
)

from estimators import Gaussian, Guidance
from estimators.observation_noise import ElementwiseNoise, GaussianNoise
from scoresde import VE, VP, DiagonalSDE, Haar, Identity, ScoreEstimator
from solvers import DDIM, ExponentialMultistep, Heun

pytestmark = pytest.mark.usefixtures("float64")
METHODS = ["moments", "evidence", "isotropic", "point", "proximal", "spectral"]
A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)


def bed(schedule=None, n=3):
    return DiagonalSDE(schedule or VP(), Identity((n,)))


def seen(x):
    return x @ A.mT.to(x)


COUNTS = {
    "counts": (torch.tensor([4.0]), lambda u: Poisson(u.exp())),
    "squares": (torch.tensor([1.5]), lambda u: Normal(u**2, 0.2)),
    "outliers": (torch.tensor([-0.7]), lambda u: StudentT(5.0, u, 0.3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["vp", "ve"])
@pytest.mark.parametrize("distribution", COUNTS)
def test_evidence_is_exact_for_one_number_under_any_noise(distribution, schedule, dtype):
    """Of Gaussian data ``z_0`` given ``z_t`` is Gaussian, whatever was observed of it."""
    y, noise = COUNTS[distribution]
    sde = bed(schedule, n=1)
    prior = Gaussian(sde, torch.tensor([0.3]), torch.tensor([[0.8]]))
    for t in (0.2, 0.6, 1.0):
        z = torch.tensor([[-0.4], [0.1], [0.9]]) * (1 + sde.kernel(torch.tensor([t])).sigma)
        found = Guidance(prior, lambda x: x, y, noise, method="evidence").denoise(z.to(dtype), t)
        alpha, sigma = sde.kernel(torch.tensor([t]))
        x = torch.linspace(-9, 9, 40_001).unsqueeze(-1)
        weight = Normal(0.3, 0.8**0.5).log_prob(x) + noise(x).log_prob(y)
        weight = (weight + Normal(alpha * x, sigma).log_prob(z.mT)).softmax(0)
        wanted = (weight * x).sum(0).unsqueeze(-1)
        precise = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"atol": 1e-6}
        torch.testing.assert_close(found, wanted.to(dtype), **{"rtol": 1e-6, **precise})


EDGES = {
    "rates": (torch.tensor([3.0]), Poisson, (0.0, 9.0)),
    "shares": (torch.tensor([2.0]), lambda u: Binomial(5, u), (0.0, 1.0)),
    "shifted": (
        torch.tensor([5.0]),
        lambda u: TransformedDistribution(Poisson(2 * u), AffineTransform(2.0, 1.0)),
        (0.0, 9.0),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", EDGES)
def test_numbers_that_are_no_parameters_are_impossible(distribution, dtype):
    """Some of a Gaussian always are, or most."""
    y, noise, (low, high) = EDGES[distribution]
    sde, t = bed(n=1), 0.5
    prior = Gaussian(sde, torch.tensor([-0.3]), torch.tensor([[0.8]]))
    z = torch.tensor([[-1.4], [0.1], [0.9]], dtype=dtype)
    found = Guidance(prior, lambda x: x, y, noise, method="evidence").denoise(z, t)
    alpha, sigma = sde.kernel(torch.tensor([t]))
    x = torch.linspace(low, high, 40_003)[1:-1].unsqueeze(-1)
    weight = Normal(-0.3, 0.8**0.5).log_prob(x) + noise(x).log_prob(y)
    weight = (weight + Normal(alpha * x, sigma).log_prob(z.mT)).softmax(0)
    wanted = (weight * x).sum(0).unsqueeze(-1)
    torch.testing.assert_close(found, wanted.to(dtype), rtol=1e-4, atol=1e-4)
    assert Distribution._validate_args == __debug__


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("y", "noise"),
    [
        ([3.0, -1.0], lambda u: Poisson(u.exp())),
        ([3.0, 0.5], lambda u: Poisson(u.exp())),
        ([3.0, 6.0], lambda u: Binomial(5, logits=u)),
        ([3.0, -1.0], lambda u: Exponential(u.exp())),
    ],
    ids=["below 0", "fraction", "more than all", "no time"],
)
def test_what_noise_never_gives_is_refused(y, noise, method, dtype):
    model = mixture(bed(), 1)
    with pytest.raises(ValueError, match=rf"^y: expected numbers of .*, got {y[1]}$"):
        Guidance(model, seen, torch.tensor(y, dtype=dtype), noise, method=method)


@pytest.mark.parametrize(
    ("y", "noise"),
    [
        ([3.0, 0.0], lambda u: Poisson(u.exp())),
        ([3.0, 0.5], lambda u: Poisson(u.exp(), validate_args=False)),
        ([3.0, -1.0], lambda u: Uniform(u - 0.1, u + 0.1)),
    ],
    ids=["no counts", "unchecked", "of a moving support"],
)
def test_what_noise_may_give_is_not(y, noise):
    Guidance(mixture(bed(), 1), seen, torch.tensor(y), noise)


def test_evidence_is_the_whole_gradient():
    """Of the density of ``y`` where what is left unknown depends on the state."""
    sde = bed()
    model, y, s, z = mixture(sde, 3), torch.tensor([0.4, -1.0]), 0.3, torch.randn(3)

    def log_density(z):
        jacobian = torch.func.jacrev(lambda z: model.denoise(z, 0.5))(z)
        covariance = sigma**2 / alpha * A @ jacobian @ A.mT + s**2 * torch.eye(2)
        distribution = torch.distributions.MultivariateNormal(A @ model.denoise(z, 0.5), covariance)
        return distribution.log_prob(y)

    alpha, sigma = sde.kernel(torch.tensor([0.5]))
    step = 1e-5 * torch.eye(3)
    gradient = torch.stack([log_density(z + e) - log_density(z - e) for e in step]) / 2e-5
    wanted = model.denoise(z, 0.5) + sigma**2 / alpha * gradient
    for noise in (s, lambda u: Normal(u, s)):
        found = Guidance(model, seen, y, noise, method="evidence").denoise(z, 0.5)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    part = Guidance(model, seen, y, s).denoise(z, 0.5)
    assert (part - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("distribution", COUNTS)
def test_derivatives_of_the_evidence_are_its_own(distribution):
    """Against differences of the integral itself, by other nodes."""
    y, noise = COUNTS[distribution]
    nodes = torch.linspace(-12, 12, 60_001)

    def value(c, v):
        logits = noise(c + v.sqrt() * nodes).log_prob(y) - nodes**2 / 2
        return logits.logsumexp(0) + math.log(24 / 60_000 / math.sqrt(2 * math.pi))

    c, v = torch.tensor(0.4, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    found = ElementwiseNoise(noise, torch.Size([1])).evidence(y, 0, c.reshape(1, 1), v.reshape(1))
    first = torch.func.grad(value)
    wanted = [value, first, torch.func.grad(first)]
    for mine, other in zip(found, wanted, strict=True):
        theirs = other(c, v)
        torch.testing.assert_close(mine.squeeze(), theirs, rtol=1e-6, atol=1e-8)
        slopes = [torch.autograd.grad(f.sum(), (c, v), retain_graph=True) for f in (mine, theirs)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS[:-1])
def test_a_gaussian_distribution_is_gaussian_noise(method, dtype):
    sde, y, z = bed(), torch.tensor([0.4, -1.0]), torch.randn(5, 3, dtype=dtype)
    model, s = mixture(sde, 1), torch.tensor([0.2, 0.5])
    one = Guidance(model, seen, y, s, method=method).denoise(z, 0.6)
    two = Guidance(model, seen, y, lambda u: Normal(u, s), method=method).denoise(z, 0.6)
    torch.testing.assert_close(one, two)
    other = Guidance(model, seen, y, s.flip(0), method=method).denoise(z, 0.6)
    assert method == "point" or (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["moments", "proximal"])
def test_linearisations_lead_to_the_most_probable(method):
    """Of ``N(y; A(x), s^2) N(x; D, C)``: where its gradient is 0."""
    sde, y, s = bed(), torch.tensor([2.0, 0.5]), 0.2
    cov = torch.eye(3) + 0.3 * (method == "moments")
    model = Gaussian(sde, torch.zeros(3), cov)

    def operator(x):
        return seen(x) ** 2

    z, (alpha, sigma) = torch.randn(4, 3), sde.kernel(torch.tensor([0.5]))
    clean = model.denoise(z, 0.5)
    jacobian = torch.func.jacrev(lambda z: model.denoise(z, 0.5))(z[0])
    left = sigma**2 / alpha * jacobian
    options = {"method": method, "linearisations": 40}
    found = Guidance(model, operator, y, s, **options).denoise(z, 0.5)

    def cost(x):
        miss = ((y - operator(x)) / s).square().sum()
        return (miss + ((x - clean) @ torch.linalg.inv(left) * (x - clean)).sum()) / 2

    assert torch.func.grad(cost)(found).abs().max() < 1e-6
    once = Guidance(model, operator, y, s, method=method).denoise(z, 0.5)
    assert (once - found).abs().max() > 1e-2


def test_counts_are_scored_by_their_own_variance():
    sde = bed(n=1)
    model, y = Gaussian(sde, torch.full((1,), 3.0), torch.eye(1)), torch.tensor([7.0])
    z = torch.tensor([[1.0]])
    clean, (alpha, sigma) = model.denoise(z, 0.4), sde.kernel(torch.tensor([0.4]))
    left = sigma**2 / (alpha**2 + sigma**2)
    found = Guidance(model, lambda x: x, y, Poisson).denoise(z, 0.4)
    torch.testing.assert_close(found, clean + left * (y - clean) / (left + clean))


@pytest.mark.parametrize("method", ["moments", "evidence"])
@pytest.mark.parametrize("solver", [ExponentialMultistep(24), DDIM(24, eta=1.0), Heun(12)])
def test_one_observation_after_the_other_is_all_at_once(method, solver):
    sde, y = bed(), torch.tensor([0.4, -1.0])
    model = Gaussian(sde, torch.zeros(3), torch.eye(3) + 0.3)
    first = Guidance(model, lambda x: seen(x)[..., :1], y[:1], 0.3, method=method)
    then = Guidance(first, lambda x: seen(x)[..., 1:], y[1:], 0.3, method=method)
    both = Guidance(model, seen, y, 0.3, method=method)
    samples = [
        solver.sample(m, (4,), generator=torch.Generator().manual_seed(0)) for m in (then, both)
    ]
    torch.testing.assert_close(*samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_modules_see_images_in_one_batch_axis_and_their_own_precision(method, dtype):
    """Any number of batch axes, with an observation for each of the last."""
    torch.manual_seed(0)
    blur = nn.Conv2d(1, 1, 2, bias=True).float().requires_grad_(False)
    sde = DiagonalSDE(VP(), Haar((1, 4, 4), 1), speeds=[1.0, 2.0])
    model = Gaussian(sde, torch.zeros(1, 4, 4), torch.eye(16) + 0.2)
    y = torch.randn(3, 1, 3, 3)
    guided = Guidance(model, blur, y, 0.3, method=method)
    z = torch.randn(2, 3, 16, dtype=dtype)
    found = guided.denoise(z, 0.5)
    assert guided.batch_shape == (3,)
    assert found.dtype == dtype
    for i in range(3):
        one = Guidance(model, blur, y[i], 0.3, method=method).denoise(z[1, i], 0.5)
        torch.testing.assert_close(found[1, i], one, rtol=1e-4, atol=1e-4)


class Physics(nn.Module):
    """What deepinv's objects have: a method, noise, and a call that adds it."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.noise_model = type(kind, (SimpleNamespace,), {})(**settings)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 2.0]))

    def A(self, x):
        return self.mask * x

    def forward(self, x):
        raise AssertionError("noise was added")


def test_physics_are_taken_as_they_are():
    sde, y = bed(), torch.tensor([0.5, 1.0, 4.0])
    model = Gaussian(sde, torch.ones(3), torch.eye(3) / 9)
    mask, z = Physics("ZeroNoise").mask, torch.randn(4, 3)

    def denoised(operator, noise=None, y=y):
        return Guidance(model, operator, y, noise).denoise(z, 0.5)

    gaussian = Physics("GaussianNoise", sigma=torch.tensor([0.2]))
    torch.testing.assert_close(denoised(gaussian), denoised(lambda x: mask * x, 0.2))
    counts = Physics("PoissonNoise", gain=torch.tensor([0.5]), normalize=torch.tensor(True))
    wanted = denoised(lambda x: 2 * mask * x, lambda u: Poisson(u.clamp(min=1e-6)), 2 * y)
    torch.testing.assert_close(denoised(counts), wanted)
    tenths, y = Physics("PoissonNoise", gain=0.1, normalize=True), torch.tensor([13, 21, 26]) * 0.1
    model = Gaussian(sde, torch.ones(3), torch.eye(3) / 9)
    Guidance(model, tenths, y.float(), method="evidence").denoise(z, 0.5)  # whole but for rounding
    mixed = Physics("PoissonGaussianNoise", gain=torch.tensor([1e-9]), sigma=torch.tensor([0.2]))
    torch.testing.assert_close(denoised(mixed), denoised(gaussian), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"noise: expected one, .* got None and ZeroNoise"):
        denoised(Physics("ZeroNoise"))
    with pytest.raises(TypeError, match=r"noise: expected one, .* got None and NoneType"):
        denoised(lambda x: x)


class Silent(ScoreEstimator):
    """A network that leaves no gradients."""

    def denoise(self, z, t, condition=None):
        with torch.no_grad():
            return 0.5 * z


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_not_taken_for_nought(method, grad):
    guided = Guidance(Silent(bed()), seen, torch.ones(2), 0.3, method=method)
    with torch.set_grad_enabled(grad):
        if method in ("proximal", "spectral"):
            assert guided.denoise(torch.ones(2, 3), 0.5).shape == (2, 3)
            return
        with pytest.raises(ValueError, match=r"estimator: expected one whose .* without gradients"):
            guided.denoise(torch.ones(2, 3), 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_networks_that_no_transform_takes_are_guided(method):
    class Old(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.sin()

        @staticmethod
        def backward(ctx, v):
            return v * ctx.saved_tensors[0].cos()

    class Named(ScoreEstimator):
        sine = staticmethod(torch.sin)

        def denoise(self, z, t, condition=None):
            return self.sine(z)

    class Recorded(Named):
        sine = Old.apply

    z, y = torch.randn(4, 3), torch.tensor([0.4, -1.0])
    found = [
        Guidance(kind(bed()), seen, y, 0.3, method=method).denoise(z, 0.5)
        for kind in (Named, Recorded)
    ]
    torch.testing.assert_close(*found)


def test_spectral_is_refused_what_it_cannot_decompose():
    model, y = mixture(bed(), 1), torch.ones(2)
    with pytest.raises(ValueError, match="operator: expected an affine one"):
        Guidance(model, lambda x: seen(x) ** 2, y, 0.1, method="spectral")
    with pytest.raises(ValueError, match="noise: expected Gaussian"):
        Guidance(model, seen, y, lambda u: Normal(u, 0.1), method="spectral")
    affine = Guidance(model, lambda x: seen(x) + 3, y + 3, 0.1, method="spectral")
    z = torch.randn(2, 3)
    linear = Guidance(model, seen, y, 0.1, method="spectral")
    torch.testing.assert_close(affine.denoise(z, 0.3), linear.denoise(z, 0.3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0.1, 0.2, 0.3], r"noise: expected one number, or shape \(2,\), got \(3,\)"),
        ([0.1, -0.2], "noise: expected positive"),
        ("loud", "noise: expected a number"),
        (torch.nan, "noise: expected positive"),
    ],
)
def test_bad_noise(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Guidance(mixture(bed(), 1), seen, torch.ones(2), wrong)


def test_noise_that_is_seen_from_far_away_is_a_number():
    noise = ElementwiseNoise(lambda u: Normal(u, 1e-3), torch.Size([1]))
    found = noise.evidence(torch.tensor([50.0]), 0, torch.zeros(1, 1), torch.ones(1))
    assert all(bool(v.isfinite().all()) for v in found)
    none = GaussianNoise(0.1).evidence(torch.ones(1), 0, torch.zeros(1, 1), torch.zeros(1) - 1)
    assert float(none.slope) == pytest.approx(100)  # a variance below 0 is none
