import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import Warped
from strategies import bases, every_schedule, parameters, schedules, sdes, states, times

from scoresde import VE, VP, Clock, DiagonalSDE, Identity, LogLinear, Noise, ReverseSDE
from solvers import DDIM

pytestmark = pytest.mark.usefixtures("float64")


def close(a, b, rtol=1e-9, atol=1e-10):
    n = max(a.shape[-1], b.shape[-1])
    a, b = (v.expand(*v.shape[:-1], n) for v in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def everything(sde, s, t, dim=None):
    """All that an SDE says about two times, ``(*, 1 | n)``."""
    return (
        *sde.kernel(t, dim),
        *readings.transition(sde, s, t, dim),
        *readings.bridge(sde, s, t, dim),
        *readings.rates(sde, t, dim),
        readings.log_snr(sde, t, dim),
    )


@every_schedule
@given(data=st.data())
def test_chapman_kolmogorov(kind, data):  # invariant 1
    sde = data.draw(sdes(kind, delayed=True, lowest=data.draw(st.sampled_from([0.0, 0.3]))))
    r, s, t = data.draw(times(sde, 3, vector=True))
    first, second, whole = (
        readings.transition(sde, r, s),
        readings.transition(sde, s, t),
        readings.transition(sde, r, t),
    )
    close(first.alpha * second.alpha, whole.alpha)
    composed = (second.alpha * first.sigma) ** 2 + second.sigma**2
    close(composed, whole.sigma**2, rtol=1e-7, atol=1e-9)


@every_schedule
@given(data=st.data())
def test_transitions_carry_marginals_to_marginals(kind, data):  # invariant 1
    sde = data.draw(sdes(kind, delayed=True))
    s, t = data.draw(times(sde, 2, vector=True))
    early, late, step = sde.kernel(s), sde.kernel(t), readings.transition(sde, s, t)
    close(early.alpha * step.alpha, late.alpha)
    close((early.sigma * step.alpha) ** 2 + step.sigma**2, late.sigma**2)


@every_schedule
@given(data=st.data())
def test_the_kernel_is_the_transition_from_time_zero(kind, data):  # invariant 1
    sde = data.draw(sdes(kind, delayed=True, lowest=0.0))
    (t,) = data.draw(times(sde))
    for a, b in zip(readings.transition(sde, torch.zeros(1), t), sde.kernel(t), strict=True):
        close(a, b)


@every_schedule
@given(data=st.data())
def test_no_time_is_the_identity(kind, data):  # invariant 2
    sde = data.draw(sdes(kind, delayed=True, lowest=0.0))
    (t,) = data.draw(times(sde, vector=True))
    for kernel in (readings.transition(sde, t, t), sde.kernel(torch.zeros(1))):
        close(kernel.alpha, torch.ones(1), rtol=0, atol=0)
        close(kernel.sigma.abs(), torch.zeros(1), rtol=0, atol=0)


@every_schedule
@given(data=st.data())
def test_moments_obey_their_differential_equations(kind, data):  # invariant 3
    sde = data.draw(sdes(kind, delayed=True, lowest=data.draw(st.sampled_from([0.0, 0.3]))))
    (t,) = data.draw(times(sde))
    value, slope = torch.func.jvp(
        lambda t: (sde.kernel(t).alpha, sde.kernel(t).sigma ** 2), (t,), (torch.ones_like(t),)
    )
    f, g2 = readings.rates(sde, t)
    slope = [s.nan_to_num(0.0) for s in slope]  # sqrt has no derivative where data stay clean
    close(f * value[0], slope[0], rtol=1e-6, atol=1e-8)
    close(2 * f * value[1] + g2, slope[1], rtol=1e-6, atol=1e-8)


@every_schedule
@given(data=st.data())
def test_equal_speeds_recover_the_schedule(kind, data):  # invariants 5, 6, 7
    sde = DiagonalSDE(data.draw(schedules(kind)), data.draw(bases()))
    (t,) = data.draw(times(sde))
    close(sde.kernel(t).alpha, sde.schedule.alpha(t), rtol=1e-12, atol=0)
    close(sde.kernel(t).sigma, sde.schedule.sigma(t), rtol=1e-12, atol=0)
    for a, b in zip(readings.rates(sde, t), sde.schedule.rates(t), strict=True):
        close(a, b, rtol=1e-12, atol=0)


@every_schedule
@given(data=st.data())
def test_a_component_reads_the_schedule_on_its_own_clock(kind, data):
    basis = data.draw(bases())
    schedule = data.draw(schedules(kind))
    speeds, scale = (data.draw(parameters(0.3, 3.0, (basis.dim,))) for _ in range(2))
    sde = DiagonalSDE(schedule, basis, speeds, scale)
    (t,) = data.draw(times(sde))
    alpha, sigma = (v.expand(basis.dim) for v in sde.kernel(t))
    speeds, scale = (torch.tensor(v).reshape(-1) for v in (speeds, scale))
    for i in range(basis.dim):
        tau = schedule.T * (speeds[i] * t / schedule.T).clamp(max=1)
        close(alpha[i : i + 1], schedule.alpha(tau))
        close(sigma[i : i + 1], scale[i] * schedule.sigma(tau))


@every_schedule
@given(data=st.data(), bend=st.floats(-0.8, 0.8))
def test_bending_time_leaves_the_marginals(kind, data, bend):  # invariant 10
    schedule, basis = data.draw(schedules(kind)), data.draw(bases())
    speeds = torch.tensor(data.draw(parameters(0.3, 1.0, (1, basis.dim)))).reshape(-1)
    plain = DiagonalSDE(schedule, basis, speeds)
    bent = DiagonalSDE(Warped(schedule, bend), basis, speeds)
    (t,) = data.draw(times(plain))
    tau = speeds * t
    there, pace = torch.func.jvp(bent.schedule.time, (tau,), (torch.ones_like(tau),))
    for a, b in zip(bent.kernel(t), plain.kernel(there / speeds), strict=True):
        close(a, b)
    for a, b in zip(readings.rates(bent, t), readings.rates(plain, there / speeds), strict=True):
        close(a, pace * b, rtol=1e-7)


@every_schedule
@given(data=st.data(), order=st.permutations(range(3)))
def test_permuting_groups_permutes_the_distribution(kind, data, order):  # invariant 11
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=3, max_size=3))
    numbers = [data.draw(parameters(*ends, (3,))) for ends in ((0.3, 3.0), (0.3, 3.0), (0.0, 0.6))]
    schedule = data.draw(schedules(kind))
    n = sum(sizes)

    def build(order):
        basis = Identity((n,), {f"b{i}": sizes[i] for i in order})
        speeds, scale, delays = ([values[i] for i in order] for values in numbers)
        return DiagonalSDE(schedule, basis, speeds, scale, delays=delays)

    plain, permuted = build(range(3)), build(order)
    s, t = data.draw(times(plain, 2))
    edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    index = [j for i in order for j in range(edges[i], edges[i + 1])]
    pairs = zip(everything(plain, s, t), everything(permuted, s, t), strict=True)
    for a, b in pairs:
        assert torch.equal(a.expand(n)[index], b.expand(n))


