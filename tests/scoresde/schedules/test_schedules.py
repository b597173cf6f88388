import inspect
import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss
from strategies import VARIANCE_PRESERVING, every_schedule, numbers, schedules

from scoresde import EDM, VE, VP, Cosine, Learned, LogLinear, RectifiedFlow, Schedule, SubVP

pytestmark = pytest.mark.usefixtures("float64")


def grid(schedule, count=40):
    """Times from ``eps`` to ``T``."""
    u = torch.linspace(0, 1, count).unsqueeze(-1)
    return schedule.eps * (schedule.T / schedule.eps) ** u


def beta(s, t):
    return s.beta_min * t + (s.beta_max - s.beta_min) * t**2 / 2


def angle(s):
    return math.pi / 2 - math.atan(math.exp(float(s.log_snr_min) / 2))


# alpha and sigma^2 as published, in the most naive form
PUBLISHED = {
    "VP": lambda s, t: ((-beta(s, t) / 2).exp(), 1 - (-beta(s, t)).exp()),
    "SubVP": lambda s, t: ((-beta(s, t) / 2).exp(), (1 - (-beta(s, t)).exp()) ** 2),
    "VE": lambda s, t: (
        torch.ones_like(t),
        s.sigma_min**2 * ((s.sigma_max / s.sigma_min) ** (2 * t) - 1),
    ),
    "Cosine": lambda s, t: (torch.cos(angle(s) * t), torch.sin(angle(s) * t) ** 2),
    "LogLinear": lambda s, t: tuple(
        torch.sigmoid(sign * (s.log_snr_max + (s.log_snr_min - s.log_snr_max) * (t - 1e-3) / 0.999))
        ** power
        for sign, power in ((1, 0.5), (-1, 1))
    ),
    "EDM": lambda s, t: (torch.ones_like(t), t**2),
    "RectifiedFlow": lambda s, t: (1 - t, t**2),
}


