"""Published methods as settings of the core: their marginals, samples and likelihoods."""

import blurring_diffusion
import exact_moments
import inverse_heat_dissipation
import pytest
import readings
import subspace_diffusion
import torch

import scoresde
from estimators import Gaussian
from scoresde import Cosine, ProbabilityFlow
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (1, 4, 4)
ENDS = [1.0, 0.5, 0.25]


def gaussian():
    """A mean and a covariance that no basis here makes diagonal; fine detail is smaller."""
    g = torch.Generator().manual_seed(3)
    dct = scoresde.DCT(SHAPE)
    mixed = torch.randn(16, 16, generator=g) / 8 + torch.eye(16)
    factor = dct.inverse(mixed / (1 + dct.frequencies)).reshape(16, 16)
    return torch.randn(SHAPE, generator=g) / 2, factor.mT @ factor


def blurring():
    return blurring_diffusion.blurring_diffusion(SHAPE, blur=2.0)


def heat():
    return inverse_heat_dissipation.inverse_heat_dissipation(SHAPE, noise=0.05)


def subspace():
    mean, covariance = gaussian()
    data = torch.distributions.MultivariateNormal(mean.flatten(), covariance)
    images = data.sample((500,)).reshape(500, *SHAPE)
    return subspace_diffusion.subspace_diffusion(images, {"a": 3, "b": 5, "c": 8}, ENDS)


SETTINGS = [blurring, heat, subspace]
GRIDS = {heat: inverse_heat_dissipation.geometric}


def solver(setting, steps, eta=0.0):
    grid = GRIDS.get(setting, "log_snr")
    return ExponentialMultistep(steps, eta=eta, grid=grid)


@pytest.fixture(params=SETTINGS, ids=lambda s: s.__name__)
def setting(request):
    return request.param


def model_of(setting):
    sde = setting()
    model = Gaussian(sde, *gaussian())
    # heat dissipation has no other prior; elsewhere only the solver's error is to remain
    sde.prior = exact_moments.marginal(model, sde.T, sde.stages()[0].dim)
    return model


def times(sde, count=7):
    t = sde.eps + (sde.T - sde.eps) * torch.linspace(0, 1, count) ** 2
    # rates jump where a clock stops or starts
    return (t * (1 - 1e-6)).clamp(min=sde.eps * (1 + 1e-6)).unsqueeze(-1)


def test_rates_are_the_derivatives_of_the_kernel(setting):
    sde = setting()
    t, n = times(sde), sde.basis.dim
    (alpha, sigma), (d_alpha, d_sigma) = torch.func.jvp(
        lambda t: tuple(v.expand(len(t), n) for v in sde.kernel(t)), (t,), (torch.ones_like(t),)
    )
    f, g2 = readings.rates(sde, t)
    assert torch.allclose(d_alpha, f * alpha, atol=1e-12)
    assert torch.allclose(2 * sigma * d_sigma, 2 * f * sigma**2 + g2, atol=1e-12)
    assert (g2 >= 0).all()


def test_kernels_compose(setting):
    sde = setting()
    s, t = times(sde)[:-1], times(sde)[1:]
    now, then, step = sde.kernel(s), sde.kernel(t), readings.transition(sde, s, t)
    assert torch.allclose(step.alpha * now.alpha, then.alpha.expand_as(step.alpha))
    spread = (step.alpha * now.sigma) ** 2 + step.sigma**2
    assert torch.allclose(spread, (then.sigma**2).expand_as(spread))


def test_fokker_planck(setting):
    """``d log p/dt = -div v - v.s`` for the flow ``v`` and the score ``s`` of the exact model."""
    model = Gaussian(setting(), *gaussian())
    sde = model.sde
    flow = ProbabilityFlow(model)
    for t in times(sde)[1:-1]:
        t = t[0]
        dim = next(stage.dim for stage in sde.stages() if stage.end <= t < stage.start)
        z = model.marginal(t.reshape(1), dim).sample()

        def density(t, z=z, dim=dim):
            return model.marginal(t.reshape(1), dim).log_prob(z)

        change = torch.func.jacrev(density)(t)
        jacobian = torch.func.jacrev(lambda z, t=t: flow.f(t, z[None])[0])(z)
        transport = (flow.f(t, z[None]) * model.score(z[None], t)).sum()
        torch.testing.assert_close(change, -jacobian.trace() - transport, rtol=1e-6, atol=1e-6)


def errors(model, solver):
    """Of the mean and the covariance of samples, relative to the data's size; exact."""

    def run(rows, noise):
        return solver.sample(model, (rows,), generator=noise)

    mean, covariance = exact_moments.moments(run)
    truth = exact_moments.marginal(model, model.sde.eps)
    true_mean, true_covariance = exact_moments.events(model, truth)
    size = true_covariance.trace()
    return (mean - true_mean).norm() / size.sqrt(), (covariance - true_covariance).norm() / size


def test_samples_have_the_moments_of_the_data(setting):
    model = model_of(setting)
    _, coarse = errors(model, solver(setting, 100))
    mean, covariance = errors(model, solver(setting, 200))
    # what dropped blocks still had of a mean is lost between stages, however many steps
    assert mean < (4e-3 if setting is subspace else 1e-12)
    assert covariance < 1e-3
    # where nothing was lost between stages, at second order or better
    assert coarse / covariance > 3 or covariance < 2e-4


