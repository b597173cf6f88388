import pytest
import torch

from estimators import Gaussian
from scoresde import DiagonalSDE, Haar, Identity, LogLinear
from scoresde.conditioning import rollout
from scoresde.sdes.fronts import front
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")


def autocovariance(length):
    """Of ``x_k = 0.5 x_(k-1) + 0.3 x_(k-2) + e``: two steps say all of the next."""
    rho = [1.0, 0.5 / 0.7]
    while len(rho) < length:
        rho.append(0.5 * rho[-1] + 0.3 * rho[-2])
    return torch.tensor(rho)[(torch.arange(length)[:, None] - torch.arange(length)).abs()]


def windows(shape=(4,), basis=None):
    basis = Identity(shape) if basis is None else basis
    sde = DiagonalSDE(LogLinear(12.0, -12.0), basis)
    return Gaussian(sde, torch.zeros(shape), autocovariance(4))


def seed(value=0):
    return torch.Generator().manual_seed(value)


@pytest.mark.parametrize("path", [None, front([0, 1, 2, 3], overlap=0.5)])
def test_long_sequences_have_the_distribution_of_the_data(path):
    model = windows() if path is None else windows().with_clock(path)
    x = rollout(ExponentialMultistep(30), model, (2000,), 9, stride=2, generator=seed())
    assert x.shape == (2000, 9)
    assert (torch.cov(x.mT) - autocovariance(9)).abs().max() < 0.1


def test_a_beginning_is_kept_and_gone_on_from():
    given = torch.tensor([2.0, 1.0, -1.5])
    x = rollout(ExponentialMultistep(40), windows(), (3000,), 6, given=given, generator=seed())
    assert torch.equal(x[:, :3], given.expand(3000, 3))
    mean = given.tolist()
    for _ in range(3):
        mean.append(0.5 * mean[-1] + 0.3 * mean[-2])
    assert (x.mean(0) - torch.tensor(mean)).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_and_batches_of_beginnings(dtype):
    shape = (2, 2)
    sde = DiagonalSDE(LogLinear(), Identity(shape))
    model = Gaussian(sde, torch.zeros(shape), torch.eye(4))
    given = torch.randn(5, 1, 2, dtype=dtype)
    solver = ExponentialMultistep(6)
    x = rollout(solver, model, (5,), 6, given=given, generator=seed())
    assert (x.shape, x.dtype) == ((5, 6, 2), dtype)
    assert torch.equal(x[:, :1], given)
    # every sample by itself
    seeds = [seed(i) for i in range(5)]
    many = rollout(solver, model, (5,), 4, given=given, generator=seeds)
    alone = rollout(solver, model, (1,), 4, given=given[3:4], generator=[seed(3)])
    torch.testing.assert_close(many[3:4], alone)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"length": 0}, ValueError, "length"),
        ({"stride": 5}, ValueError, "stride"),
        ({"given": torch.zeros(())}, ValueError, "given"),
        ({"basis": Haar((4,), 1)}, TypeError, "basis"),
    ],
)
def test_what_cannot_be_gone_on_from(options, error, named):
    model = windows(basis=options.pop("basis", None))
    with pytest.raises(error, match=named):
        rollout(ExponentialMultistep(4), model, (2,), options.pop("length", 6), **options)