@every_schedule
@given(data=st.data())
def test_signal_and_noise_are_the_published_ones(kind, data):  # invariants 5, 6, 7
    schedule = data.draw(schedules(kind))
    t = grid(schedule)
    alpha, variance = PUBLISHED[kind](schedule, t)
    torch.testing.assert_close(schedule.alpha(t), alpha, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(schedule.sigma(t) ** 2, variance, rtol=1e-8, atol=1e-10)


@every_schedule
@given(data=st.data())
def test_rates_are_derivatives_of_the_moments(kind, data):  # invariant 3
    schedule = data.draw(schedules(kind))
    t = grid(schedule)[1:-1]
    (alpha, sigma), (alpha_rate, sigma_rate) = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))
    f, g2 = schedule.rates(t)
    torch.testing.assert_close(f * alpha, alpha_rate, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(2 * f * sigma**2 + g2, 2 * sigma * sigma_rate, rtol=1e-8, atol=1e-12)


@every_schedule
@given(data=st.data())
def test_rates_by_automatic_differentiation_agree_with_closed_forms(kind, data):
    schedule = data.draw(schedules(kind))
    # what comes before the first time that is used is on the way to time 0
    t = torch.cat([schedule.eps * torch.tensor([[1e-3], [0.1], [0.9]]), grid(schedule)[1:-1]])
    for automatic, closed in zip(Schedule.rates(schedule, t), schedule.rates(t), strict=True):
        torch.testing.assert_close(automatic, closed, rtol=1e-8, atol=1e-12)


@every_schedule
@given(data=st.data(), u=st.floats(0.05, 0.95))
def test_the_sde_run_from_clean_data_has_the_kernels_moments(kind, data, u):
    """Quadrature of the rates from time 0: the variance that the SDE really has."""
    schedule = data.draw(schedules(kind))
    end = u * schedule.T
    nodes, weights = (torch.tensor(v) for v in leggauss(400))
    kink = min(schedule.eps, end)
    pieces = [(0.0, kink), *([(kink, end)] if end > kink else [])]
    s = torch.cat([a + (b - a) * (nodes + 1) / 2 for a, b in pieces]).unsqueeze(-1)
    w = torch.cat([(b - a) / 2 * weights for a, b in pieces]).unsqueeze(-1)
    t = torch.tensor([end])
    f, g2 = schedule.rates(s)
    torch.testing.assert_close((w * f).sum(0), schedule.log_alpha(t), rtol=1e-6, atol=1e-9)
    decay = (schedule.log_alpha(t) - schedule.log_alpha(s)).exp()
    torch.testing.assert_close(
        (w * decay**2 * g2).sum(0), schedule.sigma(t) ** 2, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", VARIANCE_PRESERVING)
@given(data=st.data())
def test_variance_is_preserved(kind, data):  # invariant 8
    schedule = data.draw(schedules(kind))
    alpha, sigma = schedule(grid(schedule))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-12, atol=0)


@every_schedule
@given(data=st.data())
def test_log_snr_strictly_decreases(kind, data):  # invariant 9
    schedule = data.draw(schedules(kind))
    t = grid(schedule, 200)
    assert (schedule.log_snr(t).diff(dim=0) < 0).all()
    alpha, sigma = schedule(t)
    torch.testing.assert_close(
        schedule.log_snr(t), (alpha**2 / sigma**2).log(), rtol=1e-7, atol=1e-9
    )


@given(high=numbers(3, 14), low=numbers(-14, -3))
def test_log_linear_hits_its_end_points(high, low):  # invariant 9
    schedule = LogLinear(high, low)
    found = schedule.log_snr(torch.tensor([[schedule.eps], [1.0]])).flatten()
    torch.testing.assert_close(found, torch.tensor([high, low]), rtol=1e-12, atol=0)


@given(low=numbers(-18, -3))
def test_cosine_hits_its_end_point(low):  # invariant 9
    found = Cosine(low).log_snr(torch.tensor([1.0]))
    torch.testing.assert_close(found, torch.tensor([low]), rtol=1e-9, atol=0)


@given(low=numbers(0.001, 0.1), high=numbers(1, 100))
def test_edm_hits_its_end_points(low, high):  # invariant 9
    schedule = EDM(low, high)
    ends = torch.tensor([schedule.eps, schedule.T])
    assert torch.equal(schedule.sigma(ends), torch.tensor([low, high]))


@pytest.mark.parametrize(("t", "excess"), [(0.01, 11.4), (0.1, 1.66)])
def test_exploding_variance_starts_from_zero(t, excess):
    """The reference's figures for codes that do not subtract ``sigma_min^2``."""
    t = torch.tensor([t])
    variance = VE(0.005, 0.5).sigma(t) ** 2
    assert float((0.005 * 100**t) ** 2 / variance) == pytest.approx(excess, rel=5e-3)


@every_schedule
@given(data=st.data())
def test_data_are_clean_at_time_zero(kind, data):
    alpha, sigma = data.draw(schedules(kind))(torch.zeros(1))
    assert torch.equal(alpha, torch.ones(1))
    assert torch.equal(sigma.abs(), torch.zeros(1))


@every_schedule
@given(data=st.data())
def test_float32_is_accurate_over_the_whole_range(kind, data):
    schedule = data.draw(schedules(kind))
    coarse = grid(schedule, 100).float().clamp(schedule.eps, schedule.T)
    if kind == "LogLinear":
        coarse = coarse[coarse > schedule.eps * (1 + 1e-6)].unsqueeze(-1)
    fine = coarse.double()
    found = (*schedule(coarse), *schedule.rates(coarse))
    truth = (*schedule(fine), *schedule.rates(fine))
    for value, exact in zip(found, truth, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(
        schedule.log_snr(coarse).double(), schedule.log_snr(fine), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["VP", "SubVP", "VE", "Cosine", "LogLinear"])
@given(data=st.data())
def test_a_vector_of_parameters_is_a_schedule_per_component(kind, data):
    schedule = data.draw(schedules(kind, (3,)))
    t = grid(schedule)
    for i in range(3):
        one = _single(schedule, i)
        for together, alone in zip(
            (*schedule(t), *schedule.rates(t), schedule.log_snr(t)),
            (*one(t), *one.rates(t), one.log_snr(t)),
            strict=True,
        ):
            own = together.expand(len(t), 3)[:, i : i + 1]
            torch.testing.assert_close(own, alone, rtol=1e-12, atol=1e-15)


def _single(schedule, i):
    constants = {k: float(v[i]) for k, v in schedule.named_buffers()}
    return type(schedule)(**constants, eps=schedule.eps)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: VP(beta_min=-1.0), "beta_min"),
        (lambda: SubVP(beta_max=math.inf), "beta_max"),
        (lambda: VP(beta_max=-1.0), "beta_max"),
        (lambda: VE(1.0, 0.5), "sigma_max"),
        (lambda: VE(-1.0, 0.5), "sigma_min"),
        (lambda: Cosine(2.0), "log_snr_min"),
        (lambda: LogLinear(-5.0, 5.0), "log_snr_min"),
        (lambda: EDM(2.0, 1.0), "sigma_min"),
        (lambda: RectifiedFlow(T=1.0), "T"),
        (lambda: VP(eps=0.0), "eps"),
        # the first that are senseless
        (lambda: VP(beta_min=0.0), "beta_min: expected positive"),
        (lambda: VP(beta_max=0.0), "beta_max: expected positive"),
        (lambda: VE(0.0, 1.0), "sigma_min: expected positive"),
        (lambda: VE(1.0, 1.0), r"sigma_max: expected more than sigma_min = 1.0, got 1.0"),
        (lambda: Cosine(0.0), "log_snr_min: expected below 0, got 0.0"),
        (lambda: LogLinear(5.0, 5.0), "log_snr_min: expected below log_snr_max = 5.0, got 5.0"),
        (lambda: EDM(1.0, 1.0), r"sigma_min, sigma_max: .*got \(1.0, 1.0\)"),
        (lambda: EDM(0.0, 1.0), r"sigma_min, sigma_max: .*got \(0.0, 1.0\)"),
        (lambda: RectifiedFlow(T=0.5, eps=0.5), r"eps, T: .*got \(0.5, 0.5\)"),
        (lambda: RectifiedFlow(T=0.5, eps=0.0), r"eps, T: .*got \(0.0, 0.5\)"),
    ],
)
def test_senseless_parameters_are_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named):
        build()