@every_schedule
@given(data=st.data())
def test_splitting_a_group_changes_nothing(kind, data):  # invariant 12
    speeds, scale = (data.draw(parameters(0.3, 3.0, (2,))) for _ in range(2))
    delays = data.draw(parameters(0.0, 0.6, (2,)))
    schedule = data.draw(schedules(kind, (1, 2)))
    whole = DiagonalSDE(schedule, Identity((5,), {"a": 2, "b": 3}), speeds, scale, delays=delays)
    repeat = torch.tensor([0, 1, 1])
    constants = {k: v[repeat] if v.ndim and len(v) == 2 else v for k, v in schedule.named_buffers()}
    split_schedule = type(schedule)(**constants, eps=schedule.eps) if constants else schedule
    split = DiagonalSDE(
        split_schedule,
        Identity((5,), {"a": 2, "b1": 1, "b2": 2}),
        torch.tensor(speeds)[repeat],
        torch.tensor(scale)[repeat],
        delays=torch.tensor(delays)[repeat],
    )
    s, t = data.draw(times(whole, 2))
    for a, b in zip(everything(whole, s, t), everything(split, s, t), strict=True):
        assert torch.equal(a.expand(5), b.expand(5))
    assert whole.breakpoints() == split.breakpoints()


@every_schedule
@given(data=st.data())
def test_the_bridge_is_bayes_rule(kind, data):  # invariant 34
    """``p(z_s | z_0) p(z_t | z_s)`` conditioned on ``z_t``."""
    sde = data.draw(sdes(kind, delayed=True))
    s, t = data.draw(times(sde, 2))
    now, step, bridge = sde.kernel(s), readings.transition(sde, s, t), readings.bridge(sde, s, t)
    gain = step.alpha * now.sigma**2 / ((step.alpha * now.sigma) ** 2 + step.sigma**2)
    close(bridge.now, gain, rtol=1e-7)
    close(bridge.start, now.alpha - gain * step.alpha * now.alpha, rtol=1e-7, atol=1e-8)
    close(bridge.sigma**2, now.sigma**2 * (1 - gain * step.alpha), rtol=1e-6, atol=1e-8)


