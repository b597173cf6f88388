"""Multi-scale diffusion: active sets, what is appended, the exact density and its bound."""

import itertools
import math

import pytest
import readings
import torch
from exact_moments import marginal, sample_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Oracle
from torch import nn

from estimators import Denoising, Gaussian, GaussianMixture, MultiScale, ResidualMLP
from scoresde import (
    DCT,
    PCA,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Identity,
    LogLinear,
    Noise,
    Packed,
    ReverseSDE,
    bound,
    log_prob,
)
from scoresde.bases.views import view
from scoresde.likelihood.variational import prior_loss
from scoresde.sampling.grid import restrict
from solvers import DDIM, ExponentialMultistep, Heun, TorchDiffEq

pytestmark = pytest.mark.usefixtures("float64")

BASES = {
    "images": lambda: Haar((2, 8, 4), 2),
    "signals": lambda: Haar((3, 16), 3, spatial=1),
    "frequencies": lambda: DCT((1, 4, 4), bands=3),
    "principal components": lambda: PCA(
        torch.linalg.qr(torch.randn(6, 6))[0], blocks={"subspace": 2, "rest": 4}
    ),
}
each_basis = pytest.mark.parametrize("basis", BASES)


def staged(basis, low=-10.0, **options):
    """Blocks that stop, and are dropped, at equal times."""
    count = len(basis.blocks)
    drop = [1 - k / count for k in range(count)]
    schedule = LogLinear(log_snr_min=low)
    return DiagonalSDE(schedule, basis, [1 / t for t in drop], drop=drop, **options)


def covariance(n, seed=0):
    factor = torch.randn(n, n, generator=torch.Generator().manual_seed(seed)) / n**0.5
    return factor @ factor.mT + 0.1 * torch.eye(n)


def model_on(sde):
    n = sde.basis.dim
    return Gaussian(sde, torch.zeros(sde.basis.event_shape), covariance(n))


@each_basis
def test_samples_have_the_distribution_of_the_data(basis):
    model = model_on(staged(BASES[basis](), low=-14.0))
    mean, spread = sample_moments(ExponentialMultistep(steps=160), model)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-8, rtol=0)
    torch.testing.assert_close(spread, covariance(len(mean)), atol=4e-3, rtol=0)


@each_basis
def test_a_new_stage_keeps_the_retained_groups(basis):  # invariant 37
    sde = staged(BASES[basis](), low=-14.0)
    model, solver = model_on(sde), DDIM(steps=400)
    times, reverse = solver.times(sde), ReverseSDE(model, 0.0)
    noise = torch.randn(200, 0)
    z = noise
    for stage in sde.stages():
        before = z
        z = sde.append(z, stage, Noise(torch.Generator().manual_seed(stage.dim)))
        # the noisy state stays as it is, and what enters is independent noise
        assert torch.equal(z[:, : before.shape[-1]], before)
        z = solver.integrate(reverse, z, -restrict(times, stage), Noise())
        truth = marginal(model, stage.end, stage.dim).variance
        amplification = z.pow(2).mean(0) / truth
        assert (amplification - 1).abs().max() < 5 * (2 / 200) ** 0.5


@each_basis
def test_what_enters_has_the_noise_of_its_band(basis):
    sde = staged(BASES[basis](), scale=torch.rand(BASES[basis]().dim) + 0.5)
    z = torch.zeros(1, 0)
    for stage in sde.stages():
        old, z = z.shape[-1], sde.append(z, stage, _Ones())
        sigma = sde.kernel(torch.tensor([stage.start])).sigma[old : stage.dim]
        torch.testing.assert_close(z[0, old:], sigma)


@pytest.mark.parametrize("solver", [DDIM(40), ExponentialMultistep(40), Heun(40)])
def test_one_group_is_plain_diffusion(solver):  # invariant 38
    basis = Identity((3,))
    plain = DiagonalSDE(LogLinear(), basis)
    same = DiagonalSDE(LogLinear(), basis, drop=[1.0])
    x, y = (
        solver.sample(model_on(sde), (4,), generator=torch.Generator().manual_seed(1))
        for sde in (plain, same)
    )
    assert torch.equal(x, y)


