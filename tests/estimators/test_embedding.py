"""Sets and series as observations, by embeddings that are trained with the estimator."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from estimators import Denoising, Embedded, ResidualMLP, SetEmbedding
from scoresde import VP, DiagonalSDE, Identity
from scoresde.data import Dataset
from scoresde.inference import Coordinates, Posterior, simulate
from scoresde.training import Training
from solvers import ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
MOST = 8


class Series(nn.Module):
    """Somebody's network of series: whatever comes last has heard of all."""

    def __init__(self, features=2, size=8):
        super().__init__()
        self.recurrent = nn.GRU(features, size, batch_first=True)

    def forward(self, items):
        return self.recurrent(items)[1][0]


def standard(dtype):
    return Independent(Normal(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)), 1)


def some_of_a_set(theta):
    """One to eight of what is seen of a parameter, through noise; the others are missing."""
    count = torch.randint(1, MOST + 1, (len(theta), 1))
    seen = theta + torch.randn(len(theta), MOST, dtype=theta.dtype)
    return seen.masked_fill(torch.arange(MOST) >= count, torch.nan).unsqueeze(-1)


def walk(theta):
    """A walk with a drift: its end says all of it."""
    steps = theta + torch.randn(len(theta), MOST, dtype=theta.dtype)
    return steps.cumsum(1).unsqueeze(-1)


def trained(simulator, embedding, dtype, steps=300, count=4000, **where):
    torch.manual_seed(0)
    prior = standard(dtype)
    theta, x = simulate(prior, simulator, count, missing=True)
    to = Coordinates.fit(prior, theta, x, items=True)
    network = Embedded(ResidualMLP((1,), 32, 1, condition_dim=8), embedding())
    model = Denoising(DiagonalSDE(VP(), Identity((1,))), network).to(dtype)
    events = to.without_observation.inv(theta)
    data = Dataset("pairs", events, condition=to.observation(x))
    training = Training(steps=steps, batch_size=256, lr=5e-3, ema=0.97)
    training.fit(model, data, progress=False, **where)
    return model, Posterior(model, to, ExponentialMultistep(16))


def test_a_set_of_which_the_number_is_known_when_asked():
    model, posterior = trained(some_of_a_set, lambda: SetEmbedding(1, 8, 32), torch.float32)
    for seen in ([0.5], [1.5, 0.5, 1.0], [-1.0, 0.0, -0.5, -1.5, 0.5, -1.0, 0.0, -0.5]):
        distribution, std = posterior(torch.tensor(seen).unsqueeze(-1)), (1 + len(seen)) ** -0.5
        drawn = distribution.sample((1500,))
        assert abs(drawn.mean() - sum(seen) / (1 + len(seen))) < 0.35 * std
        assert abs(drawn.std() / std - 1) < 0.25
    assert any(name.startswith("network.embedding.") for name in model.state_dict())


@both
def test_order_and_what_is_missing_say_nothing(dtype):
    _, posterior = trained(some_of_a_set, lambda: SetEmbedding(1, 8, 8), dtype, 3, 100)
    x = torch.tensor([[1.5], [0.5], [1.0]], dtype=dtype)
    distribution, more = posterior(x), torch.full((MOST - 3, 1), torch.nan, dtype=dtype)
    value = torch.randn(5, 1, dtype=dtype)
    other = posterior(torch.cat([more, x.flip(0)])).log_prob(value)
    torch.testing.assert_close(other, distribution.log_prob(value), rtol=0, atol=1e-3)
    drawn = posterior(x.expand(3, -1, -1)).sample((2,))
    assert (distribution.batch_shape, drawn.shape, drawn.dtype) == ((), (2, 3, 1), dtype)


def test_a_series_by_a_network_of_ones_own():
    _, posterior = trained(walk, Series, torch.float32)
    torch.manual_seed(1)
    for theta in (-1.0, 0.5):
        x = walk(torch.tensor([[theta]]))[0]
        drawn, std = posterior(x).sample((2000,)), (1 + MOST) ** -0.5
        assert abs(drawn.mean() - x[-1, 0] / (1 + MOST)) < 0.5 * std
        assert abs(drawn.std() / std - 1) < 0.35


def interrupted(step):
    if step == 2:
        raise KeyboardInterrupt


def test_a_run_goes_on_with_its_embedding_bit_for_bit(tmp_path):
    def run(embedding=lambda: SetEmbedding(1, 8, 8), **where):
        return trained(some_of_a_set, embedding, torch.float32, 4, 100, **where)[0].state_dict()

    whole, there = run(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder=there, save_every=1, on_step=interrupted)
    parts = run(folder=there)
    assert sum("embedding" in name for name in whole) == len(SetEmbedding(1, 8, 8).state_dict())
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    with pytest.raises(ValueError, match="embedding"):
        run(Series, folder=there)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: Embedded(nn.Identity(), len), TypeError, "embedding"),
        (lambda: Embedded(len, nn.Identity()), TypeError, "network"),
        (
            lambda: Embedded(ResidualMLP((1,), 8, 1, condition_dim=2), nn.Identity())(
                torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, 4, 2)
            ),
            ValueError,
            r"embedding: expected an output \(batch, c\) of 3 rows, got \(3, 4, 2\)",
        ),
        (lambda: SetEmbedding(0, 2), ValueError, "features"),
        (lambda: SetEmbedding(1, 2)(torch.zeros(3, 2)), ValueError, "items"),
        (
            lambda: Coordinates.fit(
                standard(torch.float32), torch.randn(9, 1), torch.randn(9, 3), items=True
            ),
            ValueError,
            r"observations: expected shape \(N, n, features\)",
        ),
        (
            lambda: Coordinates.fit(
                standard(torch.float32),
                torch.randn(9, 1),
                torch.full((9, 3, 1), torch.nan),
                items=True,
            ),
            ValueError,
            "observations: expected items that are there",
        ),
        (
            lambda: Coordinates.fit(
                standard(torch.float32), torch.randn(9, 1), torch.randn(9, 3, 1), items=True
            ).observation(torch.zeros(4, 1)),
            ValueError,
            r"observation: expected shape \(\*batch, n, 1\), n <= 3",
        ),
        (
            lambda: simulate(
                standard(torch.float32),
                lambda t: torch.full((len(t), 3, 1), torch.nan),
                9,
                missing=True,
            ),
            ValueError,
            "simulator: expected finite",
        ),
    ],
)
def test_bad_embeddings(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