def test_the_reverse_sde_has_the_same_moments(setting):
    model = model_of(setting)
    mean, covariance = errors(model, solver(setting, 400, eta=1.0))
    assert mean < 1e-4
    assert covariance < 5e-4


def test_likelihood_is_the_closed_form(setting):
    model = model_of(setting)
    sde = model.sde
    truth = exact_moments.marginal(model, sde.eps)
    z = truth.sample((5,))
    events = sde.basis.inverse(z)
    found = scoresde.log_prob(model, events, solver(setting, 150), errors=False).value
    torch.testing.assert_close(found, truth.log_prob(z), rtol=0, atol=0.06)


def test_blurring_without_blur_is_its_base():
    t = torch.linspace(1e-3, 1, 9).unsqueeze(-1)
    for plain, blurred in zip(
        Cosine()(t), blurring_diffusion.Blurring(Cosine(), [0.0, 1.0], blur=0.0)(t), strict=True
    ):
        torch.testing.assert_close(plain.expand(9, 2), blurred.expand(9, 2))


def test_blurring_dissipates_fine_frequencies_first_and_to_the_floor():
    schedule = blurring_diffusion.Blurring(Cosine(), [0.0, 1.0, 2.0], blur=20.0, floor=1e-3)
    t = torch.linspace(0.05, 1, 20).unsqueeze(-1)
    kept = (schedule.log_alpha(t) - Cosine().log_alpha(t)).exp()
    assert (kept[:, 0] == 1).all()
    assert (kept.diff(dim=-1) <= 0).all()
    assert (kept.diff(dim=0) <= 1e-15).all()
    torch.testing.assert_close(kept[-1, 1:], torch.full((2,), 1e-3))
    tau = (20 * torch.sin(torch.pi / 2 * t[2, 0]) ** 2) ** 2 / 2
    torch.testing.assert_close(
        (kept[2] - 1e-3) / (1 - 1e-3), torch.exp(-(schedule.frequencies**2) * tau)
    )


def test_heat_dissipation_rates():
    sde = heat()
    f, g2 = readings.rates(sde, torch.tensor([2.0]))
    torch.testing.assert_close(f, -(sde.basis.frequencies**2))
    torch.testing.assert_close(g2, 2 * 0.05**2 * sde.basis.frequencies**2)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.0])
def test_heat_dissipation_has_noise_at_zero_and_a_component_that_stands_still(eta):
    sde = heat()
    zero = torch.zeros(1)
    alpha, sigma = sde.kernel(zero)
    assert (alpha == 1).all()
    assert (sigma == 0.05).all()
    step = readings.transition(sde, zero, torch.tensor([sde.T]))
    assert step.alpha[0] == 1
    assert step.sigma[0] == 0
    bridge = readings.bridge(sde, zero, torch.tensor([sde.T]))
    # the noise is there from the start and not drawn anew: z_s is z_t, whatever z_0
    torch.testing.assert_close(
        torch.stack([v.expand(16)[0] for v in bridge]), torch.tensor([1.0, 0, 0])
    )
    ts = torch.tensor([[sde.T], [1.0], [0.0]])
    p = readings.reverse_propagator(sde, ts[:-1], ts[1:], torch.zeros(1, 16), eta)
    assert (p.decay[:, 0] == 1).all()
    assert (p.gain[:, 0] == 0).all()
    assert (p.h[:, 0] == 0).all()
    assert p.noise_std is None or (p.noise_std[:, 0] == 0).all()
    assert all(torch.isfinite(v).all() for v in p if v is not None)


def test_heat_dissipation_starts_from_blurred_images():
    sde = heat()
    images = torch.randn(50, *SHAPE)
    prior = inverse_heat_dissipation.blurred(sde, images)
    alpha, sigma = sde.kernel(torch.tensor([sde.T]))
    rows = alpha * sde.basis(images)
    torch.testing.assert_close(prior.mean, rows.mean(0))
    torch.testing.assert_close(prior.variance, rows.var(0, correction=0) + sigma**2)
    # the coarse brightness survives, the rest is gone
    assert prior.variance[0] > 0.1
    assert (prior.variance[4:] < 0.01).all()


def test_subspace_carries_the_small_state_longest_and_loses_little_by_it():
    sde = subspace()
    assert [stage.dim for stage in sde.stages()] == [3, 8, 16]
    model = Gaussian(sde, *gaussian())
    for stage, entering in [(sde.stages()[1], slice(3, 8)), (sde.stages()[2], slice(8, 16))]:
        alpha, sigma = sde.kernel(torch.tensor([stage.start]))
        second = model.covariances[0].diagonal() + model.means[0] ** 2
        snr = (alpha / sigma) ** 2
        assert ((snr * second)[entering].sum() / 2) < 1e-3


@pytest.mark.parametrize(
    "example", [blurring_diffusion, inverse_heat_dissipation, subspace_diffusion]
)
def test_main_reports(example, capsys):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        example.main()
    finally:
        torch.set_default_dtype(before)
    assert "error of the mean" in capsys.readouterr().out
