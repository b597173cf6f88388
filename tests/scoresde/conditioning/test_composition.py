"""Several observations together: closed forms of Gaussians."""

import pytest
import torch

from estimators import Gaussian
from scoresde import VE, VP, DiagonalSDE, Identity, ScoreEstimator
from scoresde.conditioning import Composition
from scoresde.conditioning.stacked import Stacked
from solvers import Adaptive, ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
PRIOR = torch.tensor([[1.0, 0.3], [0.3, 2.0]], dtype=torch.float64)
NOISE = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -1.0], dtype=torch.float64)
SDES = {
    "vp": DiagonalSDE(VP(), Identity((2,))),
    "ve, a scale each": DiagonalSDE(VE(0.01, 50.0), Identity((2,)), scale=[0.5, 2.0]),
    "a speed each": DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), speeds=[1.0, 0.5]),
}


def gaussian(sde, seen):
    """The posterior of observations ``(n, 2)`` of ``N(x, NOISE)``, with ``x ~ N(MEAN, PRIOR)``."""
    told = torch.linalg.inv(NOISE)
    covariance = torch.linalg.inv(torch.linalg.inv(PRIOR) + len(seen) * told)
    mean = covariance @ (torch.linalg.inv(PRIOR) @ MEAN + told @ seen.sum(0))
    return Gaussian(sde, mean, covariance), covariance


def composed(sde, seen, known):
    single = [gaussian(sde, y.unsqueeze(0)) for y in seen]
    covariances = (torch.stack([c for _, c in single]), PRIOR) if known else None
    return Composition([e for e, _ in single], Gaussian(sde, MEAN, PRIOR), covariances)


@pytest.mark.covering(2)
@both
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("known", [True, False], ids=["covariances", "jacobians"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_gaussians_are_composed_exactly(sde, known, count, dtype):
    torch.manual_seed(0)
    seen = torch.randn(count, 2, dtype=torch.float64)
    exact, z = gaussian(sde, seen)[0], 2 * torch.randn(7, 2, dtype=dtype)
    model = composed(sde, seen, known)
    accuracy = 2e-4 if dtype == torch.float32 else 1e-6
    for t in (0.0, sde.eps, 0.1, sde.T, torch.linspace(0.01, 1, 7)):
        found = model.denoise(z, t)
        assert found.dtype == dtype
        torch.testing.assert_close(found, exact.denoise(z, t), rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("solver", [ExponentialMultistep(30), Adaptive()], ids=str)
def test_every_solver_runs(solver):
    """Also those that go on with some of the samples alone."""
    sde, seen = SDES["vp"], torch.tensor([[1.0, 0.0], [2.0, 0.5], [1.5, -0.5]]).double()
    exact, covariance = gaussian(sde, seen)
    drawn = solver.sample(composed(sde, seen, True), (600,), generator=torch.manual_seed(0))
    torch.testing.assert_close(drawn.mean(0).double(), exact.means[0], rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(drawn.T).double(), covariance, rtol=0, atol=0.04)


class Shifted(ScoreEstimator):
    """Posteriors ``N(shift / 2, 1/2)`` of a batch of observations."""

    def __init__(self, sde, shift):
        super().__init__(sde)
        self.register_buffer("shift", shift)

    @property
    def batch_shape(self):
        return self.shift.shape[:-1]

    def select(self, rows, batch):
        own = self.shift.expand(*batch, self.shift.shape[-1]).flatten(0, -2)
        return Shifted(self.sde, own[rows])

    def denoise(self, z, t, condition=None):
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z)))
        mean = self.shift.to(z) / 2
        return mean + alpha / 2 / (alpha**2 / 2 + sigma**2) * (z - alpha * mean)