@every_schedule
@given(data=st.data())
def test_the_bridge_composed_with_the_marginal_is_the_marginal(kind, data):  # invariant 34
    sde = data.draw(sdes(kind, delayed=True, lowest=data.draw(st.sampled_from([0.0, 0.3]))))
    s, t = data.draw(times(sde, 2, vector=True))
    early, late, bridge = sde.kernel(s), sde.kernel(t), readings.bridge(sde, s, t)
    close(bridge.now * late.alpha + bridge.start, early.alpha)
    close((bridge.now * late.sigma) ** 2 + bridge.sigma**2, early.sigma**2)


@every_schedule
@given(data=st.data())
def test_coarse_blocks_alone_diffuse_as_in_company(kind, data):
    sde = data.draw(sdes(kind, delayed=True, lowest=0.0))
    s, t = data.draw(times(sde, 2, vector=True))
    n = sde.blocks.dim
    dim = data.draw(st.integers(1, n))
    pairs = zip(everything(sde, s, t), everything(sde, s, t, dim), strict=True)
    for full, prefix in pairs:
        assert torch.equal(full.expand(n)[:dim], prefix.expand(dim))
    z = data.draw(states(sde))
    start, end = torch.tensor([sde.eps]), s.max().reshape(1) + 1e-3 * sde.T
    for walk in (readings.propagator, lambda *a: readings.reverse_propagator(*a, 0.7)):
        pairs = zip(walk(sde, start, end, z), walk(sde, start, end, z[:, :dim]), strict=True)
        for a, b in pairs:
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a.expand(n)[:dim], b.expand(dim))


@every_schedule
@given(data=st.data())
def test_vector_time_reads_every_component_at_its_own_time(kind, data):
    sde = data.draw(sdes(kind, delayed=True))
    n = sde.blocks.dim
    moments = data.draw(times(sde, n))
    s = torch.tensor([sde.eps])
    together = everything(sde, s, torch.cat(moments))
    for i, t in enumerate(moments):
        for a, b in zip(together, everything(sde, s, t), strict=True):
            # the last bit of exponentials depends on how many there are
            close(a.expand(n)[i : i + 1], b.expand(n)[i : i + 1], rtol=1e-12, atol=1e-14)


@every_schedule
@given(data=st.data())
def test_times_per_block_are_times_per_component(kind, data):
    sde = data.draw(sdes(kind, delayed=True, lowest=0.0))
    s, t = data.draw(times(sde, 2, vector=True))
    full = [sde.blocks.expand(v).expand(sde.blocks.dim) for v in (s, t)]
    for a, b in zip(everything(sde, s, t), everything(sde, *full), strict=True):
        close(a, b, rtol=1e-12, atol=1e-12)


@every_schedule
@given(data=st.data())
def test_the_forward_propagator_is_the_transition(kind, data):
    sde = data.draw(sdes(kind, delayed=True))
    z = data.draw(states(sde))
    ts = torch.cat(data.draw(times(sde, 4))).unsqueeze(-1)
    step, kernel = (
        readings.propagator(sde, ts[:-1], ts[1:], z),
        readings.transition(sde, ts[:-1], ts[1:]),
    )
    close(step.decay, kernel.alpha, rtol=1e-13, atol=0)
    close(step.noise_std, kernel.sigma, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [0.5, 1.3])
@pytest.mark.parametrize("schedule", [VP(), VE(), LogLinear()], ids=type)
def test_two_steps_back_are_one(schedule, eta):
    """Of one denoised mean, whatever the noise."""
    sde = DiagonalSDE(schedule, Identity((2,)), [1.0, 0.7])
    middle, z = torch.tensor([0.4 * sde.T]), torch.zeros(2)
    start, end = torch.tensor([0.9 * sde.T]), torch.tensor([sde.eps])
    whole, first, last = (
        readings.reverse_propagator(sde, *pair, z, eta)
        for pair in ((start, end), (start, middle), (middle, end))
    )
    close(whole.decay, first.decay * last.decay, rtol=1e-10, atol=0)
    close(whole.gain, last.decay * first.gain + last.gain, rtol=1e-10, atol=0)
    noise = torch.hypot(last.decay * first.noise_std, last.noise_std)
    close(whole.noise_std, noise, rtol=1e-10, atol=0)


