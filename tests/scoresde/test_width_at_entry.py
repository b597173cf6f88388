import pytest
import torch

from estimators import Gaussian
from estimators.mismatch import Mismatch
from scoresde import VP, DiagonalSDE, Haar, Identity, Joint, condition, log_prob
from scoresde.likelihood.variational import prior_loss
from scoresde.noise import Noise
from scoresde.sdes.sde import Stage
from solvers import ExponentialMultistep

STD = torch.tensor([2.0, 0.8])
SHAPE = (1, 2, 2)


def sde_of(std):
    return DiagonalSDE(VP(), Haar(SHAPE, 1), drop=[1.0, 0.4], mean=[0.5, -0.3], std=std)


def model_of(std, dtype):
    sde = sde_of(std)
    mean, deviation = (sde.blocks.expand(torch.as_tensor(v)) for v in ([0.5, -0.3], STD))
    rows = sde.basis(torch.eye(4).reshape(4, *SHAPE))
    covariance = rows @ torch.diag(deviation**2).to(rows) @ rows.mT
    return Gaussian(sde, sde.basis.inverse(mean.to(rows)), covariance).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_independent_data_are_handed_over_early_without_an_error(dtype):
    model = model_of(STD, dtype)
    x = model.sde.basis.inverse(torch.randn(5, 4, dtype=dtype))
    z, deviation = model.sde.basis(x), model.sde.blocks.expand(STD).to(dtype)
    mean = model.sde.blocks.expand(torch.tensor([0.5, -0.3])).to(dtype)
    exact = torch.distributions.Normal(mean, deviation).log_prob(z).sum(-1)
    solver = ExponentialMultistep(48, grid="log_snr")
    torch.testing.assert_close(log_prob(model, x, solver).value, exact, atol=5e-3, rtol=0)
    off = log_prob(model_of(0.0, dtype), x, solver).value - exact
    assert off.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_enter_with_the_width_that_data_have(dtype):
    sde = sde_of(STD).to(dtype)
    late = Stage(0.4, sde.eps, 4)
    z = torch.zeros(20_000, 1, dtype=dtype)
    appended = sde.appender(z, late)(z, Noise.of(torch.Generator().manual_seed(0)))[:, 1:]
    alpha, sigma = sde.kernel(torch.tensor([0.4], dtype=dtype))
    wanted = (alpha**2 * 0.8**2 + sigma**2).sqrt()
    torch.testing.assert_close(appended.std(), wanted.squeeze().to(dtype), rtol=0.02, atol=0)
    torch.testing.assert_close(appended.mean(), -0.3 * alpha.squeeze().to(dtype), rtol=0, atol=0.02)


def test_the_loss_of_the_prior_is_a_divergence():
    sde = sde_of(STD).double()
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    z, total = sde.basis(x), 0.0
    for t, part, mean, std in ((1.0, slice(1), 0.5, 2.0), (0.4, slice(1, None), -0.3, 0.8)):
        alpha, sigma = (v.squeeze() for v in sde.kernel(torch.tensor([t], dtype=torch.float64)))
        told = torch.distributions.Normal(alpha * z[:, part], sigma)
        drawn = torch.distributions.Normal(alpha * mean, torch.hypot(alpha * std, sigma))
        total = total + torch.distributions.kl_divergence(told, drawn).sum(-1)
    torch.testing.assert_close(prior_loss(sde, x), total)


def test_conditions_enter_as_they_are():
    joint = Joint(x=Identity((1,)), y=Identity((1,)))
    plain, wide = (DiagonalSDE(VP(), joint, std=std) for std in (0.0, 3.0))
    y = torch.tensor([[2.0]])
    ends = [
        condition(Gaussian(sde, torch.zeros(2), torch.eye(2)), y=y).sde for sde in (plain, wide)
    ]
    first = Stage(1.0, plain.eps, 2)
    empty = torch.zeros(1, 0)
    a, b = (
        sde.appender(empty, first)(empty, Noise.of(torch.Generator().manual_seed(0)))
        for sde in ends
    )
    assert a[0, 1] == b[0, 1]
    assert b[0, 0].abs() > a[0, 0].abs()


def test_a_mismatch_knows_what_the_prior_knows():
    mean, std = torch.tensor([0.5, -0.3]).double(), STD.double()
    told, silent = (Mismatch.of(sde_of(s), mean, std).prior_ratio for s in (STD, 0.0))
    torch.testing.assert_close(told, torch.ones(4, dtype=torch.float64))
    assert silent[1:].max() < 0.95


def test_a_negative_width_is_refused():
    with pytest.raises(ValueError, match="std: expected numbers of at least 0"):
        sde_of(-1.0)
