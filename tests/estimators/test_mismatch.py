"""Data in and out of a schedule's range: what is said against what is sampled."""

import warnings

import pytest
import torch

from estimators import Denoising, Gaussian, MultiScale, ResidualMLP, measure
from estimators.mismatch import Mismatch, check_range
from scoresde import (
    DCT,
    EDM,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    LogLinear,
    RectifiedFlow,
    SubVP,
)
from scoresde.reverse import ReverseSDE
from solvers import ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SCHEDULES = [VP(), SubVP(), VE(), EDM(), Cosine(), LogLinear(), RectifiedFlow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def flowed(sde, mean, std, steps=500):
    """Mean and deviation of samples of the exact flow, by where it takes ``+-1`` sigma."""
    model = Gaussian(sde, mean, torch.diag(std**2))
    start, spread = sde.moments(sde.T, 0, sde.basis.dim)
    reverse, solver = ReverseSDE(model, 0.0), ExponentialMultistep(steps, grid="log_snr")
    both = torch.stack([start + spread, start - spread])
    low, high = solver.integrate(reverse, both, -solver.times(sde), None)
    return (low + high) / 2, (low - high).abs() / 2


@every_schedule
def test_widths_and_shifts_are_those_of_samples(schedule):
    std = torch.tensor([1e-3, 1e-2, 0.3, 30.0, 1e3, 1e4], dtype=torch.float64).repeat(2)
    mean = torch.tensor([0.0, 50.0], dtype=torch.float64).repeat_interleave(6)
    sde = DiagonalSDE(schedule, Identity((12,)))
    found = Mismatch.of(sde, mean, std)
    alpha = sde.kernel(torch.tensor([sde.eps], dtype=torch.float64)).alpha
    centre, width = flowed(sde, mean, std)
    torch.testing.assert_close(
        width / (alpha * std), found.prior_ratio * found.noise_ratio, rtol=0.02, atol=0
    )
    shift = found.bias + found.shift * found.noise_ratio * alpha  # deviations are those of samples
    torch.testing.assert_close((centre - mean) / std, shift, rtol=0.02, atol=0.02)


@every_schedule
def test_the_data_s_own_scale_and_mean_leave_no_mismatch(schedule):
    m, s = torch.tensor([2e3, -3e-6, 0.0]), torch.tensor([1e2, 1e-6, 30.0])
    sde = DiagonalSDE(schedule, Identity((3,)), scale=s, mean=m)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(sde, m, s)


@both
@every_schedule
@pytest.mark.parametrize("mean", [2000.0, -1e5])
def test_columns_far_from_zero_are_sampled_where_they_are(schedule, mean, dtype):
    """A year, say: the prior starts where the signal that is left would be."""
    m, s = torch.tensor([mean, 0.0], dtype=dtype), torch.tensor([10.0, 1.0], dtype=dtype)
    sde = DiagonalSDE(schedule, Identity((2,)), scale=s, mean=m)
    model = Gaussian(sde, m, torch.diag(s**2))
    solver = ExponentialMultistep(60, final_denoise=True)
    x = solver.sample(model, (4000,), dtype=dtype)
    torch.testing.assert_close((x.mean(0) - m) / s, torch.zeros_like(s), atol=0.1, rtol=0)
    torch.testing.assert_close(x.std(0) / s, torch.ones_like(s), atol=0.1, rtol=0)


def said(make):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make()
    return " | ".join(str(one.message) for one in found)


OUT = {
    "cosine": (Cosine(), 30.0, "scale="),
    "VE": (VE(), 100.0, "sigma_max"),
    "EDM": (EDM(), 1e4, "sigma_max"),
    "VP": (VP(), 1e3, "beta_max"),
    "narrow VE": (VE(), 1e-3, "sigma_min"),
    "narrow VP": (VP(), 1e-2, "eps"),
}
every_out = pytest.mark.parametrize(("schedule", "std", "setting"), OUT.values(), ids=OUT)


@both
@every_out
@pytest.mark.parametrize("basis", [Joint(a=(1,), b=(1,)), Identity((2, 2), {"a": 2, "b": 2})])
def test_what_is_out_of_range_is_named_where_it_is_measured_and_used(
    basis, schedule, std, setting, dtype
):
    sde = DiagonalSDE(schedule, basis)
    z = torch.randn(2000, basis.dim, dtype=dtype) * basis.blocks.expand(torch.tensor([1.0, std]))
    x = basis.inverse(z.to(dtype))
    found = said(lambda: measure(sde, x))
    assert "data of 'b' are" in found
    assert setting in found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = measure(sde, x)
    net = ResidualMLP(basis.event_shape, 8, 1)
    assert "data of 'b' are" in said(lambda: Denoising(sde, net, **scales))
    inside = DiagonalSDE(schedule, basis, scale=scales["data_std"], mean=scales["data_mean"])
    assert not said(lambda: Denoising(inside, net, **measure(inside, x)))


@pytest.mark.parametrize("scale", [0.03, 0.3, 1.0, 10.0])
@every_schedule
def test_what_is_in_range_is_not_named(schedule, scale):
    sde = DiagonalSDE(schedule, Identity((1, 4, 4)))
    x = scale * torch.randn(500, 1, 4, 4)
    found = said(lambda: measure(sde, x))
    exact = Mismatch.of(sde, torch.zeros(1), torch.tensor([scale]))
    wide = max(float(exact.noise_ratio[0]) - 1, 1 - float(exact.prior_ratio[0]))
    assert bool(found) == (wide > 0.05)


def test_a_shift_is_named():
    sde = DiagonalSDE(VP(), Identity((2,), {"year": 1, "rest": 1}))
    x = torch.randn(500, 2) * 10 + torch.tensor([2000.0, 0.0])
    found = said(lambda: measure(sde, x))
    assert "data of 'year' are not lost in noise" in found
    assert " deviations off; give the SDE the data's scale= and mean=" in found


def test_data_far_from_zero_are_named_even_where_the_prior_is():
    """At the first time a signal has not all of its strength."""
    m, s = torch.tensor([1e6]), torch.tensor([1.0])
    sde = DiagonalSDE(VP(), Identity((1,)), scale=s, mean=m)
    found = said(lambda: check_range(sde, m, s))
    assert "data of 'all' are far from 0" in found
    assert "final_denoise" in found


@every_schedule
def test_constants_have_no_deviation_to_be_off_by(schedule):
    x = torch.stack([torch.full((100,), 2020.0), torch.randn(100)], 1)
    m, s = Identity((2,)).moments(x)
    found = said(lambda: check_range(DiagonalSDE(schedule, Identity((2,)), scale=s, mean=m), m, s))
    assert not found


def test_conditions_and_priors_of_ones_own_are_let_be():
    """CDE keeps a condition clean, CMDE diffuses it less: neither is drawn from the prior."""
    joint = Joint(y=(1,), x=(1,))
    mean, std = torch.zeros(2), torch.tensor([10.0, 1.0])
    for speed in (0.0, 0.3):
        sde = DiagonalSDE(VP(), joint, joint.per_block(y=speed, x=1.0))
        assert not said(lambda sde=sde: check_range(sde, mean, std))
    wide = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 2.0), 1)
    sde = DiagonalSDE(VE(sigma_max=8.0), joint, prior=wide)
    assert not said(lambda: check_range(sde, mean, std))


