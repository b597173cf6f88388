"""Components at times of their own, in training; and samples by any path, of one estimator."""

import pytest
import readings
import torch
from models import OrnsteinUhlenbeck, ScoreOnly
from strategies import gaussian, mixture
from torch import nn

from estimators import ClassifierFree, Denoising, Gaussian, Guidance, ResidualMLP, UNet
from estimators.times import Fronts, Independent, Together, TrainingTimes, training_times
from scoresde import (
    VP,
    Clock,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    LogLinear,
    Noise,
    Quadrature,
    condition,
    log_prob,
)
from scoresde.conditioning import ConditionalEstimator, Observation
from scoresde.sampling.grid import karras
from scoresde.sdes.fronts import front
from scoresde.training.fingerprint import differences, fingerprint
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

BASIS = {"event_shape": (5,), "blocks": {"a": 2, "b": 3}}


class Recorder(nn.Module):
    """Says nothing, and remembers what it heard."""

    def forward(self, x, level, condition=None):
        self.x, self.level = x, level
        return torch.zeros_like(x)


def recorded(schedule=None, **options):
    sde = DiagonalSDE(VP() if schedule is None else schedule, Identity(**BASIS))
    return Denoising(sde, Recorder(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", ["blocks", "components"])
def test_every_block_or_component_has_a_time_of_its_own(over, dtype):
    model = recorded(times=over)
    x = torch.randn(2000, 5, dtype=dtype)
    model.losses(x, generator=torch.Generator().manual_seed(0))
    level = model.network.level
    assert level.shape == (2000, 5)
    assert level.dtype == dtype
    together = [(i, j) for i in range(5) for j in range(i) if torch.equal(level[:, i], level[:, j])]
    assert together == ([(1, 0), (3, 2), (4, 2), (4, 3)] if over == "blocks" else [])
    apart = torch.corrcoef(level[:, [0, 2] if over == "blocks" else [0, 1, 2, 3, 4]].mT)
    assert (apart - torch.eye(len(apart))).abs().max() < 0.1
    # each with the density of the grid: its quantiles are those of one time for all
    shared = recorded(times="log_snr")
    shared.losses(x)
    quantiles = torch.linspace(0.02, 0.98, 9, dtype=dtype)
    wanted = shared.network.level.quantile(quantiles)
    for i in range(5):
        torch.testing.assert_close(level[:, i].quantile(quantiles), wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", ["blocks", "components"])
def test_some_events_have_one_time_for_all(over, dtype):
    model = recorded(times=Independent(over=over, together=0.3))
    model.losses(torch.randn(4000, 5, dtype=dtype), generator=torch.Generator().manual_seed(0))
    level = model.network.level
    shared = (level == level[:, :1]).all(-1)
    assert abs(float(shared.double().mean()) - 0.3) < 0.03
    apart = torch.corrcoef(level[~shared][:, [0, 2]].mT)[0, 1]
    assert abs(float(apart)) < 0.06
    # of both kinds each time has the density of the grid
    one = recorded(times="log_snr")
    one.losses(torch.randn(4000, 5, dtype=dtype))
    quantiles = torch.linspace(0.02, 0.98, 9, dtype=dtype)
    wanted = one.network.level.quantile(quantiles)
    for rows in (shared, ~shared):
        for i in range(5):
            found = level[rows, i].quantile(quantiles)
            torch.testing.assert_close(found, wanted, rtol=0, atol=0.15)


def test_a_run_with_another_share_is_another():
    one, other = (
        fingerprint("estimator", recorded(times=Independent(together=share)))
        for share in (0.3, 0.4)
    )
    assert differences(one, other) == ["estimator.times.together: expected 0.3, got 0.4"]


@pytest.mark.parametrize("over", ["blocks", "components"])
def test_times_together_by_no_share_or_by_all(over):
    z, sde = torch.zeros(6, 5), recorded().sde
    seeds = [Noise(torch.Generator().manual_seed(3)) for _ in range(2)]
    none, plain = (
        Independent(over=over, **options).quantiles(sde, z, noise)
        for options, noise in zip(({"together": 0}, {}), seeds, strict=True)
    )
    assert torch.equal(none, plain)
    every = Independent(over=over, together=1.0).quantiles(sde, z, Noise())
    assert torch.equal(every, every[:, :1].expand_as(every))
    assert len(every[:, 0].unique()) == 6
    for share in (-0.1, 1.1, float("nan"), "half", True):
        with pytest.raises(ValueError, match="together: expected a finite number from 0 to 1"):
            Independent(together=share)


def test_the_density_of_independent_times_is_chosen():
    model = recorded(times=Independent(over="blocks", grid="uniform_time"))
    model.losses(torch.randn(2000, 5))
    t = model.draw_times(torch.linspace(0, 1, 11))[0]
    torch.testing.assert_close(t, torch.linspace(model.sde.eps, 1, 11))
    assert model.network.level.shape == (2000, 5)


class Ramp(TrainingTimes):
    def quantiles(self, sde, z, noise):
        return (noise.uniform(z) * 0.2 + torch.linspace(0, 0.8, z.shape[-1])).flip(-1)


def test_a_distribution_of_ones_own():
    model = recorded(times=Ramp())
    model.losses(torch.randn(50, 5))
    assert (model.network.level.diff(dim=-1) < 0).all()


def test_names_and_functions_are_of_grids_or_of_what_hangs_together():
    assert training_times("blocks") == Independent(over="blocks")
    assert training_times("components") == Independent(over="components")
    assert training_times("karras") == training_times(karras) == Together(grid="karras")
    assert training_times(Ramp()) == Ramp()
    with pytest.raises(ValueError, match="times: unknown name 'block'; did you mean 'blocks'"):
        recorded(times="block")
    with pytest.raises(ValueError, match="over"):
        Independent(over="rows")
    with pytest.raises(TypeError, match="times"):
        recorded(times=3)


@pytest.mark.parametrize("over", ["blocks", "components"])
def test_missing_values_are_heard_as_noise_and_not_learned(over):
    model = recorded(times=over, weighting="denoised", parametrization="denoised")
    x = torch.full((40, 5), 2.0)
    x[:, 3] = torch.nan
    losses = model.losses(x)
    torch.testing.assert_close(losses, torch.full((40,), 4 * 4.0))
    top = readings.levels(model.sde, torch.ones(1)) / 4
    torch.testing.assert_close(model.network.level[:, 3], top.expand(40))
    assert (model.network.level[:, [0, 1, 2, 4]] < top - 1e-3).all(-1).any()


def test_what_is_shown_clean_is_so_at_whatever_times_the_others_are():
    model = recorded(times="components", observe=lambda sde, z, noise: torch.arange(5) < 2)
    x = torch.randn(30, 5)
    model.losses(x)
    level = model.network.level
    assert (level[:, :2] == -2.0).all()
    torch.testing.assert_close(model.network.x[:, :2], x[:, :2])
    assert all(len(row.unique()) == 3 for row in level[:, 2:])


def test_what_was_never_shown_clean_is_heard_of_as_it_is_at_the_first_time():
    """And not as a level that the network has not met."""
    y, t = torch.ones(4), 0.5
    for options, clean in (({"times": "blocks"}, None), ({"observe": "blocks"}, -2.0)):
        sde = DiagonalSDE(VP(), Joint(a=(2,), b=(3,)), [1.0, 2.0])
        model = Denoising(sde, Recorder(), **options)
        least = readings.levels(sde, torch.full((1,), sde.eps)) / 4
        condition(model, clean=True, a=y[:2]).denoise(torch.zeros(1, 5), t)
        wanted = sde.blocks.expand(least)[:2] if clean is None else torch.full((2,), clean)
        torch.testing.assert_close(model.network.level[0, :2], wanted)


@pytest.mark.parametrize("times", ["log_snr", "blocks", "components", "karras"])
def test_the_loss_is_the_bound_of_independent_data_whatever_their_times(times):
    """In nats, weighted by the density: what is learned of a component needs no other."""
    schedule, variances = LogLinear([9.0, 10.0], -9.0), torch.tensor([1.0, 0.3, 2.0, 0.5, 1.0])
    sde = DiagonalSDE(schedule, Identity(**BASIS), [1.0, 0.8], scale=variances.sqrt())
    exact = Gaussian(sde, torch.zeros(5), variances.diag())
    options = {"times": times, "weighting": "likelihood"}
    model = Denoising(sde, Recorder(), baseline=exact, **options)
    x = variances.sqrt() * torch.randn(30_000, 5)
    losses = model.losses(x, generator=torch.Generator().manual_seed(0))

    def information(t):
        alpha, sigma = (v.expand(5) for v in sde.kernel(torch.tensor([t])))
        return (1 + alpha**2 * variances / sigma**2).log().sum() / 2

    truth = information(sde.eps) - information(sde.T)
    error = losses.std() / len(x) ** 0.5
    assert error < 0.02 * truth
    assert abs(losses.mean() - truth) < 4 * error


# Paths.

PATHS = {
    "full": Clock(),
    "sequential": front([0, 1, 2]),
    "backwards": front([2, 1, 0]),
    "pyramid": front([0, 1, 2], overlap=0.7),
    "together, after one": front([1, 0, 1]),
}
each_path = pytest.mark.parametrize("path", PATHS)


def series(**options):
    blocks = {"a": 1, "b": 1, "c": 1}
    return DiagonalSDE(LogLinear(13.0, -13.0), Identity((3,), blocks), **options)


@each_path
def test_densities_of_a_mixture_are_the_same_by_every_path(path):
    model = mixture(series(), 2).with_clock(PATHS[path])
    x = model.marginal(torch.zeros(1)).sample((6,)).squeeze(1)
    wanted = model.marginal(torch.zeros(1)).log_prob(x)
    found = log_prob(model, x, Quadrature(90)).value
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("path", "known"),
    [("sequential", [0]), ("sequential", [2]), ("backwards", [1]), ("pyramid", [2, 0])],
)
def test_conditionals_of_a_mixture_are_exact_in_any_order(path, known):
    """Of an oracle, whatever is observed: before what comes first, or after."""
    model = mixture(series(), 2).with_clock(PATHS[path])
    x = model.marginal(torch.zeros(1)).sample((4,)).squeeze(1)
    mask = torch.zeros(3, dtype=torch.bool)
    mask[known] = True
    posterior = ConditionalEstimator(model, Observation(mask, x), clean=True)
    found = log_prob(posterior, x, Quadrature(90)).value
    part = mixture(series(), 2)
    weights, means, covariances = part.log_weights, part.means[:, mask], part.covariances
    each = torch.distributions.MultivariateNormal(means, covariances[:, mask][:, :, mask])
    observed = (weights + each.log_prob(x[:, None, mask])).logsumexp(-1)
    wanted = model.marginal(torch.zeros(1)).log_prob(x) - observed
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_what_an_estimator_is_made_of_goes_along():
    sde, clock = series(), PATHS["pyramid"]
    exact = gaussian(sde, 2)
    z, t = torch.randn(4, 3), torch.tensor(0.4)
    wanted = exact.with_clock(clock).denoise(z, t)
    assert not torch.allclose(exact.denoise(z, t), wanted)
    network = Denoising(sde, Recorder(), baseline=exact, times="components")
    torch.testing.assert_close(network.with_clock(clock).denoise(z, t), wanted)
    guided, y = Guidance(exact, lambda x: x[..., :1], torch.zeros(1), 0.5), torch.zeros(1)
    again = Guidance(exact.with_clock(clock), lambda x: x[..., :1], y, 0.5)
    torch.testing.assert_close(guided.with_clock(clock).denoise(z, t), again.denoise(z, t))
    told = ClassifierFree(exact, torch.zeros(1), guidance=1.5)
    torch.testing.assert_close(told.with_clock(clock).denoise(z, t, torch.ones(1)), wanted)
    for clean in (False, True):
        seen = Observation(torch.tensor([True, False, False]), torch.ones(3))
        conditional = ConditionalEstimator(exact, seen, clean)
        late = ConditionalEstimator(exact.with_clock(clock), seen, clean)
        around = Guidance(conditional, lambda x: x[..., 1:2], y, 0.5).with_clock(clock)
        torch.testing.assert_close(conditional.with_clock(clock).denoise(z, t), late.denoise(z, t))
        torch.testing.assert_close(around.sde.kernel(t.reshape(1)), late.sde.kernel(t.reshape(1)))
        twice = Observation(torch.tensor([False, True, False]), torch.ones(3))
        nested = ConditionalEstimator(conditional, twice, True).with_clock(clock)
        rebuilt = ConditionalEstimator(late, twice, True)
        torch.testing.assert_close(nested.denoise(z, t), rebuilt.denoise(z, t))
    assert torch.equal(exact.with_clock(sde.clock).denoise(z, t), exact.denoise(z, t))
    assert exact.sde is sde
    assert sde.clock.delays is None


def test_times_of_blocks_are_met_block_by_block():
    model = recorded(times="blocks")  # a: 2 and b: 3
    for ranks in ([0, 1], [1, 0], [0, 0, 1, 1, 1]):
        assert model.with_clock(front(ranks)).sde.clock.delays is not None
    for ranks in (range(5), [0, 1, 1, 1, 1]):
        with pytest.raises(ValueError, match="clock: expected one time for all of a block"):
            model.with_clock(front(ranks))
        recorded(times="components").with_clock(front(ranks))
    one = Denoising(DiagonalSDE(VP(), Identity((4,))), Recorder(), times="blocks")
    with pytest.raises(ValueError, match="clock: expected one time for all of a block"):
        one.with_clock(front(range(4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("over", "count"), [("blocks", 2), ("components", 5)])
def test_times_of_fronts_are_those_of_a_clock(over, count, dtype):
    """One of some order, overlap and moment; every order as often."""
    sde = DiagonalSDE(VP(), Identity(**BASIS))
    times, z = Fronts(over=over, together=0.0), torch.zeros(6000, 5, dtype=dtype)
    q = times.quantiles(sde, z, Noise(torch.Generator().manual_seed(0)))
    assert (q.shape, q.dtype) == ((6000, count), dtype)
    # in the order in which they are drawn times rise by equal steps, but for both ends
    q_sorted = q.sort(-1).values
    steps, free = q_sorted.diff(), (q_sorted[:, 0] > 0) & (q_sorted[:, -1] < 1)
    torch.testing.assert_close(
        steps[free], steps[free, :1].expand(-1, count - 1), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(q.mean(0), q.mean().expand(count), rtol=0, atol=0.02)
    between = q[(q > 0) & (q < 1)].double()
    levels = torch.linspace(0.05, 0.95, 7).double()
    torch.testing.assert_close(between.quantile(levels), levels, rtol=0, atol=0.03)
    # numbers at an end are the share of the time that a clock stands still
    v = torch.linspace(0, 1, 10001).double().square()
    still = (v * (count - 1) / (1 + v * (count - 1))).mean()
    assert abs(float(((q == 0) | (q == 1)).double().mean() - still)) < 0.02
    some = Fronts(over=over, together=0.4).quantiles(
        sde, z, Noise(torch.Generator().manual_seed(0))
    )
    assert abs(float((some == some[:, :1]).all(-1).double().mean()) - 0.4) < 0.03


def test_networks_say_how_many_levels_they_hear():
    for times, network, message in (
        ("blocks", ResidualMLP((5,), 8, 1, noise_levels=2), "expected 2 for an event.*got 5"),
        ("components", ResidualMLP((5,), 8, 1), "expected 1 for an event.*got 5"),
        ("log_snr", ResidualMLP((5,), 8, 1, noise_levels=5), "expected 5 for an event.*got 1"),
        ("blocks", UNet((5,), channels=[8, 8], spatial=1), "expected 1 for an event"),
    ):
        model = Denoising(DiagonalSDE(VP(), Identity(**BASIS)), network, times=times)
        with pytest.raises(ValueError, match=f"noise_level: {message}"):
            model.loss(torch.randn(3, 5))


def test_other_paths_of_what_has_not_met_them_are_refused():
    clock = PATHS["sequential"]
    network = ResidualMLP((3,), 8, 1)
    for options in ({}, {"observe": "blocks"}):
        with pytest.raises(ValueError, match="times: expected independent ones in training"):
            Denoising(series(), network, **options).with_clock(clock)
    bands = DiagonalSDE(Cosine(), Haar((4,), 1), drop=[1.0, 0.5])
    with pytest.raises(ValueError, match="drop"):
        gaussian(bands).with_clock(front([0, 1]))
    with pytest.raises(ValueError, match="delays"):
        gaussian(series()).with_clock(front([0, 1, 2, 3]))
    with pytest.raises(TypeError, match="clock: expected a Clock"):
        gaussian(series()).with_clock([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="OrnsteinUhlenbeck"):
        ScoreOnly(OrnsteinUhlenbeck((3,)), lambda z, t: -z).with_clock(clock)
    with pytest.raises(ValueError, match="times: expected one for all on a stage of some"):
        Denoising(bands, ResidualMLP((2,), 8, 1), stage=bands.stages()[0], times="blocks")


class LinearNetwork(nn.Module):
    """All that there is to learn of a Gaussian: its covariance."""

    def __init__(self, n):
        super().__init__()
        self.factor = nn.Parameter(torch.eye(n))

    def forward(self, x, level):
        ratio = (8 * level).exp()  # sigma^2/alpha^2
        noisy = x * (1 + ratio).sqrt()
        covariance = self.factor @ self.factor.mT
        total = covariance + torch.diag_embed(ratio)
        return (covariance @ torch.linalg.solve(total, noisy.unsqueeze(-1))).squeeze(-1)


N = 4
TRUTH = 0.8 ** (torch.arange(N)[:, None] - torch.arange(N)).abs().double()
"""Of an autoregressive series."""


@pytest.fixture(scope="module")
def trained():
    """One network of a linear series, a tenth of which is missing."""
    torch.manual_seed(0)
    basis = Joint(**{f"t{i}": (1,) for i in range(N)})
    sde = DiagonalSDE(LogLinear(12.0, -12.0), basis)
    network = LinearNetwork(N).double()
    options = {"parametrization": "denoised", "weighting": "denoised", "times": "components"}
    model = Denoising(sde, network, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    root = torch.linalg.cholesky(TRUTH)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 200)
        x = torch.randn(400, N, dtype=torch.float64) @ root.mT
        x[torch.rand(x.shape) < 0.1] = torch.nan
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("path", ["full", "sequential", "pyramid"])
@pytest.mark.parametrize("task", ["joint", "forecast", "gap"])
def test_one_network_samples_forecasts_and_fills_gaps_by_any_path(trained, task, path):
    """Of a linear series, as the exact Gaussian does."""
    ranks, overlap = range(N), {"full": 1.0, "sequential": 0.0, "pyramid": 0.7}[path]
    known = {"joint": [], "forecast": [0, 1], "gap": [0, 3]}[task]
    model = trained.with_clock(front(ranks, overlap))
    value = torch.tensor([1.0, -0.5, 0.3, 0.8])
    if known:
        model = condition(model, clean=True, **{f"t{i}": value[i : i + 1] for i in known})
    rest = [i for i in range(N) if i not in known]
    gain = TRUTH[rest][:, known] @ torch.linalg.inv(TRUTH[known][:, known])
    mean = gain @ value[known]
    covariance = TRUTH[rest][:, rest] - gain @ TRUTH[known][:, rest]
    solver, seed = ExponentialMultistep(64), torch.Generator().manual_seed(1)
    x = solver.sample(model, (4000,), generator=seed)
    # of 4000 samples a standard error is 0.016 at most
    assert (x.mean(0) - mean).abs().max() < 0.05
    assert (torch.cov(x.mT) - covariance).abs().max() < 0.08