def test_answers_have_the_dtype_of_the_state_and_steps_are_taken_in_float64():
    sde = DiagonalSDE(VP(), Identity((2,)), [1.0, 0.7], scale=[1.0, 0.6])
    z, t, s = torch.randn(3, 2).float(), torch.tensor([[0.7], [0.6]]), torch.tensor([[0.6], [0.1]])
    at = t[0, 0]
    for value in (
        sde.f(at, z),
        sde.g(at, z),
        sde.diffuse(z, at, z),
        *(v(z) for v in next(sde.at(s, z).fields())[2:]),
        *(v(z) for v in next(readings.reverse(sde, t, z, 1.0).fields())[2:]),
        readings.reverse(sde, t[:1], z, 0.0).score(z, z),
    ):
        assert value.dtype == torch.float32
    solver, model = DDIM(eta=0.5), readings.Nothing(sde)
    times = -torch.tensor([0.7, 0.6, 0.1]).float()
    coarse, fine = (
        [(v.decay, v.gain, v.noise_std) for v in solver.prepare(ReverseSDE(model, 0.5), ts, z)]
        for ts in (times, times.double())
    )
    for a, b in zip(sum(coarse, ()), sum(fine, ()), strict=True):
        assert torch.equal(a, b)


@given(data=st.data())
def test_diffused_data_follow_the_kernel(data):
    sde = data.draw(sdes())
    z, noise = data.draw(states(sde)), data.draw(states(sde))
    t = torch.cat(data.draw(times(sde, 3)))
    found = sde.diffuse(z, t, noise)
    for i in range(3):
        alpha, sigma = sde.kernel(t[i : i + 1])
        torch.testing.assert_close(found[i], alpha * z[i] + sigma * noise[i])


@every_schedule
@given(data=st.data())
def test_breakpoints_are_where_rates_jump(kind, data):
    sde = data.draw(sdes(kind, delayed=True))
    for kink in sde.breakpoints():
        assert sde.eps < kink < sde.T
        before, after = (
            readings.rates(sde, torch.tensor([kink * (1 + e)]))[1] for e in (-1e-9, 1e-9)
        )
        assert ((after == 0) != (before == 0)).any()


@every_schedule
@given(data=st.data())
def test_levels_increase_until_every_clock_stops(kind, data):
    sde = data.draw(sdes(kind))
    stop = min(1.0, float(1 / sde.clock.speeds.min())) * sde.T
    u = torch.linspace(0, 1, 30).unsqueeze(-1)
    level = readings.level(sde, sde.eps * (stop / sde.eps) ** u)
    assert level.shape == (30,)
    assert (level.diff() > 0).all()


@given(data=st.data())
def test_the_level_of_a_uniform_sde_is_half_its_log_snr(data):
    sde = DiagonalSDE(data.draw(schedules("VP")), data.draw(bases()), scale=3.0)
    (t,) = data.draw(times(sde))
    torch.testing.assert_close(readings.level(sde, t), -sde.schedule.log_snr(t).squeeze(-1) / 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"speeds": [1.0, 2.0, 3.0]}, "speeds"),
        ({"scale": [1.0, 2.0, 3.0]}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"schedule": VP([0.1, 0.2, 0.3])}, "schedule"),
        ({"drop": [0.5, 0.5]}, "drop"),
        ({"drop": [1.0]}, "drop"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(arguments, named):
    basis = Identity((5,), {"a": 2, "b": 3})
    with pytest.raises(ValueError, match=named):
        DiagonalSDE(**{"schedule": VE(), "basis": basis, **arguments})


def test_a_clock_of_ones_own_is_taken():
    clock = Clock([1.0, 0.5])
    assert DiagonalSDE(LogLinear(), Identity((2,)), clock).clock is clock


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_of_ones_own_is_what_states_start_from(dtype):
    """And what their density is at the last time; what enters later is a Gaussian still."""
    flat = torch.distributions.Uniform(torch.full((2,), 3.0), torch.full((2,), 4.0))
    prior = torch.distributions.Independent(flat, 1)
    sde = DiagonalSDE(VP(), Identity((3,), {"a": 2, "b": 1}), drop=[1.0, 0.5], prior=prior)
    first, second = sde.stages()
    z = sde.append(torch.empty(50, 0, dtype=dtype), first, Noise())
    assert z.dtype == dtype
    assert ((z >= 3) & (z <= 4)).all()
    rest, density = sde.marginalise(z, first, 0)
    assert rest.shape == (50, 0)
    torch.testing.assert_close(density, torch.zeros(50, dtype=dtype))
    grown = sde.append(z, second, Noise())
    assert torch.equal(grown[:, :2], z)
    _, std = sde.moments(second.start, 2, 3)
    distribution = torch.distributions.Normal(0.0, std.to(dtype))
    gained = sde.marginalise(grown, second, 2)[1]
    torch.testing.assert_close(gained, distribution.log_prob(grown[:, 2:]).squeeze(-1))