def test_a_multistep_solver_keeps_its_order_across_stages():
    sde = staged(Haar((1, 8, 8), 3), low=-14.0)
    model = model_on(sde)
    generator = torch.Generator

    def samples(steps):
        solver = ExponentialMultistep(steps)
        return solver.sample(model, (8,), generator=generator().manual_seed(0), dtype=torch.float64)

    truth = samples(1280)
    errors = [float((samples(n) - truth).norm()) for n in (60, 120, 240)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.75, orders


@each_basis
def test_density_is_that_of_the_data(basis):
    sde = staged(BASES[basis](), low=-16.0)
    model = model_on(sde)
    n = sde.basis.dim
    x = torch.distributions.MultivariateNormal(torch.zeros(n), covariance(n)).sample((5,))
    events, solver = x.reshape(5, *sde.basis.event_shape), ExponentialMultistep(250)
    found = log_prob(model, events, solver, errors=False)
    truth = model.marginal(torch.tensor([sde.eps])).log_prob(sde.basis(events))
    assert float((found.value - truth).abs().max()) / n < 1e-3
    assert found.evaluations == 250


def test_density_is_normal_between_stages_of_data_it_knows_nothing_of():
    """Exact for any model: a flow with independent Gaussians appended, even a wrong one."""
    sde = staged(Haar((1, 2, 2), 1), low=-3.0)
    model = Gaussian(sde, torch.zeros(1, 2, 2), 0.3 * torch.eye(4))
    solver = ExponentialMultistep(400)
    mean, spread = sample_moments(solver, model)
    own = torch.distributions.MultivariateNormal(mean, spread)
    x = own.sample((6,))
    found = log_prob(model, x.reshape(6, 1, 2, 2), solver, errors=False).value
    torch.testing.assert_close(found, own.log_prob(x), atol=2e-3, rtol=0)


def test_density_integrates_to_one():  # invariant 19
    sde = staged(PCA(torch.eye(2), blocks={"first": 1, "second": 1}), low=-6.0)
    means = torch.tensor([[-0.8, 0.5], [0.9, -0.4]])
    model = GaussianMixture(sde, [0.4, 0.6], means, torch.eye(2).repeat(2, 1, 1) * 0.05)
    side = torch.linspace(-2.5, 2.5, 81)
    x = torch.cartesian_prod(side, side)
    density = log_prob(model, x, ExponentialMultistep(60)).value.exp()
    assert abs(float(density.sum() * (side[1] - side[0]) ** 2) - 1) < 5e-3


def test_independent_groups_factorise():  # invariant 13
    basis = Identity((4,), {"a": 1, "b": 3})
    sde = DiagonalSDE(LogLinear(), basis, [1.0, 2.0], drop=[1.0, 0.5])
    spread = torch.block_diag(covariance(1), covariance(3))
    joint = Gaussian(sde, torch.zeros(4), spread)
    z, t = torch.randn(5, 4), 0.3
    alone = Gaussian(DiagonalSDE(LogLinear(), Identity((1,))), torch.zeros(1), spread[:1, :1])
    torch.testing.assert_close(joint.denoise(z, t)[:, :1], alone.denoise(z[:, :1], t))
    solver = ExponentialMultistep(200)
    other = Gaussian(
        DiagonalSDE(LogLinear(), Identity((3,)), [2.0]), torch.zeros(3), spread[1:, 1:]
    )
    parts = log_prob(alone, z[:, :1], solver).value + log_prob(other, z[:, 1:], solver).value
    torch.testing.assert_close(log_prob(joint, z, solver).value, parts, atol=5e-3, rtol=0)


@settings(max_examples=3)
@given(scales=st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3))
def test_band_scaling_enters_by_its_log_determinant(scales):  # invariant 23
    basis = Haar((1, 4, 4), 2)
    scale = basis.blocks.expand(torch.tensor(scales))
    solver = ExponentialMultistep(24)
    unit = staged(basis)
    scaled = staged(basis, scale=scales)
    spread = covariance(16)
    u = basis(torch.eye(16).reshape(16, 1, 4, 4)).mT
    stretch = u.mT @ torch.diag(scale) @ u
    x = torch.randn(3, 16)
    # both by the same steps: how far they are off the truth is not asked
    plain, wide = (
        log_prob(
            Gaussian(sde, torch.zeros(1, 4, 4), moments),
            events.reshape(3, 1, 4, 4),
            solver,
            trace=ExactTrace(),
            errors=False,
        )
        for sde, moments, events in (
            (unit, spread, x),
            (scaled, stretch @ spread @ stretch, x @ stretch),
        )
    )
    torch.testing.assert_close(wide.value, plain.value - scale.log().sum())


