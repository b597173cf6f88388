"""Conditional diffusion: the four estimators as settings of one, against closed forms."""

import math

import numpy as np
import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, mixture, numbers
from torch.distributions import MultivariateNormal

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import (
    VE,
    VP,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    LogLinear,
    Noise,
    ScoreEstimator,
    log_prob,
)
from scoresde.conditioning import (
    OBSERVED,
    ConditionalEstimator,
    Observation,
    ResampleObserved,
    condition,
)
from scoresde.conditioning.observation import ConditionedBasis, observing
from scoresde.reverse import ReverseSDE
from solvers import DDIM, Adaptive, EulerMaruyama, ExponentialMultistep, Heun, TorchSDE

pytestmark = pytest.mark.usefixtures("float64")

SCHEDULES = {"VP": VP, "VE": lambda: VE(0.01, 200.0), "LogLinear": LogLinear}
every_schedule = pytest.mark.parametrize("kind", SCHEDULES)
every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
correlations = numbers(0.1, 0.9)


def bivariate(r, schedule, **speeds):
    """Standard normal ``y`` and ``x`` with a correlation."""
    basis = Joint(y=(1,), x=(1,))
    sde = DiagonalSDE(schedule, basis, basis.per_block(**speeds) if speeds else 1.0)
    return Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]))


def cmde(r, sigma_y, sigma_x=20.0):
    """As `bivariate`, variance exploding, less for ``y``."""
    return bivariate(r, VE(0.005, torch.tensor([sigma_y, sigma_x])))


def wide(kind, clean=False, **speeds):
    """Two and three components, and the exact distribution of the latter given the former."""
    basis = Joint(y=(2,), x=(3,))
    sde = DiagonalSDE(SCHEDULES[kind](), basis, basis.per_block(**speeds) if speeds else 1.0)
    joint = gaussian(sde, 3)
    mean, cov = joint.means[0], joint.covariances[0]
    y = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    gain = cov[2:, :2] @ torch.linalg.inv(cov[:2, :2])
    distribution = MultivariateNormal(
        mean[2:] + (y - mean[:2]) @ gain.mT, cov[2:, 2:] - gain @ cov[:2, 2:]
    )
    return condition(joint, clean=clean, y=y), distribution


@every_schedule
@pytest.mark.parametrize("clean", [False, True])
def test_a_condition_that_stands_still_gives_the_posterior(kind, clean):  # invariant 30
    posterior, distribution = wide(kind, clean, **({} if clean else {"y": 0, "x": 1}))
    for i, mean in enumerate(distribution.mean):
        alone = Gaussian(
            DiagonalSDE(SCHEDULES[kind](), Identity((3,))), mean, distribution.covariance_matrix[i]
        )
        for t in (0.05, 0.5, 1.0):
            z = posterior.sde.basis(torch.randn(4, 2, 3))
            found = posterior.denoise(z, t)[:, i, 2:]
            torch.testing.assert_close(found, alone.denoise(z[:, i, 2:], t), rtol=1e-6, atol=1e-8)


@every_schedule
@given(t=numbers(0.01, 1.0), seed=st.integers(0, 99))
def test_a_condition_as_fast_as_the_rest_is_the_joint_model(kind, t, seed):  # invariant 31
    posterior, _ = wide(kind, y=1, x=1)
    uniform, _ = wide(kind)
    z = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(posterior.denoise(z, t), uniform.denoise(z, t))
    torch.testing.assert_close(
        posterior.denoise(z, t)[..., 2:], posterior.joint.denoise(z, t)[..., 2:]
    )


def score_gap(r, sigma_y, t):
    """``E |grad log p(x_t | y_t) - grad log p(x_t | y)|^2``, from second moments."""
    slow, still = cmde(r, sigma_y), bivariate(r, VE(0.005, 20.0), y=0, x=1)
    sx, sy = (slow.sde.kernel(torch.tensor([t])).sigma[i] for i in (1, 0))
    moments = torch.diag(torch.tensor([1.0, 1.0, sx**2, sy**2]))  # of y, x, and both noises
    moments[0, 1] = moments[1, 0] = r
    points = torch.linalg.cholesky(moments).mT * 2  # mean square over the four: the moments
    y, x, noise_x, noise_y = points.unbind(-1)
    x_t, y_t = x + noise_x, y + noise_y
    seen = condition(slow, y=torch.zeros(1)).joint.score(torch.stack([y_t, x_t], -1), t)[:, 1]
    known = still.score(torch.stack([y, x_t], -1), still_time(still, sx))[:, 1]
    return (seen - known).square().mean(), sx, sy


