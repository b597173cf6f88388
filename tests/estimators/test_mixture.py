import pytest
import torch
from exact_moments import marginal
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from strategies import (
    VARIANCE_PRESERVING,
    every_schedule,
    gaussian,
    gaussians,
    mixture,
    mixtures,
    sdes,
    states,
    times,
)
from torch.distributions import MultivariateNormal, kl_divergence

from estimators import Gaussian, GaussianMixture
from scoresde import VP, DiagonalSDE, Haar, Identity

pytestmark = pytest.mark.usefixtures("float64")


@every_schedule
@given(data=st.data())
def test_the_marginal_is_the_mixture_diffused(kind, data):
    """Against moments by hand: ``alpha mu``, ``A C A + S`` per component."""
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    (t,) = data.draw(times(sde))
    n = sde.basis.dim
    alpha, sigma = (v.expand(n) for v in sde.kernel(t))
    components = model.marginal(t).component_distribution
    torch.testing.assert_close(components.mean, alpha * model.means)
    covariance = torch.einsum("i,kij,j->kij", alpha, model.covariances, alpha)
    covariance = covariance + torch.diag(sigma**2)
    torch.testing.assert_close(components.covariance_matrix, covariance)


@pytest.mark.parametrize("kind", VARIANCE_PRESERVING)
@given(data=st.data())
def test_data_come_closer_to_the_prior_all_the_time(kind, data):  # invariant 43
    """``KL(p_t || N(0, scale^2))`` falls with t, and is 0 where it starts at 0."""
    sde = data.draw(sdes(kind))
    early, late = data.draw(times(sde, 2))
    prior = sde.blocks.expand(sde.scale).expand(sde.basis.dim)
    stationary = MultivariateNormal(torch.zeros(sde.basis.dim), torch.diag(prior**2))

    def divergence(model, t):
        distribution = model.marginal(t).component_distribution
        distribution = MultivariateNormal(distribution.mean[0], distribution.covariance_matrix[0])
        return float(kl_divergence(distribution, stationary))

    model = data.draw(gaussians(sde))
    before, after = divergence(model, early), divergence(model, late)
    assert -1e-9 < after <= before * (1 + 1e-9) + 1e-9
    settled = gaussian(sde)
    settled.means, settled.covariances = (
        torch.zeros_like(model.means),
        stationary.covariance_matrix.unsqueeze(0),
    )
    assert abs(divergence(settled, early)) < 1e-9


@every_schedule
@given(data=st.data())
def test_the_score_is_the_gradient_of_the_log_density(kind, data):
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    (t,) = data.draw(times(sde))
    truth = torch.func.grad(lambda z: model.marginal(t).log_prob(z).sum())(z)
    torch.testing.assert_close(model.score(z, t[0]), truth, rtol=1e-6, atol=1e-6)


@every_schedule
@given(data=st.data())
def test_the_denoised_mean_is_tweedies(kind, data):
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    (t,) = data.draw(times(sde))
    alpha, sigma = sde.kernel(t)
    truth = (z + sigma**2 * model.score(z, t[0])) / alpha
    torch.testing.assert_close(model.denoise(z, t[0]), truth, rtol=1e-5, atol=1e-5)


def test_the_denoised_mean_is_the_posterior_mean():
    """By quadrature of Bayes' rule over clean data."""
    sde = DiagonalSDE(VP(), Identity((1,)), scale=0.7)
    means, variances = torch.tensor([-1.0, 2.0]), torch.tensor([0.3, 0.8])
    model = GaussianMixture(sde, [0.3, 0.7], means[:, None], variances[:, None, None])
    t, z = torch.tensor(0.4), torch.linspace(-2, 2, 7)[:, None]
    alpha, sigma = sde.kernel(t.reshape(1))
    clean = torch.linspace(-10, 10, 20001)
    prior = (
        torch.tensor([0.3, 0.7])
        * torch.distributions.Normal(means, variances.sqrt()).log_prob(clean[:, None]).exp()
    ).sum(-1)
    joint = prior * torch.exp(-((z - alpha * clean) ** 2) / (2 * sigma**2))
    truth = (joint * clean).sum(-1, keepdim=True) / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(model.denoise(z, t), truth, rtol=1e-6, atol=1e-6)