@each_basis
def test_divergence_of_what_is_appended(basis):  # invariant 36
    basis = BASES[basis]()
    x = torch.randn(4, *basis.event_shape)
    z = basis(x)
    for low, tolerance in ((-2.0, math.inf), (-16.0, 1e-4)):
        sde = staged(basis, low=low)
        total = torch.zeros(4)
        for name, t in zip(basis.blocks.sizes, sde.drop, strict=True):
            part = basis.blocks.slices[name]
            alpha, sigma = (v.expand(basis.dim)[part] for v in sde.kernel(torch.tensor([t])))
            q = torch.distributions.Normal(alpha * z[:, part], sigma)
            p = torch.distributions.Normal(torch.zeros_like(sigma), sigma)
            total += torch.distributions.kl_divergence(q, p).sum(-1)
        torch.testing.assert_close(prior_loss(sde, x), total)
        assert float(total.max()) / basis.dim < tolerance


class _Ones(Noise):
    def __call__(self, like):
        return torch.ones_like(like)


class _Exact(Denoising):
    """A stage that knows its denoised mean."""

    def denoise(self, z, t, condition=None):
        return self.network.exact.denoise(z, t)


def exact_stages(sde, spread, **options):
    """A `MultiScale` estimator whose every stage is exact."""
    truth = Gaussian(sde, torch.zeros(sde.basis.event_shape), spread)
    model = MultiScale(sde, [Oracle(truth) for _ in sde.stages()], **options)
    for stage in model.stages:
        stage.__class__ = _Exact
    return model, truth


def test_bound_holds_and_its_gap_on_a_gaussian_is_known():  # invariant 26
    """The mean of the bound, by I-MMSE, for independent components of variance ``v``."""
    basis = Identity((3,), {"a": 1, "b": 2})
    sde = DiagonalSDE(LogLinear(), basis, [1.0, 2.0], drop=[1.0, 0.5])
    v = torch.tensor([1.0, 0.3, 0.02])
    model, _ = exact_stages(sde, torch.diag(v))
    x = torch.randn(40000, 3) * v.sqrt()
    values = bound(model, x, generator=torch.Generator().manual_seed(0))

    def snr(t):
        return readings.log_snr(sde, torch.tensor([t])).exp()

    first = snr(sde.eps)
    last = torch.stack([snr(t)[i] for i, t in enumerate((1.0, 0.5, 0.5))])
    diffusion = (torch.log1p(first * v) - torch.log1p(last * v)).sum() / 2
    expected = (last * v).sum() / 2 + bounds_reconstruction(sde) + diffusion
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean() - expected)) < 5 * error
    entropy = torch.distributions.Normal(torch.zeros(3), v.sqrt()).entropy().sum()
    assert float(entropy) < float(expected) < float(entropy) + 0.02


def bounds_reconstruction(sde):
    alpha, sigma = sde.kernel(torch.tensor([sde.eps]))
    return torch.distributions.Normal(0.0, (sigma / alpha).expand(3)).entropy().sum()


def test_loss_is_a_sum_over_stages_and_components():
    """Scales of different dimension are added up as nats, not averaged one by one."""
    basis = Haar((1, 4, 4), 2)
    model, _ = exact_stages(staged(basis), covariance(16), weighting="likelihood")
    x = torch.randn(512, 1, 4, 4)
    together = model.losses(x, generator=torch.Generator().manual_seed(0))
    noise = Noise(torch.Generator().manual_seed(0))
    apart = [stage.losses(x, None, noise) for stage in model.stages]
    torch.testing.assert_close(together, sum(apart))
    torch.testing.assert_close(
        model.loss(x, generator=torch.Generator().manual_seed(0)), together.mean() / 16
    )