PAPERS = {
    VP: {"beta_min": 0.1, "beta_max": 20.0},
    SubVP: {"beta_min": 0.1, "beta_max": 20.0},
    VE: {"sigma_min": 0.01, "sigma_max": 50.0},
    EDM: {"sigma_min": 0.002, "sigma_max": 80.0},
    RectifiedFlow: {"T": 0.999},
    Cosine: {"log_snr_min": -15.0},
    LogLinear: {"log_snr_max": 10.0, "log_snr_min": -10.0},
    Learned: {"log_snr_max": 10.0, "log_snr_min": -10.0},
}


@pytest.mark.parametrize("kind", PAPERS, ids=lambda kind: kind.__name__)
def test_what_is_said_is_kept_and_what_is_not_is_as_published(kind):
    names = {"sigma_min": "eps", "sigma_max": "T"} if kind is EDM else {}
    taken = inspect.signature(kind).parameters.keys() - {"components", "hidden"}
    assert taken == {*PAPERS[kind]} | ({"eps"} if kind is not EDM else set())
    for name in taken:
        value = 0.9 * PAPERS[kind].get(name, 1e-3)
        assert float(getattr(kind(**{name: value}), names.get(name, name))) == value
        other = getattr(kind(), names.get(name, name))
        assert float(other) == PAPERS[kind].get(name, 1e-3)


def learned(components=2, seed=0):
    torch.manual_seed(seed)
    schedule = Learned(components, 4, log_snr_max=7.0, log_snr_min=-6.0)
    with torch.no_grad():
        for p in schedule.parameters():
            p.add_(0.7 * torch.randn_like(p))
    return schedule