def still_time(model, sigma):
    """When ``x`` has a given noise."""
    low, high = model.sde.schedule.sigma_min, model.sde.schedule.sigma_max
    return (torch.log1p((sigma / low) ** 2) / (2 * (high / low).log())).item()


@given(r=correlations, sigma_y=numbers(0.05, 10.0), t=numbers(0.3, 0.95))
def test_the_gap_is_a_difference_of_informations(r, sigma_y, t):  # invariant 32
    gap, sx, sy = score_gap(r, sigma_y, t)
    wanted = 1 / (1 - r**2 + sx**2) - 1 / (1 + sx**2 - r**2 / (1 + sy**2))
    torch.testing.assert_close(gap, wanted, rtol=1e-6, atol=1e-10)


@given(r=correlations, t=numbers(0.3, 0.95))
def test_the_gap_grows_with_the_noise_on_the_condition(r, t):  # invariant 33
    gaps = [score_gap(r, sigma_y, t)[0] for sigma_y in (0.1, 0.3, 1.0, 3.0, 10.0)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


@every_schedule
@given(times=st.tuples(numbers(0.01, 0.9), numbers(0.01, 0.9)).filter(lambda p: p[0] < p[1] - 0.05))
def test_first_order_steps_of_the_condition_draw_the_bridge(kind, times):  # invariant 34
    s, t = times
    posterior, _ = wide(kind, y=1, x=1)
    reverse, y = ReverseSDE(posterior, 1.0), posterior.observation.values
    z = torch.randn(2, 5)
    wanted = readings.bridge(posterior.sde, torch.tensor([s]), torch.tensor([t]))
    mean = wanted.now * z + wanted.start * y
    for fill in (0.0, 1.0):
        ts = torch.tensor([-t, -s], dtype=torch.float64)
        found = DDIM().integrate(reverse, z, ts, _Constant(fill))
        drawn = mean + fill * wanted.sigma
        torch.testing.assert_close(found[:, :2], drawn[:, :2], rtol=1e-6, atol=1e-8)


class _Constant(Noise):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self, like):
        return torch.full_like(like, self.value)


