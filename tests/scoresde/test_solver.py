import pytest
import torch
from exact_moments import sample_moments, with_true_prior
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SOLVERS, ScoreOnly, Warped
from strategies import gaussian, mixture, per_schedule, sdes, uniform_sdes

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import VE, VP, DiagonalSDE, Haar, Identity, Noise
from scoresde.reverse import ReverseSDE
from scoresde.sampling.churn import churning
from scoresde.sampling.grid import GRIDS
from solvers import DDIM, EulerMaruyama, ExponentialMultistep, Heun

pytestmark = pytest.mark.usefixtures("float64")

every_solver = pytest.mark.parametrize("name", SOLVERS)


def build(name, steps=12, eta=None):
    solver = SOLVERS[name]
    if eta is None:
        eta = 0.0 if solver.weak_order is None else 1.0
    return solver(steps, eta=eta, grid="uniform_time")


def bed(dim=3):
    sde = DiagonalSDE(VP(0.1, 5.0, eps=0.05), Identity((dim,)), [1.0] * (dim - 1) + [1.7])
    return mixture(sde, 2)


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


@every_solver
def test_same_seed_same_samples(name):  # invariant 42
    model, solver = bed(), build(name)
    first, second = (solver.sample(model, (4,), generator=seeds(1)[0]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, solver.sample(model, (4,), generator=seeds(2)[0]))


@every_solver
def test_sampling_leaves_the_global_generator_alone(name):  # invariant 42
    before = torch.random.get_rng_state()
    build(name).sample(bed(), (4,), generator=seeds(1)[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "torchdiffeq"])
@settings(max_examples=5)
@given(data=st.data())
def test_a_sample_does_not_depend_on_its_neighbours(name, data):  # invariant 42
    model, solver = bed(), build(name)
    numbers = data.draw(st.lists(st.integers(0, 999), min_size=2, max_size=5, unique=True))
    together = solver.sample(model, (len(numbers),), generator=seeds(*numbers))
    assert len(together.unique(dim=0)) == len(numbers)
    i = data.draw(st.integers(0, len(numbers) - 1))
    alone = solver.sample(model, (1,), generator=seeds(numbers[i]))
    torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@every_solver
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_samples_have_the_shape_asked_for(name, shape):
    sde = DiagonalSDE(VP(0.1, 5.0, eps=0.05), Haar((1, 2, 2), 1), [1.0, 1.7])
    found = build(name).sample(gaussian(sde), shape)
    assert found.shape == (*shape, 1, 2, 2)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("times", GRIDS)
def test_samples_do_not_depend_on_how_a_model_was_trained(times):  # invariant 41
    torch.manual_seed(0)
    sde = DiagonalSDE(VP(), Identity((2,)))
    network = ResidualMLP((2,), width=8, depth=1)
    network.output_layer[1].weight.data.normal_()
    plain = Denoising(sde, network)
    other = Denoising(sde, network, times=times, weighting="likelihood")
    a, b = (DDIM(9, eta=1.0).sample(m, (3,), generator=seeds(0)[0]) for m in (plain, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [100, 400])
@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "heun", "exponential-multistep"])
def test_the_variance_of_samples_does_not_depend_on_the_number_of_steps(name, steps):  # inv. 41
    """Where the sampler is tied to the training steps it is 14.7, 3.4, 1.0, .67 of the truth."""
    sde = DiagonalSDE(VE(0.01, 5.0, eps=0.01), Identity((1,)))
    model = with_true_prior(gaussian(sde, 1))
    covariance = sample_moments(SOLVERS[name](steps, eta=1.0), model)[1]
    torch.testing.assert_close(
        covariance / (model.covariances[0] + sde.kernel(torch.tensor([0.01])).sigma ** 2),
        torch.ones(1, 1),
        rtol=0.12,
        atol=0,
    )