class _Net(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.mix = nn.Linear(size, size)

    def forward(self, x, level):
        return self.mix(x.flatten(1)).reshape(x.shape) * level[:, None, None, None].cos()


def test_networks_see_coefficients_at_their_own_resolution():
    basis = Haar((3, 8, 8), 2)
    sde = staged(basis)
    views = [basis.coarse(2), Packed(basis.coarse(1)), Packed(basis)]
    assert [tuple(view.event_shape) for view in views] == [(3, 2, 2), (12, 2, 2), (12, 4, 4)]
    model = MultiScale(sde, [_Net(view.dim) for view in views], network_bases=views)
    x = torch.randn(2, 3, 8, 8)
    model.loss(x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert DDIM(9).sample(model, (2,)).shape == x.shape


def test_every_stage_hears_the_condition():
    class Told(_Net):
        def forward(self, x, level, condition):
            return condition[:, :, None, None].expand_as(x)

    basis = Haar((3, 8, 8), 2)
    model = MultiScale(
        staged(basis),
        [Told(1)] * 3,
        network_bases=[basis.coarse(2), Packed(basis.coarse(1)), Packed(basis)],
        parametrization="denoised",
    )
    condition = torch.randn(2, 1)
    for stage, denoising in zip(model.sde.stages(), model.stages, strict=True):
        z = torch.zeros(2, stage.dim)
        wanted = denoising.network_basis(
            condition[:, :, None, None].expand(2, *denoising.network_basis.event_shape)
        )
        torch.testing.assert_close(model.denoise(z, stage.end, condition), wanted)
        at = model.sde.at(torch.tensor([[stage.end]]), z)
        (denoiser,) = model.denoisers(at, condition)
        torch.testing.assert_close(denoiser(z), wanted)
    with pytest.raises(TypeError, match="condition"):
        model.losses(torch.zeros(2, 3, 8, 8))
    assert model.losses(torch.zeros(2, 3, 8, 8), condition).shape == (2,)


def test_stages_train_by_themselves():
    basis = Haar((1, 4, 4), 2)
    views = [basis.coarse(2), Packed(basis.coarse(1)), Packed(basis)]
    model = MultiScale(staged(basis), [_Net(view.dim) for view in views], network_bases=views)
    model.stages[1].loss(torch.randn(4, 1, 4, 4)).backward()
    trained = [any(p.grad is not None for p in stage.parameters()) for stage in model.stages]
    assert trained == [False, True, False]


def test_packed_coefficients_are_those_of_the_pyramid():
    for haar in (Haar((3, 8, 4), 2), Haar((2, 16), 3, spatial=1), Haar((8, 8), 1)):
        packed, x = Packed(haar), torch.randn(2, 5, *haar.event_shape)
        z = haar(x)
        y = packed.inverse(z)
        torch.testing.assert_close(packed(y), z)
        low = haar.coarse(1).inverse(z[..., : haar.coarse(1).dim])
        channels = haar.shape(1)[: -len(haar.axes)].numel()
        first = y.narrow(2, 0, channels)
        torch.testing.assert_close(first.reshape(low.shape), low)


def test_adaptive_solvers_run_in_stages():
    sde = staged(Haar((1, 4, 4), 2), low=-14.0)
    model = model_on(sde)
    _, spread = sample_moments(TorchDiffEq(rtol=1e-7, atol=1e-7), model)
    torch.testing.assert_close(spread, covariance(16), atol=2e-3, rtol=0)


def test_a_weighting_weighs_every_stage():
    class Half(nn.Module):
        def forward(self, x, level):
            return x / 2

    sde = staged(Haar((1, 4, 4), 1))
    model = MultiScale(sde, [Half() for _ in sde.stages()])
    x = torch.randn(3, 1, 4, 4)

    def losses(weight):
        generator = torch.Generator().manual_seed(0)
        return model.losses(x, None, generator, lambda at: torch.full_like(at.sigma, weight))

    torch.testing.assert_close(losses(2.0), 2 * losses(1.0))


def test_every_sample_has_what_enters_from_its_own_generator():
    sde = staged(Haar((1, 4, 4), 1))
    first, second = sde.stages()
    z = torch.randn(2, first.dim)

    def enter(rows, seeds):
        return sde.append(z[rows], second, Noise([torch.Generator().manual_seed(s) for s in seeds]))

    both = enter([0, 1], (5, 6))
    assert both.shape == (2, second.dim)
    assert torch.equal(both[1:], enter([1], (6,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["coefficients", "events", "packed"])
def test_networks_are_made_for_what_they_see(name, dtype):
    """By one maker or by one for each, and they are those that would have been given."""
    sde, shapes = staged(Haar((1, 8, 8), 2)), []

    def make(shape):
        shapes.append(tuple(shape))
        torch.manual_seed(sum(shape))
        return ResidualMLP(shape, 8, 1)

    views = [view(name)(sde.basis, stage.dim) for stage in sde.stages()]
    given = MultiScale(sde, [make(v.event_shape) for v in views], network_bases=views)
    models = [
        MultiScale(sde, make, network_bases=name),
        MultiScale(sde, [make] * len(views), network_bases=name),
    ]
    assert shapes == 3 * [tuple(v.event_shape) for v in views]
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = given.to(dtype).loss(x, generator=torch.Generator().manual_seed(1))
    for model in models:
        found = model.to(dtype).loss(x, generator=torch.Generator().manual_seed(1))
        assert torch.equal(found, expected)


def test_one_module_is_shared_by_all_stages():
    class Half(torch.nn.Module):
        def forward(self, x, level):
            return x / 2

    shared = Half()
    model = MultiScale(staged(Haar((1, 8, 8), 2)), shared)
    assert all(stage.network is shared for stage in model.stages)


def test_a_view_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"view: .*packed"):
        MultiScale(staged(Haar((1, 8, 8), 2)), torch.nn.Identity(), network_bases="packd")
