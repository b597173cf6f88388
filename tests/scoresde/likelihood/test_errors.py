"""What log-densities are said to miss, by whatever method, and that nobody is unaware of it."""

import functools
import warnings

import pytest
import torch
from strategies import gaussian
from torch.distributions import MultivariateNormal

from estimators import Gaussian, GaussianMixture
from scoresde import (
    CLD,
    HOLD,
    PSLD,
    VP,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    LogLinear,
    Quadrature,
    ScoreDistribution,
    log_prob,
)
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset
from scoresde.likelihood.exact import coarsened
from scoresde.sampling.grid import GRIDS
from solvers import DDIM, Adaptive, ExponentialMultistep, Heun, TorchDiffEq

MEAN, COVARIANCE = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.9], [0.9, 1.0]])
X = torch.tensor([[0.5, -2.0], [3.0, -1.5]])
DTYPES = [torch.float32, torch.float64]


def model(kind, dtype, schedule=None):
    sde = kind(VP() if schedule is None else schedule, Identity((2,)))
    return Gaussian(sde, MEAN.to(dtype), COVARIANCE.to(dtype))


def found(kind, dtype, method, **options):
    seed = torch.Generator().manual_seed(1)
    return log_prob(model(kind, dtype), X.to(dtype), method, generator=seed, **options)


@functools.cache
def precise(kind, dtype):
    return found(kind, dtype, Quadrature(60)).value


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [CLD, PSLD, HOLD])
def test_few_steps_carry_pairs_and_triples_as_far_as_single_numbers(kind, dtype):
    """However fast their flow turns: what turns with a constant denoised mean is exact."""
    truth = precise(kind, dtype)
    for method, apart in ((None, 0.03), (ExponentialMultistep(24), 1.0)):
        assert (found(kind, dtype, method).value - truth).abs().max() < apart, method


METHODS = [
    ExponentialMultistep(8),
    ExponentialMultistep(24),
    ExponentialMultistep(20, grid=[1.0, *(0.8**i for i in range(2, 21)), 0.001]),
    DDIM(1),
    DDIM(2),
    DDIM(13),
    Heun(12),
    Adaptive(rtol=0.1, atol=0.1),
    TorchDiffEq(method="bosh3", rtol=0.01, atol=0.01),
    TorchDiffEq(6, method="rk4"),
]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [DiagonalSDE, CLD, HOLD])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}{m.steps}")
@pytest.mark.filterwarnings("ignore:log_prob")
def test_errors_are_told_by_every_solver(method, kind, dtype):
    """Never below two thirds of what they are."""
    # steps of their own take long in company of a velocity
    kind = DiagonalSDE if isinstance(method, Adaptive | TorchDiffEq) else kind
    rough = found(kind, dtype, method)
    truth = precise(kind, dtype)
    off = (rough.value - truth).abs()
    assert rough.error.shape == off.shape
    assert (off < 1.5 * rough.error + 1e-3).all(), (off, rough.error)


def test_errors_fall_with_them():
    few, many = (found(CLD, torch.float64, ExponentialMultistep(n)).error for n in (24, 96))
    assert (many < few / 20).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_what_was_drawn_are_as_without_errors(dtype):
    """Bit for bit, and probes are the same for both walks: what is random about it is no error."""
    options = {"trace": Hutchinson(2)}
    told, plain = (
        found(CLD, dtype, ExponentialMultistep(48), errors=errors, **options)
        for errors in (True, False)
    )
    assert torch.equal(told.value, plain.value)
    assert torch.equal(told.standard_error, plain.standard_error)
    assert plain.error.isnan().all()
    assert (told.error < 0.2).all()
    assert told.evaluations == plain.evaluations + 25


