"""Posteriors by default settings: learned, kept, read and asked again."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import Independent, Normal, Uniform

from estimators import ResidualMLP, SetEmbedding, Truncated
from estimators.posterior_fit import default_training, fit_posterior
from scoresde.inference import Coordinates, Posterior, simulate
from scoresde.inference.simulation_moments import has_long_tails
from scoresde.training import Training
from solvers import DDIM, ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHORT = {"training": Training(steps=3, batch_size=32), "progress": False}


def small(size=4, condition_dim=0):
    return ResidualMLP((size,), 8, 1, condition_dim=condition_dim)


def box(dtype=torch.float32):
    one = torch.ones(2, dtype=dtype)
    return Independent(Uniform(-one, one), 1)


def simulated(simulator, dtype=torch.float32, count=200, seed=0):
    torch.manual_seed(seed)
    prior = box(dtype)
    return prior, *simulate(prior, simulator, count)


def noisy(theta):
    return theta + 0.1 * torch.randn_like(theta)


def series(theta):
    return theta.unsqueeze(1) + torch.randn(len(theta), 5, 2, dtype=theta.dtype)


def drawn(posterior, x, count=5):
    torch.manual_seed(0)
    return posterior(x).sample((count,))


@both
def test_nothing_has_to_be_chosen(dtype):
    """Bounds, place and width of what a regression knows are there before anything is learned."""
    prior, theta, x = simulated(noisy, dtype, 1000)
    posterior = fit_posterior(prior, theta, x, network=small(), **SHORT)
    samples = drawn(posterior, torch.tensor([0.2, 1.0], dtype=dtype), 500)
    assert samples.dtype == dtype
    assert abs(samples[:, 0].mean() - 0.2) < 0.02
    assert abs(samples[:, 0].std() - 0.1) < 0.02
    assert samples[:, 1].max() <= 1
    assert isinstance(posterior.estimator.baseline, Truncated)
    assert isinstance(posterior.solver, ExponentialMultistep)


def test_without_bounds_a_network_corrects_what_is_known():
    prior = Independent(Normal(torch.zeros(2), 3 * torch.ones(2)), 1)
    theta, x = simulate(prior, noisy, 200)
    posterior = fit_posterior(prior, theta, x, network=small(), **SHORT)
    model = posterior.estimator
    assert model.baseline is None
    torch.nn.init.zeros_(model.network.output_layer[1].weight)
    torch.nn.init.zeros_(model.network.output_layer[1].bias)
    known = Truncated.from_coordinates(posterior.coordinates, model.sde)
    z, t = torch.randn(50, 4), torch.linspace(0.01, 1.0, 50).unsqueeze(1)
    torch.testing.assert_close(model.denoise(z, t)[:, 2:], known.denoise(z, t)[:, 2:])


def test_updates_go_with_the_root_of_the_number_of_simulations():
    """And take an eighth of few of them, a fixed number of many."""
    counts = 1, 2500, 10_000, 10**9
    steps = [default_training(n).steps for n in counts]
    assert [default_training(n).batch_size for n in counts] == [32, 256, 256, 256]
    assert default_training(1000).batch_size == 125
    assert steps == [200, 1250, 2500, 20_000]
    assert default_training(1000).patience < default_training(1000).measurements
    with pytest.raises(ValueError, match="simulations: expected a whole number"):
        default_training(0)


def test_a_seed_says_all_of_it():
    prior, theta, x = simulated(noisy)
    before = torch.get_rng_state()
    same, again, other = (
        fit_posterior(prior, theta, x, seed=seed, **SHORT).estimator.state_dict()
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[name], value) for name, value in same.items())
    assert any(not torch.equal(other[name], value) for name, value in same.items())


def test_whatever_is_chosen_takes_the_place_of_a_default(tmp_path):
    prior, theta, x = simulated(noisy)
    network = small()
    posterior = fit_posterior(
        prior,
        theta,
        x,
        network=network,
        solver=DDIM(4),
        **SHORT,
        folder=tmp_path,
    )
    assert posterior.estimator.network is network
    assert posterior.solver == DDIM(4)
    assert (tmp_path / "config.json").exists()


@both
@pytest.mark.parametrize("embedded", [True, False])
def test_kept_in_files_and_read_again(tmp_path, dtype, embedded):
    """Also where another posterior was learned before."""

    def made(scale, seed):
        prior, theta, x = simulated(series, dtype, seed=seed)
        x, settings = (scale * x, {"items": True}) if embedded else (scale * x.mean(1), {})
        if embedded:
            torch.manual_seed(seed)
            settings["embedding"] = SetEmbedding(2, 8, 8)
            settings["network"] = small(2, 8)
        else:
            settings["network"] = small()
        return fit_posterior(prior, theta, x, **SHORT, **settings), x[0]

    (kept, x), (other, _) = made(1.0, 0), made(2.0, 1)
    save_file(kept.estimator.state_dict(), tmp_path / "estimator.safetensors")
    save_file(kept.coordinates.state_dict(), tmp_path / "coordinates.safetensors")
    other.estimator.load_state_dict(load_file(tmp_path / "estimator.safetensors"))
    state = load_file(tmp_path / "coordinates.safetensors")
    to = Coordinates(kept.coordinates.prior, **state, items=embedded)
    again = Posterior(other.estimator, to, kept.solver)
    samples = drawn(kept, x, 2)
    assert samples.dtype == dtype
    assert torch.equal(drawn(again, x, 2), samples)
    assert torch.equal(again(x).log_prob(samples), kept(x).log_prob(samples))
    assert torch.equal(to.relative_distance(x), kept.coordinates.relative_distance(x))


@both
def test_sets_of_another_size(dtype):
    prior, theta, x = simulated(series, dtype)
    embedding = SetEmbedding(2, 8, 8)
    posterior = fit_posterior(prior, theta, x, embedding=embedding, items=True, **SHORT)
    assert drawn(posterior, x[0, :3].numpy()).shape == (5, 2)
    assert drawn(posterior, np.asarray(x[:3, :1])).shape == (5, 3, 2)
    for wrong in (x[0, :, :1], torch.cat([x[0], x[1]]), x[0, 0]):
        with pytest.raises(ValueError, match=r"observation: expected shape \(\*batch, n, 2\)"):
            posterior(wrong)


def test_sets_need_an_embedding_and_that_a_vector():
    prior, theta, x = simulated(series)
    with pytest.raises(ValueError, match="embedding: expected a module that takes sets"):
        fit_posterior(prior, theta, x, items=True)
    with pytest.raises(ValueError, match=r"embedding: expected an output \(batch, c\), got"):
        fit_posterior(prior, theta, x, embedding=nn.Identity(), items=True)
    with pytest.raises(TypeError, match="embedding: expected a Module"):
        fit_posterior(prior, theta, x, embedding=torch.tanh)


@both
def test_sets_farther_than_all_simulated_ones_are_warned_of(dtype):
    prior, theta, x = simulated(series, dtype)
    to = Coordinates.fit(prior, theta, x, items=True)
    far = x[0].clone()
    far[2, 1] = 1.3 * float(x[..., 1].abs().max())
    assert to.relative_distance(x).max() == pytest.approx(1)
    assert to.relative_distance(far) > 1.2
    posterior = fit_posterior(
        prior,
        theta,
        x,
        embedding=SetEmbedding(2, 8, 8),
        items=True,
        **SHORT,
    )
    with pytest.warns(UserWarning, match="observation: 1 of 2 farther"):
        posterior(torch.stack([far, x[0]]))
    with pytest.raises(ValueError, match="observation: expected finite numbers"):
        posterior(far * torch.inf)


@both
@pytest.mark.parametrize(
    ("transform", "long"),
    [
        (lambda z: z, False),
        (lambda z: z.exp(), True),
        (lambda z: z.sign(), False),
        (lambda z: torch.where(torch.arange(len(z)) < 3, 1e6, z.mT).mT, False),  # outliers
        (lambda z: z / torch.randn_like(z), True),
        (lambda z: (z > 3).to(z), True),  # nearly all the same
        (lambda z: torch.zeros_like(z), False),
    ],
)
def test_long_tails_are_given_normal_scores(dtype, transform, long):
    torch.manual_seed(0)
    z = torch.randn(2000, 2, dtype=dtype)
    x = torch.stack([z[:, 0], transform(z[:, 1:]).squeeze(1)], 1)
    assert has_long_tails(x) == long
    assert not has_long_tails(x[:39])  # too few


@pytest.mark.parametrize("ranks", [None, False, True])
def test_normal_scores_by_default_where_tails_are_long(ranks):
    prior, theta, x = simulated(lambda theta: (4 * noisy(theta)).exp(), count=100)
    size = 4 if ranks is False else 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if ranks is False else "error")
        posterior = fit_posterior(prior, theta, x, ranks=ranks, network=small(size), **SHORT)
    scores = posterior.coordinates.sorted_observations
    assert (scores is None) == (ranks is False)