@every_schedule
@pytest.mark.parametrize("speeds", [{"y": 0, "x": 1}, {"y": 0.4, "x": 1}, {"y": 1, "x": 1}])
def test_independent_parts_learn_nothing_from_each_other(kind, speeds):  # invariant 35
    basis = Joint(y=(1,), x=(2,))
    sde = DiagonalSDE(SCHEDULES[kind](), basis, basis.per_block(**speeds))
    cov = torch.block_diag(torch.eye(1) * 2, torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    joint = Gaussian(sde, torch.tensor([1.0, 2.0, -1.0]), cov)
    alone = Gaussian(
        DiagonalSDE(SCHEDULES[kind](), Identity((2,))), torch.tensor([2.0, -1.0]), cov[1:, 1:]
    )
    z = torch.randn(5, 3)
    found = condition(joint, y=torch.tensor([3.0])).denoise(z, 0.3)
    torch.testing.assert_close(found[:, 1:], alone.denoise(z[:, 1:], 0.3))


@pytest.mark.parametrize(
    ("sigma_y", "corrector", "eta", "mean", "variance"),
    [
        (0.5, ResampleObserved(), 1.0, 0.796, 0.362),
        (50.0, ResampleObserved(), 1.0, 0.500, 0.495),
        (1.0, None, 1.0, 0.791, 0.366),
        (50.0, None, 1.0, 0.500, 0.539),
        (50.0, None, 0.0, 0.347, 0.673),
    ],
)
def test_the_bias_of_a_noisy_condition(sigma_y, corrector, eta, mean, variance):
    """With exact scores; moments by iterating those of the linear equation, truth .80 and .36."""
    posterior = condition(cmde(0.8, sigma_y, 50.0), y=torch.ones(1))
    # what is drawn anew at every step is as far behind as a step is long
    solver = DDIM(400 if sigma_y < 1 else 200, eta=eta, corrector=corrector)
    x = solver.sample(posterior, (10_000,), generator=torch.Generator().manual_seed(0))
    assert abs(x.mean() - mean) < 4 * (variance / 10_000) ** 0.5
    assert abs(x.var() - variance) < 3 * variance * (2 / 10_000) ** 0.5 + 0.01


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "solver",
    [
        ExponentialMultistep(40),
        DDIM(200, eta=1.0),
        Heun(60),
        EulerMaruyama(400, eta=1.0),
        TorchSDE(300),
        Adaptive(rtol=1e-3, atol=1e-3),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("clean", [False, True])
def test_every_solver_samples_the_posterior(solver, clean):
    posterior, distribution = wide("VP", clean, **({} if clean else {"y": 0, "x": 1}))
    x = solver.sample(posterior, (4000, 2), generator=torch.Generator().manual_seed(0))
    assert x.shape == (4000, 2, 3)
    spread = distribution.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((x.mean(0) - distribution.mean).abs() < 0.02 + 0.09 * spread).all()
    assert ((x.std(0) / spread - 1).abs() < 0.1).all()


def test_samples_with_steps_of_their_own_keep_their_observations():
    posterior, _ = wide("VP")  # observed components diffuse
    z = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    reverse = ReverseSDE(posterior, 0.0)
    found = [
        solver.integrate(reverse, z, -solver.times(posterior.sde), Noise())
        for solver in (Adaptive(rtol=1e-5, atol=1e-5), ExponentialMultistep(300))
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)


@every_schedule
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("solver", [ExponentialMultistep(50), Adaptive(rtol=1e-3, atol=1e-3)])
def test_density_of_the_posterior(kind, clean, solver):
    posterior, distribution = wide(kind, clean, **({} if clean else {"y": 0, "x": 1}))
    x = distribution.sample((5,))
    found = log_prob(posterior, x, solver, errors=False)
    assert found.value.shape == (5, 2)
    # the prior's mismatch at T is the model's own
    torch.testing.assert_close(found.value, distribution.log_prob(x), rtol=0, atol=0.03)


@pytest.mark.parametrize("clean", [False, True])
def test_what_else_the_joint_estimator_is_told_reaches_it(clean):
    class Told(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            return condition + 0 * z

    posterior = condition(Told(bivariate(0.8, VP()).sde), clean=clean, y=torch.ones(1))
    z, told = torch.zeros(3, 2), torch.randn(3, 1)
    wanted = torch.cat([torch.ones(3, 1), told], -1)
    assert torch.equal(posterior.denoise(z, 0.5, told), wanted)
    at = posterior.sde.at(torch.tensor([[0.5], [0.4]]), z)
    for denoise in posterior.denoisers(at, told):
        assert torch.equal(denoise(z), wanted)


@pytest.mark.parametrize("clean", [False, True])
def test_answers_have_the_dtype_of_times(clean):
    sde = wide("VP", clean)[0].sde
    t = torch.tensor([0.5], dtype=torch.float32)
    for value in (*sde.kernel(t), *readings.rates(sde, t)):
        assert value.dtype == torch.float32


def test_no_density_if_the_condition_diffuses():
    posterior, distribution = wide("VP")
    with pytest.raises(ValueError, match="observed: expected components that do not diffuse"):
        log_prob(posterior, distribution.mean, DDIM(4))


def test_several_parts_may_be_observed_or_left():
    basis = Joint(a=(1,), b=(2,), c=Haar((4,), 1))
    joint = mixture(DiagonalSDE(VP(), basis), 1)
    left = condition(joint, clean=True, b=torch.zeros(3, 2))
    x = ExponentialMultistep(8).sample(left, (5, 3))
    assert {k: v.shape for k, v in left.sde.basis.rest.split(x).items()} == {
        "a": (5, 3, 1),
        "c": (5, 3, 4),
    }
    only = condition(joint, clean=True, b=torch.zeros(2), a=torch.zeros(1))
    assert ExponentialMultistep(8).sample(only, (5,)).shape == (5, 4)


def test_any_components_may_be_observed():
    joint = gaussian(DiagonalSDE(VP(), Identity((2, 2))), 5)
    mask = torch.tensor([True, False, False, True])
    values = torch.tensor([1.0, torch.nan, torch.nan, -1.0])
    some = ConditionalEstimator(joint, Observation(mask, values), clean=True)
    x = ExponentialMultistep(30).sample(some, (4000,)).flatten(1)
    assert (x[:, mask] == values[mask]).all()
    mean, cov = joint.means[0], joint.covariances[0]
    gain = cov[~mask][:, mask] @ torch.linalg.inv(cov[mask][:, mask])
    wanted = mean[~mask] + gain @ (values[mask] - mean[mask])
    assert (x[:, ~mask].mean(0) - wanted).abs().max() < 0.08
    distribution = MultivariateNormal(wanted, cov[~mask][:, ~mask] - gain @ cov[mask][:, ~mask])
    multistep = ExponentialMultistep(80)
    found = log_prob(some, x[:5].reshape(5, 2, 2), multistep, errors=False).value
    torch.testing.assert_close(found, distribution.log_prob(x[:5, ~mask]), rtol=0, atol=0.02)


def test_conditions_go_with_multi_scale_diffusion():
    basis = Joint(y=(1,), x=Haar((4,), 1))
    schedule = LogLinear(12.0, -12.0)
    sde = DiagonalSDE(
        schedule, basis, basis.per_block(y=0, x=1) * torch.tensor([1, 1, 2]), drop=[1.0, 1.0, 0.5]
    )
    joint = gaussian(sde, 2)
    mean, cov = joint.means[0], joint.covariances[0]
    gain = cov[1:, :1] / cov[0, 0]
    x = ExponentialMultistep(60).sample(condition(joint, y=torch.ones(1)), (4000,))
    found = basis.without(["y"])(x)
    assert (found.mean(0) - (mean[1:] + gain[:, 0] * (1 - mean[0]))).abs().max() < 0.08
    assert (torch.cov(found.mT) - (cov[1:, 1:] - gain @ cov[:1, 1:])).abs().max() < 0.15


def test_a_sample_does_not_depend_on_other_conditions():
    posterior, _ = wide("VP", y=0.3, x=1)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    solver = DDIM(5, eta=1.0, corrector=ResampleObserved())
    both = solver.sample(posterior, (2,), generator=generators)
    first = condition(posterior.joint, y=posterior.observation.values[0, :2])
    alone = solver.sample(first, (1,), generator=[torch.Generator().manual_seed(0)])
    torch.testing.assert_close(both[0], alone[0])


class Recorder(torch.nn.Module):
    def forward(self, x, level, condition=None):
        self.x, self.level = x, level
        return torch.zeros_like(x)


class Ones(torch.nn.Module):
    def forward(self, x, level, condition=None):
        return torch.ones_like(x)


@pytest.mark.parametrize("observe", OBSERVED)
def test_vector_time_tells_what_is_clean_and_what_is_missing(observe):
    basis = Identity((5,), {"a": 2, "b": 3})
    model = Denoising(DiagonalSDE(VP(), basis), Recorder(), observe=observe)
    x = torch.randn(400, 5)
    x[::2, 3] = torch.nan
    losses = model.losses(x, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(losses).all()
    level = model.network.level
    assert level.shape == (400, 5)
    clean, top = level == -2.0, readings.levels(model.sde, torch.ones(1)) / 4
    torch.testing.assert_close(level[::2, 3], top.expand(200))
    assert not clean[::2, 3].any()
    assert 0.4 < clean[1::2].to(x).mean() < 0.6
    # the others share one time
    for row, shown in zip(level[1::2], clean[1::2], strict=True):
        assert row[~shown].unique().numel() <= 1
    torch.testing.assert_close(model.network.x[clean], x[clean])
    if observe == "blocks":
        assert (clean[:, 0] == clean[:, 1]).all()


def test_what_is_shown_or_missing_is_not_learned():
    model = Denoising(
        DiagonalSDE(VP(), Identity((3,)), scale=2.0),
        Ones(),
        observe=lambda sde, z, noise: torch.tensor([True, False, False]).expand(z.shape),
        parametrization="denoised",
        weighting="denoised",
    )
    x = torch.tensor([[5.0, 2.0, torch.nan]]).expand(4, 3)
    torch.testing.assert_close(model.losses(x), torch.ones(4))


@pytest.mark.parametrize("observe", OBSERVED)
def test_what_is_shown_is_all_from_nothing_to_everything(observe):
    sde = DiagonalSDE(VP(), Identity((4,), {"a": 1, "b": 1, "c": 2}))
    count = 3 if observe == "blocks" else 4
    shown = OBSERVED[observe](sde, torch.empty(20_000, 4), Noise()).double()
    number = shown[:, :count].sum(-1)
    # a uniform share makes every number as likely
    for k in range(count + 1):
        assert abs((number == k).double().mean() - 1 / (count + 1)) < 0.02


@every_schedule
def test_what_does_not_move_is_clean(kind):
    basis = Joint(y=(1,), x=(1,))
    sde = DiagonalSDE(SCHEDULES[kind](), basis, basis.per_block(y=0, x=1))
    alone = DiagonalSDE(SCHEDULES[kind](), Identity((1,)))
    t = torch.tensor([[0.05], [0.7]])
    alpha, sigma = sde.kernel(t)
    assert (alpha[:, 0] == 1).all()
    assert (sigma[:, 0] == 0).all()
    assert (readings.log_snr(sde, t)[:, 0] == math.inf).all()
    torch.testing.assert_close(sigma[:, 1:], alone.kernel(t).sigma)
    torch.testing.assert_close(readings.level(sde, t), readings.level(alone, t))


@every_schedule
@pytest.mark.parametrize("how", ["start", "redrawn"])
def test_a_condition_is_diffused_as_its_speed_says(kind, how):
    posterior, _ = wide(kind, y=0.2, x=1)
    sde, z = posterior.sde, torch.randn(20_000, 2, 5)
    t = torch.tensor([1.0 if how == "start" else 0.6])
    if how == "start":
        found = sde.append(z[..., :0], sde.stages()[0], Noise())
    else:
        found = ResampleObserved()(ReverseSDE(posterior), z, t, Noise())
        assert (found[..., 2:] == z[..., 2:]).all()
    alpha, sigma = (v[:2] for v in sde.kernel(t))
    y = posterior.observation.values[:, :2]
    assert ((found[..., :2].mean(0) - alpha * y).abs() < 0.04 * sigma + 1e-9).all()
    assert ((found[..., :2].std(0) / sigma - 1).abs() < 0.03).all()


def test_one_network_learns_every_conditional():
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    data = torch.randn(20_000, 2) @ torch.linalg.cholesky(cov).mT
    data[torch.rand(data.shape) < 0.1] = torch.nan
    basis = Joint(a=(1,), b=(1,))
    network = ResidualMLP((2,), 32, 2, noise_levels=2)
    model = Denoising(DiagonalSDE(VP(), basis), network, observe="components")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 300)
        rows = torch.randint(len(data), (512,))
        loss = model.loss(data[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    solver = ExponentialMultistep(16)
    for observed in ("a", "b"):
        x = solver.sample(condition(model, clean=True, **{observed: torch.ones(1)}), (4000,))
        assert abs(x.mean() - 0.8) < 0.12
        assert abs(x.std() - 0.6) < 0.12
    both = solver.sample(model, (4000,))
    assert abs(torch.cov(both.mT)[0, 1] - 0.8) < 0.15


def joint():
    return bivariate(0.5, VP())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: condition(joint(), z=torch.ones(1)), ValueError, "parts: unknown name 'z'. Avail"),
        (lambda: condition(joint(), y=[1.0]), TypeError, "y: expected a torch.Tensor, got list"),
        (lambda: condition(joint(), y=np.ones(1)), TypeError, "y: expected a torch.Tensor, got nd"),
        (lambda: condition(joint(), y=torch.ones(1).long()), TypeError, "y: expected a floating"),
        (lambda: condition(joint()), ValueError, "observed: expected some of"),
        (lambda: condition(joint(), x=torch.ones(1), y=torch.ones(1)), ValueError, "observed"),
        (lambda: condition(joint(), y=torch.ones(2)), ValueError, r"y: expected shape \(\*batch, "),
        (lambda: condition(joint(), y=torch.tensor([torch.nan])), ValueError, "observed: .*finite"),
        (
            lambda: condition(gaussian(DiagonalSDE(VP(), Identity((2,)))), y=torch.ones(1)),
            TypeError,
            "basis: expected a Joint one",
        ),
        (
            lambda: DDIM(2, corrector=ResampleObserved()).sample(joint(), (2,)),
            TypeError,
            "corrector: ",
        ),
        (
            lambda: Denoising(joint().sde, Recorder(), observe="block"),
            ValueError,
            "observe: unknown name 'block'; did you mean 'blocks'",
        ),
    ],
)
def test_bad_conditions(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


@every_precision
@every_schedule
def test_what_is_observed_enters_with_its_noise_in_the_dtype_of_the_state(kind, dtype):
    """``alpha y + sigma xi``: two draws with the same numbers differ by the means."""
    known, _ = wide(kind, x=1.0, y=0.7)
    sde, (stage,) = known.sde, known.sde.stages()
    entered = [
        s.append(torch.zeros(2, 0, dtype=dtype), stage, Noise(torch.Generator().manual_seed(0)))
        for s in (sde, condition(known.joint, y=torch.zeros(2, 2)).sde)
    ]
    assert entered[0].dtype == entered[1].dtype == dtype
    alpha = sde.kernel(torch.tensor([sde.T])).alpha.expand(5)
    wanted = alpha * sde.observation.pin(torch.zeros(2, 5))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    found = entered[0] - entered[1]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@every_precision
@pytest.mark.parametrize("clean", [False, True])
def test_a_conditional_answers_at_times_one_by_one(clean, dtype):
    known, _ = wide("VP", clean, x=1.0, y=0.7)
    z, t = torch.randn(2, 5, dtype=dtype), torch.tensor([0.3, 0.8], dtype=dtype)
    for times in (t, t.unsqueeze(-1)):
        for question in (known.denoise, known.score):
            found = question(z, times)
            assert found.dtype == dtype
            for row in range(2):
                alone = question(z, t[row])[row]  # each has its own observation
                torch.testing.assert_close(found[row], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_observed_has_its_place_in_the_state(dtype):
    """In the order of the joint basis, whichever parts lie between."""
    joint = Joint(a=(2,), b=(1,), c=(1,))
    observation, rest = observing(joint, {"b": torch.full((1,), 9.0, dtype=dtype)})
    basis = ConditionedBasis(joint, observation, rest)
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)
    z = basis(x)
    assert joint.split(z)["b"].tolist() == [[9.0]]
    assert rest.split(x).keys() == {"a", "c"}
    for name, part in rest.split(x).items():
        assert torch.equal(joint.split(z)[name], part)
    assert torch.equal(basis.inverse(z), x)


@pytest.mark.parametrize("first", [True, False])
def test_observations_of_one_sample_are_joined_to_those_of_many(first):
    one = Observation(torch.tensor([True, False, False]), torch.tensor([1.0, 0.0, 0.0]))
    many = Observation(torch.tensor([False, False, True]), torch.arange(12.0).reshape(4, 3))
    both = one.joined(many) if first else many.joined(one)
    assert both.mask.tolist() == [True, False, True]
    assert both.batch_shape == (4,)
    assert both.values[:, both.mask].tolist() == [[1, 2], [1, 5], [1, 8], [1, 11]]