def test_what_may_be_wrong_is_said_in_a_sentence():
    dtype = torch.float32
    with pytest.warns(UserWarning, match=r"^log_prob: expected errors below 0.71 nats, got up to"):
        found(HOLD, dtype, Heun(12))
    with pytest.warns(UserWarning, match=r"of 2 of 2 events, by DDIM\(steps=4.*take more steps"):
        log_prob(model(DiagonalSDE, dtype), X.to(dtype) * X.new_tensor([[1.0], [9.0]]), DDIM(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(HOLD, dtype, None)
        found(HOLD, dtype, Heun(12), checked=False)
        found(CLD, dtype, ExponentialMultistep(48))


def test_distributions_say_so_once():
    two = ScoreDistribution(model(CLD, torch.float32), DDIM(2), method=Heun(6))
    with pytest.warns(UserWarning, match="^log_prob: expected errors below") as caught:
        [one.log_prob(X) for one in (two.expand([2]), two)]
    assert len(caught) == 1


def test_evaluations_say_so_of_all_events_together():
    data = Dataset("mine", X.repeat(2, 1))
    with pytest.warns(UserWarning, match="of 4 of 4 events, by Heun") as caught:
        report = evaluate(model(CLD, torch.float32), data, Heun(6), batch_size=2)
    assert len(caught) == 1
    assert report["solver_error"] > 10


def test_what_cannot_be_compared_may_be_off_by_anything(monkeypatch):
    lost = lambda self, density, z, ts, noise: (z, z[..., :1] * torch.nan)  # noqa: E731
    monkeypatch.setattr(Quadrature, "transport", lost)
    with pytest.warns(UserWarning, match="got up to inf"):
        off = log_prob(model(DiagonalSDE, torch.float32), X, DDIM(40)).error
    assert off.isinf().all()


def test_stages_are_all_compared():
    """Also one of a single step."""
    basis = Haar((1, 2, 2), levels=1)
    sde = DiagonalSDE(LogLinear(5.0, -5.0), basis, [1.0, 2.0], drop=[1.0, 0.5])
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    many = torch.linspace(0.5, sde.eps, 40).tolist()
    method = ExponentialMultistep(40, grid=[1.0, *many])
    told = log_prob(gaussian(sde, 3), x, method)
    truth = log_prob(gaussian(sde, 3), x, Quadrature(60)).value
    assert ((told.value - truth).abs() < 1.5 * told.error + 1e-3).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_a_coarser_grid_has_every_second_time(count):
    basis = Haar((1, 2, 2), levels=1)
    sde = DiagonalSDE(LogLinear(5.0, -5.0), basis, [1.0, 2.0], drop=[1.0, 0.5])
    for plain in (DiagonalSDE(VP(), Identity((2,))), sde):
        times = GRIDS["log_snr"](plain, count + len(plain.stages()))
        coarse = coarsened(plain, times)
        assert (coarse.diff() < 0).all()
        kept = [*plain.breakpoints(), plain.T, plain.eps]
        assert {round(t, 9) for t in kept} <= {round(t, 9) for t in coarse.tolist()}
        inside = set(times.tolist())
        new = [t for t in coarse.tolist() if t not in inside]
        assert len(coarse) - len(new) < len(times) or len(new)
        assert coarse.tolist() != times.tolist()


def test_a_border_between_modes_is_no_mans_land():
    """Modes far apart: their border is decided in few steps, which half of them miss, too."""
    means, wide = torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), 0.01 * torch.eye(2).expand(2, 2, 2)
    sde = DiagonalSDE(VP(), Identity((2,)))
    mixture = GaussianMixture(sde, [0.5, 0.5], means, wide)
    each = [MultivariateNormal(m, v) for m, v in zip(means, wide, strict=True)]
    x = torch.tensor([[0.02, 0.0], [2.9, 0.1]])
    truth = torch.stack([v.log_prob(x) for v in each]).logsumexp(0) - torch.tensor(2.0).log()
    for count in (24, 48):
        with pytest.warns(UserWarning, match="^log_prob"):
            told = log_prob(mixture, x, ExponentialMultistep(count))
        off = (told.value - truth).abs()
        assert (off < 1.5 * told.error + 0.2).all()
        assert off[0] > 100 > 10 > told.error[1]
