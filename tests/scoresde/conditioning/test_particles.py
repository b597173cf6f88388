"""Weighted particles: products of mixtures, which are mixtures again."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from estimators import Gaussian, GaussianMixture
from scoresde import EDM, VE, VP, DiagonalSDE, Identity, ScoreEstimator
from scoresde.conditioning import Composition, Particles

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SDE = {
    "vp": DiagonalSDE(VP(), Identity((1,))),
    "ve": DiagonalSDE(VE(0.01, 50.0), Identity((1,)), scale=2.0),
    "edm": DiagonalSDE(EDM(), Identity((1,))),
}
PRIOR = 2.0
"""Standard deviation of a normal prior."""


def single(sde, y):
    """What is known after ``y``, the parameter and an error that is small or large: a mixture."""
    variances = torch.tensor([0.1, 1.0]) ** 2
    evidence = Normal(0.0, (variances + PRIOR**2).sqrt()).log_prob(torch.tensor(y))
    left = 1 / (1 / variances + 1 / PRIOR**2)
    means = y * left / variances
    return GaussianMixture(
        sde, evidence.softmax(0), means.unsqueeze(-1), [v.reshape(1, 1) for v in left]
    )


def exact(ys, grid):
    """The posterior of all of them, on a grid; normalised."""
    errors = MixtureSameFamily(
        Categorical(torch.ones(2)), Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    )
    log = Normal(0.0, PRIOR).log_prob(grid)
    log = log + sum(errors.log_prob(torch.tensor(y) - grid) for y in ys)
    return (log.double() - log.double().logsumexp(0)).exp()


def product(sde, ys):
    return Composition(
        [single(sde, y) for y in ys], Gaussian(sde, torch.zeros(1), torch.eye(1) * PRIOR**2)
    )


@pytest.mark.covering(1)
@both
@pytest.mark.parametrize("kind", SDE)
@pytest.mark.parametrize("ys", [(0.5,), (-0.4, 0.6), (0.0, 0.1, 1.5, -2.0, 0.05)])
def test_products_of_mixtures(ys, kind, dtype):
    model = product(SDE[kind], ys).to(dtype)
    count = 1500
    drawn = Particles(count).sample(
        model, (count,), generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    grid = torch.linspace(-4, 4, 4001)
    wanted = exact(ys, grid).cumsum(0)
    found = torch.searchsorted(drawn.flatten().sort().values.contiguous(), grid.to(dtype))
    # Kolmogorov's distance, of particles that have common ancestors
    assert (found / count - wanted).abs().max() < 0.06
    assert drawn.dtype == dtype


def test_the_evidence_is_the_integral_of_the_product():
    ys, sde = (-0.4, 0.6), SDE["edm"]
    model = product(sde, ys)
    grid = torch.linspace(-8, 8, 16_001).unsqueeze(-1)
    terms = [
        MixtureSameFamily(
            Categorical(logits=p.log_weights), Normal(p.means[:, 0], p.covariances[:, 0, 0].sqrt())
        ).log_prob(grid)
        for p in model.posteriors.estimators
    ]
    log = sum(terms).flatten() - Normal(0.0, PRIOR).log_prob(grid).flatten()
    wanted = log.logsumexp(0) + math.log(16 / 16_000)
    found = Particles(500).draw(model, 1, torch.Generator().manual_seed(0))
    assert found.clean.shape == (500, 1)
    assert abs(found.log_evidence - wanted) < 0.15


def thirds():
    """N(3/4, 1/4)."""
    sde, one = SDE["edm"], torch.eye(1)
    each = [Gaussian(sde, torch.full((1,), y), one / 2) for y in (0.5, 1.0, 0.0)]
    return Composition(each, Gaussian(sde, torch.zeros(1), one))


@both
def test_what_is_left_of_the_path_is_known_to_fourth_order(dtype):
    u = torch.tensor([[0.0], [0.6], [1.7], [-0.9]], dtype=dtype)

    def error(sigma):
        wide, prior = (0.5 + sigma**2) ** 0.5, Normal(0.0, (1 + sigma**2) ** 0.5)
        density = sum(Normal(y, wide).log_prob(u) for y in (0.5, 1.0, 0.0)) - 2 * prior.log_prob(u)
        return density.squeeze(-1) + thirds().to(dtype).product(u, sigma).remainder

    none = sum(Normal(y, 0.5**0.5).log_prob(u) for y in (0.5, 1.0, 0.0))
    none = (none - 2 * Normal(0.0, 1.0).log_prob(u)).squeeze(-1)
    torch.testing.assert_close(
        (error(0.2) - none) / (error(0.1) - none), 16 + 0 * none, rtol=0.2, atol=0
    )


def test_the_path_ends_early_by_the_weights_that_are_left():
    chance = torch.Generator().manual_seed(0)
    found = Particles(2000, final_log_weight_std=0.5).draw(thirds(), 2000, chance)
    # without them twice as wide a variance
    assert 1.05 < found.clean.var() * 4 < 1.45


def test_in_two_dimensions_and_for_a_batch():
    """Gaussians that are correlated, whose products are known; of two sets at once."""
    sde = DiagonalSDE(VP(), Identity((2,)))
    covariance = torch.tensor([[0.5, 0.4], [0.4, 0.6]])
    means = torch.tensor(
        [[[1.0, 0.0], [0.5, 0.5], [2.0, 1.0]], [[0.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]]
    )

    class Each(ScoreEstimator):
        batch_shape = torch.Size([2, 3])

        def denoise(self, z, t, condition=None):
            alpha, sigma = self.sde.kernel(self.sde.time(t, z), 2)
            gain = (
                alpha
                * covariance
                @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
            )
            return means + (z - alpha * means) @ gain.mT

    model = Composition(Each(sde), Gaussian(sde, torch.zeros(2), torch.eye(2)))
    drawn = Particles(1000).sample(model, (1000, 2), generator=torch.Generator().manual_seed(0))
    precision = 3 * torch.linalg.inv(covariance) - 2 * torch.eye(2)
    combined = torch.linalg.inv(precision)
    mean = (means.sum(1) @ torch.linalg.inv(covariance)) @ combined
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.08)
    for i in range(2):
        torch.testing.assert_close(torch.cov(drawn[:, i].mT), combined, rtol=0.25, atol=0.03)


def test_generators_make_samples_what_they_are():
    model = product(SDE["vp"], (0.0, 0.3))
    a, b, c = (
        Particles(20, moves=1).sample(model, (7,), generator=torch.Generator().manual_seed(i))
        for i in (3, 3, 4)
    )
    assert a.shape == (7, 1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


class Broken(ScoreEstimator):
    def denoise(self, z, t, condition=None):
        return z / 0 * 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda m: Particles(1), ValueError, "count"),
        (lambda m: Particles(moves=0), ValueError, "moves"),
        (lambda m: Particles(log_weight_std=0.0), ValueError, "log_weight_std"),
        (lambda m: Particles().draw(m.prior, 3), TypeError, "model"),
        (
            lambda m: Particles(9).draw(Composition([Broken(m.sde)], m.prior), 3),
            ValueError,
            "model: expected finite denoised means",
        ),
    ],
)
def test_bad_particles(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(product(SDE["vp"], (0.0,)))