@pytest.mark.parametrize("known", [True, False], ids=["covariances", "jacobians"])
def test_a_batch_of_sets(known):
    """Samples hear of their own observations, in whatever order they go on."""
    sde = SDES["vp"]
    seen = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[-2.0, 1.0], [0.0, 1.0]], [[0.0, 0.0]] * 2])
    prior = Gaussian(sde, torch.zeros(2), torch.eye(2))
    half = (torch.eye(2).expand(3, 2, 2, 2) / 2, torch.eye(2))
    model = Composition(Shifted(sde, seen), prior, half if known else None)
    assert model.batch_shape == (3,)
    exacts = [Gaussian(sde, y.sum(0) / 3, torch.eye(2) / 3) for y in seen]
    z, t = torch.randn(5, 3, 2), torch.rand(5, 3)
    wanted = torch.stack([exact.denoise(z[:, i], t[:, i]) for i, exact in enumerate(exacts)], 1)
    torch.testing.assert_close(model.denoise(z, t), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.denoise(z, 0.3)[0], model.denoise(z[0], 0.3))
    rows = torch.tensor([4, 2, 0, 14])
    some = model.select(rows, (5, 3))
    assert some.batch_shape == (4,)
    z, t = z.flatten(0, 1)[rows], t.flatten()[rows]
    torch.testing.assert_close(some.denoise(z, t), wanted.flatten(0, 1)[rows], rtol=1e-4, atol=1e-4)
    again = some.select(torch.tensor([3]), (4,))
    torch.testing.assert_close(again.denoise(z[3:], t[3:]), some.denoise(z, t)[3:])


def test_an_observation_that_says_nothing_changes_nothing():
    sde, seen = SDES["vp"], torch.tensor([[1.0, -1.0]]).double()
    (informed, _), prior = gaussian(sde, seen), Gaussian(sde, MEAN, PRIOR)
    z = torch.randn(5, 2, dtype=torch.float64)
    for t in (0.01, 0.3, 1.0):
        found = Composition([informed, prior, prior], prior).denoise(z, t)
        torch.testing.assert_close(found, informed.denoise(z, t), rtol=0, atol=1e-4)


def test_an_observation_says_no_less_than_nothing():
    """Many estimators that are wider than the prior would make a negative variance."""
    sde = SDES["vp"]
    wider, prior = Gaussian(sde, MEAN, 1.5 * PRIOR), Gaussian(sde, MEAN, PRIOR)
    z, t = torch.randn(5, 2, dtype=torch.float64), 0.3
    known = prior.denoise(z, t)
    wanted = known + 20 * (wider.denoise(z, t) - known)  # each with the prior's covariance
    found = Composition([wider] * 20, prior).denoise(z, t)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_as_noise_vanishes_scores_add_up():
    """Whatever data are: here mixtures, of which covariances say little."""
    from estimators import GaussianMixture

    sde = SDES["vp"]
    prior = Gaussian(sde, torch.zeros(2), 9 * torch.eye(2))
    mixtures = [
        GaussianMixture(sde, [0.5, 0.5], [[y, 0.0], [0.0, y]], [torch.eye(2), torch.eye(2) / 2])
        for y in (1.0, 2.0)
    ]
    z, t = torch.randn(4, 2, dtype=torch.float64), 1e-5
    wanted = sum(m.score(z, t) for m in mixtures) - prior.score(z, t)
    torch.testing.assert_close(
        Composition(mixtures, prior).score(z, t), wanted, rtol=1e-2, atol=1e-2
    )


GAUSS = Gaussian(SDES["vp"], torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: Composition([], GAUSS), ValueError, "posteriors: expected at least one"),
        (lambda: Composition([3], GAUSS), TypeError, "posteriors: expected a ScoreEstimator"),
        (lambda: Composition([GAUSS], 3), TypeError, "prior: expected a ScoreEstimator"),
        (lambda: Composition(GAUSS, GAUSS), ValueError, r"posteriors: expected a batch"),
        (
            lambda: Composition([GAUSS], GAUSS, (torch.eye(3)[None], torch.eye(2))),
            ValueError,
            "covariances: expected shape",
        ),
        (
            lambda: Composition([GAUSS], GAUSS, (-torch.eye(2)[None], torch.eye(2))),
            ValueError,
            "covariances: expected positive definite",
        ),
        (
            lambda: Stacked([GAUSS, Gaussian(SDES["ve, a scale each"], MEAN, PRIOR)]),
            ValueError,
            "posteriors: expected estimators of one SDE",
        ),
    ],
)
def test_bad_compositions(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