def test_blocks_are_looked_at_when_they_are_dropped():
    sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), 1), drop=[1.0, 0.5])
    x = torch.randn(500, 1, 4, 4)
    nets = [ResidualMLP((stage.dim,), 8, 1) for stage in sde.stages()]
    found = said(lambda: MultiScale(sde, nets, data_std=[1.0, 1.01]))
    assert found.count("data of 'd1' are not lost in noise") == 1
    assert "data of 'd1' are not lost in noise" in said(lambda: measure(sde, x))


@both
@pytest.mark.parametrize(
    ("x", "hint"),
    [
        (255 * torch.rand(64, 3, 4, 4), "from 0.* to 25"),
        (torch.randint(256, (64, 3, 4, 4)), "8-bit integers, see scoresde.data.dequantize"),
        (2020 + torch.rand(64, 3, 4, 4), "data_mean = 0 and data_std = 1"),
    ],
    ids=["floats", "levels", "far"],
)
def test_events_that_are_not_standard_are_named_once(x, hint, dtype):
    net = ResidualMLP((3, 4, 4), 8, 1).to(dtype)
    model = Denoising(DiagonalSDE(VP(), Identity((3, 4, 4))), net)
    with pytest.warns(UserWarning, match=f"x: events of 'all' are .*{hint}"):
        model.loss(x.to(dtype))
    assert not said(lambda: model.loss(x.to(dtype)))
    scales = measure(model.sde, x.to(torch.float64))
    sde = DiagonalSDE(VP(), Identity((3, 4, 4)), scale=scales["data_std"], mean=scales["data_mean"])
    assert "x: events" not in said(lambda: Denoising(sde, net, **scales).loss(x.to(dtype)))


def test_an_outlier_in_the_first_events_says_nothing_of_their_scale():
    model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
    x = torch.randn(64, 2)
    x[0] = 1e4
    assert not said(lambda: model.loss(x))


def test_losses_of_single_events_have_gradients_under_vmap():
    """Where no number can be read, none is looked at."""
    model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))

    def loss(x):
        return model.loss(x.unsqueeze(0))

    found = torch.func.vmap(loss, randomness="different")(100 * torch.randn(5, 2))
    assert found.shape == (5,)


@pytest.mark.parametrize(
    ("basis", "faint", "schedule", "said"),
    [
        (Haar((1, 8, 8), 2), 0.01, LogLinear(), ""),
        (DCT((1, 8, 8)), 0.01, LogLinear(), ""),
        # of noise that is seen, or in coefficients that are
        (Haar((1, 8, 8), 2), 0.01, VE(0.3, 50.0), "narrower than the least noise"),
        (Haar((1, 8, 8), 2), 0.05, VE(0.3, 50.0), "narrower than the least noise"),
        # units of parts, and of blocks of a table, are their own
        (Joint(a=(16,), b=(48,)), 0.01, LogLinear(), "narrower than the least noise"),
        (Identity((64,), {"a": 16, "b": 48}), 0.003, LogLinear(), "narrower than the least noise"),
    ],
    ids=str,
)
@both
def test_what_is_too_faint_to_be_seen(basis, faint, schedule, said, dtype):
    """Fine bands of images: of tables a narrow column is a column."""
    std = torch.full((basis.dim,), faint, dtype=dtype)
    std[: basis.dim // 2] = 0.8
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_range(DiagonalSDE(schedule, basis), torch.zeros(basis.dim, dtype=dtype), std)
    assert len(caught) == bool(said)
    assert said in "".join(str(each.message) for each in caught)