@given(seed=st.integers(0, 99))
def test_a_learned_path_falls_from_end_to_end(seed):  # invariants 3, 8, 9
    schedule = learned(seed=seed)
    t = torch.linspace(schedule.eps, 1, 50).unsqueeze(-1)
    log_snr = schedule.log_snr(t)
    assert log_snr.shape == (50, 2)
    assert (log_snr.diff(dim=0) < 0).all()
    torch.testing.assert_close(log_snr[[0, -1]], torch.tensor([[7.0] * 2, [-6.0] * 2]))
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close((alpha**2 / sigma**2).log(), log_snr)
    inside = t[1:-1]
    for automatic, closed in zip(
        Schedule.rates(schedule, inside), schedule.rates(inside), strict=True
    ):
        torch.testing.assert_close(automatic, closed, rtol=1e-8, atol=1e-12)
    alpha, sigma = schedule(torch.zeros(1, 1))
    assert (alpha == 1).all()
    assert (sigma == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stays_at_time_zero_teaches_a_learned_path_nothing(dtype):
    """There levels are those of clean data, whose derivatives are infinite."""
    ends = [torch.nn.Parameter(torch.tensor(v, dtype=dtype)) for v in (7.0, -6.0)]
    schedule = Learned(2, 4, *ends)
    t = torch.tensor([[0.0], [0.3], [1.0]], dtype=dtype)

    def gradients(t):
        read = schedule.read(t)
        moving = [torch.where(t > 0, v, 0.0).sum() for v in (read.log_snr, *read.rates(t > 0))]
        loss = read.log_alpha.sum() + read.sigma.sum() + sum(moving)
        return torch.autograd.grad(loss, list(schedule.parameters()), allow_unused=True)

    first = schedule.read(t[:1])
    assert (first.log_alpha == 0).all()
    assert (first.sigma == 0).all()
    assert (first.log_snr == torch.inf).all()
    torch.testing.assert_close(gradients(t), gradients(t[1:]))


@every_schedule
@given(data=st.data())
def test_times_are_read_one_by_one_as_together(kind, data):
    """Where it cannot be seen whether one of them is 0."""
    schedule = data.draw(schedules(kind))
    t = torch.cat([torch.zeros(1, 1), grid(schedule)])

    def levels(t):
        return schedule.read(t)[:3]

    for one, each in zip(torch.func.vmap(levels)(t), levels(t), strict=True):
        torch.testing.assert_close(one, each)


def test_a_learned_path_starts_near_the_straight_line():
    t = torch.linspace(1e-3, 1, 20).unsqueeze(-1)
    assert (Learned().log_snr(t) - LogLinear().log_snr(t)).abs().max() < 1


def test_a_learned_path_is_accurate_in_float32():
    schedule, t = learned(), torch.linspace(0.01, 1, 30).unsqueeze(-1)
    for value, exact in zip(schedule(t.float()), schedule(t), strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bad", [{"components": 0}, {"hidden": 0}, {"log_snr_min": 11.0}])
def test_senseless_learned_paths_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Learned(**bad)


def test_time_runs_from_a_thousandth_to_one_unless_told_otherwise():
    class Decay(Schedule):
        def log_alpha(self, t):
            return -t

        def sigma(self, t):
            return (-torch.expm1(-2 * t)).sqrt()

    assert (Decay().eps, Decay().T) == (1e-3, 1.0)


def risen(u, slope, centre):
    """The share of its rise that a logistic function has made, in numbers of any size."""
    with localcontext(Context(prec=90, Emax=MAX_EMAX, Emin=MIN_EMIN)):

        def e(v):
            return (Decimal(slope).exp() * (Decimal(centre) - Decimal(v))).exp()

        return float((e(0) - e(u)) * (1 + e(1)) / ((e(0) - e(1)) * (1 + e(u))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [-3.0, -0.125, 0.5, 1.125, 3.0])
@pytest.mark.parametrize("slope", [-100.0, -20.0, 0.0, 6.0, 12.0, 100.0])
def test_a_learned_path_is_a_path_wherever_its_units_are(slope, centre, dtype):
    """Of steps far outside, ends and slopes are no quotients of what underflows."""
    schedule = Learned(1, 1, log_snr_max=7.0, log_snr_min=-6.0)
    with torch.no_grad():
        schedule.centre.fill_(centre)
        schedule.log_slope.fill_(slope)
    t = torch.linspace(schedule.eps, 1, 9, dtype=dtype).unsqueeze(-1)
    log_snr, rates = schedule.log_snr(t), schedule.rates(t)
    learned = [schedule.centre, schedule.log_slope, schedule.weight]
    slopes = torch.autograd.grad(log_snr.sum() + rates[1].sum(), learned)
    assert all(bool(v.isfinite().all()) for v in (*rates, *slopes))
    share, u = (
        schedule.weight.softmax(0).flatten().tolist(),
        (t - schedule.eps) / (1 - schedule.eps),
    )
    unit = [risen(v, min(slope, 30.0), centre) for v in u.flatten().tolist()]
    exact = 7 - 13 * (share[0] * u.flatten() + share[1] * torch.tensor(unit).to(u))
    close = 1e-4 if dtype == torch.float32 else 1e-9
    # in the middle of a step a rounding error of time is the step itself
    there = ((u.flatten() - centre).abs() > 1e-6) | (slope < 10)
    torch.testing.assert_close(log_snr.flatten()[there], exact[there], atol=close, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_schedule
@given(data=st.data())
def test_rates_where_sampling_ends_are_those_just_before(kind, dtype, data):
    """Steps look at ``eps`` from later times: where a rate jumps there, it is that above."""
    schedule = data.draw(schedules(kind))
    t = torch.tensor([[schedule.eps], [schedule.eps * (1 + 1e-4)]], dtype=dtype)
    for rate in schedule.read(t).rates(None):
        torch.testing.assert_close(rate[0], rate[1], rtol=2e-3, atol=1e-9)