@pytest.mark.parametrize("bend", [-0.5, 0.6])
def test_bending_time_leaves_the_samples(bend):  # invariant 10
    """Equal steps in log-SNR are the same steps on any time axis."""
    schedule = VP(0.3, 8.0, eps=0.05)
    plain = gaussian(DiagonalSDE(schedule, Identity((3,))), 4)
    bent = Warped(schedule, bend)
    lo, hi = 0.0, 1.0
    for _ in range(80):
        mid = (lo + hi) / 2
        lo, hi = (mid, hi) if bent.time(torch.tensor(mid)) < schedule.eps else (lo, mid)
    bent.eps = lo
    other = gaussian(DiagonalSDE(bent, Identity((3,))), 4)
    solver = ExponentialMultistep(20, eta=0.7)
    for a, b in zip(sample_moments(solver, plain), sample_moments(solver, other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_solver
def test_samples_are_differentiable_in_the_model(name):
    """By the reparametrisation of the noise: the mean of the samples follows that of the data."""
    model, solver = gaussian(DiagonalSDE(VP(0.1, 8.0, eps=0.05), Identity((2,)))), build(name, 60)
    model.means.requires_grad_()
    x = solver.rsample(model, (2,), generator=seeds(0)[0])
    (slope,) = torch.autograd.grad(x.sum(), model.means)
    # samples are affine in the mean, so its derivative is a difference
    with torch.no_grad():
        model.means += 1.0
        moved = solver.rsample(model, (2,), generator=seeds(0)[0])
    assert slope.abs().min() > 0.1
    torch.testing.assert_close(slope.sum(), (moved - x).sum(), rtol=1e-3, atol=1e-3)


@every_solver
def test_sampling_keeps_no_graph(name):
    model = Denoising(bed().sde, ResidualMLP((3,), width=8, depth=1))
    assert not build(name).sample(model, (2,)).requires_grad


@pytest.mark.parametrize("solver", [DDIM(), ExponentialMultistep(), Heun(), EulerMaruyama()])
def test_a_walk_goes_on_where_another_ended(solver):
    model = bed()
    reverse = ReverseSDE(model, 0.0)
    ts = -solver.times(model.sde)
    z = torch.randn(2, 3)
    whole = [y for y, _ in solver.walk(reverse, z, ts, Noise())]
    assert len(whole) == len(ts) - 1
    *_, (middle, memory) = solver.walk(reverse, z, ts[:21], Noise())
    *_, (end, _) = solver.walk(reverse, middle, ts[20:], Noise(), memory)
    torch.testing.assert_close(end, whole[-1])
    torch.testing.assert_close(solver.integrate(reverse, z, ts, Noise()), whole[-1])
    for a, b in zip(solver.path(reverse, z, ts, Noise()), whole, strict=True):
        torch.testing.assert_close(a, b)


@per_schedule(4)
@given(data=st.data())
def test_one_group_is_the_plain_model(kind, data):  # invariant 38
    """Blocks that share everything, one scale and one schedule, change no sample."""
    sde = data.draw(uniform_sdes(kind, "Identity"))
    plain = DiagonalSDE(sde.schedule, Identity(sde.basis.event_shape))
    a, b = (DDIM(5, eta=1.0).sample(gaussian(s), (2,), generator=seeds(0)[0]) for s in (sde, plain))
    torch.testing.assert_close(a, b)


def test_divergence_is_an_error_that_names_the_solver():
    model = ScoreOnly(DiagonalSDE(VP(), Identity((2,))), lambda z, t: 1e200 * z)
    solver = EulerMaruyama(4)
    with pytest.raises(ValueError, match=r"samples: .*EulerMaruyama"):
        solver.sample(model, (2,))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"steps": 0}, "steps"), ({"eta": -1.0}, "eta"), ({"grid": "lgo_snr"}, "grid")],
)
def test_impossible_settings_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        DDIM(**arguments)


@given(data=st.data())
@settings(max_examples=10)
def test_a_grid_of_ones_own_is_walked(data):
    sde = data.draw(sdes("VP"))
    inner = sorted(data.draw(st.sets(st.floats(0.01, 0.99), min_size=1, max_size=4)))
    times = [1.0, *reversed(inner), 0.001]
    solver = DDIM(grid=lambda sde, steps: torch.tensor(times, dtype=torch.float64))
    assert solver.times(sde).tolist() == times


@pytest.mark.parametrize("name", ["ddim", "euler-maruyama", "exponential-multistep", "heun"])
def test_noise_is_drawn_if_asked_for_and_only_then(name):
    class Counting(Noise):
        drawn = 0

        def __call__(self, like):
            self.drawn += 1
            return super().__call__(like)

    counts = []
    for eta in (0.0, 1.0):
        noise = Counting()
        build(name, 5, eta).sample(bed(), (2,), generator=noise)
        counts.append(noise.drawn)
    assert counts == [1, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ddim", "heun", "euler-maruyama"])
def test_a_trajectory_ends_in_the_samples_by_the_times_of_the_grid(name, dtype):
    model, solver = bed(), build(name)
    walk = list(solver.trajectory(model, (4,), generator=seeds(3)[0], dtype=dtype))
    times = torch.tensor([t for t, _ in walk])
    torch.testing.assert_close(times, solver.times(model.sde))
    assert all(z.shape == (4, 3) and z.dtype == dtype and not z.requires_grad for _, z in walk)
    samples = solver.sample(model, (4,), generator=seeds(3)[0], dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(walk[-1][1], samples, rtol=tolerance, atol=tolerance)


def test_a_grid_of_ones_own_is_shown_by_its_name():
    def mine(sde, steps):
        return torch.linspace(sde.T, sde.eps, steps + 1)

    assert "grid=mine" in repr(DDIM(4, grid=mine))
    assert "grid=log_snr" in repr(DDIM(4, grid="log_snr"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_corrector_runs_after_every_step_at_the_time_where_it_ends(dtype):
    sde = DiagonalSDE(VP(), Identity((2,)))
    model = Gaussian(sde, torch.zeros(2), torch.eye(2))
    calls, states = [], []

    def corrector(reverse, z, t, noise):
        calls.append((reverse.eta, float(t)))
        states.append(z)
        return z + 1

    solver = DDIM(5, eta=0.5, corrector=corrector)
    x = solver.sample(model, (3,), dtype=dtype)
    assert calls == [(0.5, float(t)) for t in solver.times(sde)[1:]]
    torch.testing.assert_close(x, states[-1] + 1)
    assert {z.dtype for z in states} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_raised_in_a_stage_as_where_there_are_no_others(dtype):
    """What enters later is no part of it."""
    both = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}), drop=[1.0, 0.5])
    step, z, ends = torch.tensor([0.8, 0.7], dtype=torch.float64), torch.ones(2, 1, dtype=dtype), []
    for sde in (both, DiagonalSDE(VP(), Identity((1,)))):
        times, churn = churning(sde, step, sde.stages()[0], 0.2)
        y, _ = churn(z)(z, Noise(torch.Generator().manual_seed(0)), None)
        assert y.dtype == dtype
        ends.append((times, y))
    torch.testing.assert_close(*ends)