@every_schedule
@given(data=st.data())
def test_scores_average_to_zero_and_pull_with_minus_the_dimension(kind, data):  # invariant 28
    """Exact for a Gaussian: the score is affine, so moments are the Jacobian's."""
    sde = data.draw(sdes(kind))
    model = data.draw(gaussians(sde))
    (t,) = data.draw(times(sde))
    distribution, n = marginal(model, float(t)), sde.basis.dim
    mean = model.score(distribution.mean.unsqueeze(0), t[0])
    torch.testing.assert_close(mean, torch.zeros(1, n), rtol=0, atol=1e-7)
    slope = torch.func.jacrev(lambda z: model.score(z.unsqueeze(0), t[0])[0])(distribution.mean)
    pull = (slope @ distribution.covariance_matrix).trace()
    torch.testing.assert_close(pull, torch.tensor(-float(n)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_mixtures_average_to_zero(seed):  # invariant 28
    """``E s = 0``, ``E z.s = -D`` by Gauss-Hermite quadrature of each component."""
    sde = DiagonalSDE(VP(), Identity((2,)), [1.0, 0.6])
    model = mixture(sde, seed, 2)
    t = torch.tensor([0.5])
    distribution = model.marginal(t)
    nodes, weights = (torch.tensor(v) for v in hermegauss(60))
    xi = torch.cartesian_prod(nodes, nodes)
    weight = torch.cartesian_prod(weights, weights).prod(-1) / (2 * torch.pi)
    parts = distribution.component_distribution
    total, pull = 0.0, 0.0
    for k, share in enumerate(distribution.mixture_distribution.probs):
        z = parts.loc[k] + xi @ parts.scale_tril[k].mT
        score = model.score(z, t[0])
        total = total + share * (weight[:, None] * score).sum(0)
        pull = pull + share * (weight * (z * score).sum(-1)).sum()
    torch.testing.assert_close(total, torch.zeros(2), rtol=0, atol=2e-4)
    torch.testing.assert_close(pull, torch.tensor(-2.0), rtol=2e-4, atol=0)


@every_schedule
@given(data=st.data())
def test_coarse_blocks_alone_have_the_marginals_score(kind, data):
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    (t,) = data.draw(times(sde))
    dim = data.draw(st.integers(1, sde.basis.dim))
    z = data.draw(states(sde))[:, :dim]
    distribution = model.marginal(t, dim)
    whole = model.marginal(t).component_distribution
    torch.testing.assert_close(distribution.component_distribution.mean, whole.mean[:, :dim])
    torch.testing.assert_close(
        distribution.component_distribution.covariance_matrix,
        whole.covariance_matrix[:, :dim, :dim],
    )
    truth = torch.func.grad(lambda z: distribution.log_prob(z).sum())(z)
    torch.testing.assert_close(model.score(z, t[0]), truth, rtol=1e-6, atol=1e-6)
    alpha, sigma = sde.kernel(t, dim)
    mean = (z + sigma**2 * truth) / alpha
    torch.testing.assert_close(model.denoise(z, t[0]), mean, rtol=1e-5, atol=1e-5)


@every_schedule
@given(data=st.data())
def test_vector_time(kind, data):
    """Every component at a time of its own, every sample too."""
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    rows = [torch.cat(data.draw(times(sde, sde.basis.dim))) for _ in range(len(z))]
    together = model.score(z, torch.stack(rows))
    for i, t in enumerate(rows):
        truth = torch.func.grad(lambda y, t=t: model.marginal(t).log_prob(y))(z[i])
        torch.testing.assert_close(together[i], truth, rtol=1e-6, atol=1e-6)


@given(data=st.data())
def test_clean_data_are_their_own_mean(data):
    sde = data.draw(sdes())
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    torch.testing.assert_close(model.denoise(z, 0.0), z)


@given(data=st.data())
def test_events_are_given_in_data_space(data):
    """The distribution of the data does not depend on the basis in which they are diffused."""
    sde = data.draw(sdes())
    model = data.draw(gaussians(sde))
    x = torch.randn(5, *sde.basis.event_shape)
    u = sde.basis(torch.eye(sde.basis.dim).reshape(-1, *sde.basis.event_shape))
    mean, covariance = model.means[0] @ u.mT, u @ model.covariances[0] @ u.mT
    again = Gaussian(sde, mean.reshape(sde.basis.event_shape), covariance)
    torch.testing.assert_close(again.means, model.means)
    torch.testing.assert_close(again.covariances, model.covariances)
    plain = torch.distributions.MultivariateNormal(mean, covariance)
    truth = plain.log_prob(x.reshape(5, -1))
    torch.testing.assert_close(model.marginal(torch.zeros(1)).log_prob(sde.basis(x)), truth)


def test_a_gaussian_is_a_mixture_of_equals():
    sde = DiagonalSDE(VP(), Haar((4,), 1), [1.0, 2.0])
    one = gaussian(sde, 3)
    x = sde.basis.inverse(one.means[0])
    u = sde.basis(torch.eye(4))
    covariance = u @ one.covariances[0] @ u.mT
    many = GaussianMixture(sde, [1.0, 2.0, 3.0], torch.stack([x] * 3), [covariance] * 3)
    z = torch.randn(3, 4)
    torch.testing.assert_close(one.score(z, 0.3), many.score(z, 0.3))
    torch.testing.assert_close(one.denoise(z, 0.3), many.denoise(z, 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_answers_have_the_dtype_of_the_state(dtype):
    model = mixture(DiagonalSDE(VP(), Identity((3,))))
    z = torch.randn(2, 3, dtype=dtype)
    for answer in (model.denoise(z, 0.5), model.score(z, 0.5), model.noise(z, 0.5)):
        assert answer.dtype == dtype
    assert model.marginal(torch.tensor([0.5], dtype=dtype)).mean.dtype == dtype
    exact = model.score(z.double(), 0.5)
    torch.testing.assert_close(model.score(z, 0.5).double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weights": [0.5, -0.5]}, "weights"),
        ({"means": torch.zeros(2, 3)}, "means"),
        ({"means": torch.full((2, 2), torch.nan)}, "means"),
        ({"covariances": torch.eye(2)[None]}, "covariances"),
        ({"covariances": torch.stack([torch.eye(2), -torch.eye(2)])}, "covariances"),
        ({"covariances": torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(2, 2, 2)}, "covariances"),
    ],
)
def test_parameters_that_make_no_mixture_are_refused_by_name(arguments, named):
    good = {
        "weights": [0.5, 0.5],
        "means": torch.zeros(2, 2),
        "covariances": torch.eye(2).expand(2, 2, 2),
    }
    with pytest.raises(ValueError, match=named):
        GaussianMixture(DiagonalSDE(VP(), Identity((2,))), **{**good, **arguments})
