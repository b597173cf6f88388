"""Where there is no noise the state is known: what every estimator says there, and no NaN."""

import itertools

import pytest
import readings
import torch
from torch import nn

from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    GaussianMixture,
    Guidance,
    MultiScale,
    ResidualMLP,
    Truncated,
)
from scoresde import (
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    DirectScoreEstimator,
    Haar,
    Identity,
    Joint,
    Learned,
    LogLinear,
    Schedule,
    ScoreEstimator,
    SubVP,
    condition,
)
from scoresde.objectives.parametrization import PARAMETRIZATIONS, Affine
from scoresde.objectives.weighting import WEIGHTINGS

QUESTIONS = ("denoise", "noise", "score", "velocity")
every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class DenoiseOnly(ScoreEstimator):
    """As a user writes it, with a quotient that is 0/0 at time 0."""

    def denoise(self, z, t, condition=None):
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z), z.shape[-1]))
        noise = sigma * z / (alpha**2 + sigma**2).sqrt()
        return (z - sigma * noise / sigma) / alpha


class ScoreOnly(DirectScoreEstimator):
    """Of a point mass: infinite at time 0."""

    def score(self, z, t, condition=None):
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z), z.shape[-1]))
        return (alpha * 0.3 - z) / sigma**2


class Conditioned(ScoreEstimator):
    def denoise(self, z, t, condition=None):
        return z / 2 + condition


def sde(*speeds):
    return DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), speeds or 1.0)


def network(n=2, noise_levels=1):
    torch.manual_seed(0)
    net = ResidualMLP((n,), 8, 1, noise_levels=noise_levels)
    nn.init.normal_(net.output_layer[1].weight, std=0.3)
    return net


def own_form(alpha, sigma, data_std):
    """A user's own, infinite where there is no noise."""
    return Affine(alpha, 1 / sigma)


SINGULAR = torch.ones(2, 2)
MAKE = {
    "gaussian": lambda s: Gaussian(s, torch.zeros(2), torch.eye(2)),
    "gaussian, singular": lambda s: Gaussian(s, torch.ones(2), SINGULAR),
    "gaussian, a point": lambda s: Gaussian(s, torch.ones(2), torch.zeros(2, 2)),
    "mixture": lambda s: GaussianMixture(s, [0.3, 0.7], torch.eye(2), torch.eye(2).expand(2, 2, 2)),
    "mixture, singular": lambda s: GaussianMixture(
        s, [0.3, 0.7], torch.eye(2), torch.stack([SINGULAR, torch.zeros(2, 2)])
    ),
    "mixture of points": lambda s: GaussianMixture(
        s, [0.5, 0.5], torch.eye(2), torch.zeros(2, 2, 2)
    ),
    "truncated": lambda s: Truncated(s, -1.0, [2.0, torch.inf]),
    "truncated, with a slope": lambda s: Truncated(
        s, [-torch.inf, -1.0], [torch.inf, 1.0], slope=torch.tensor([[0.0, 0.7], [0.0, 0.0]])
    ),
    "guided": lambda s: Guidance(
        Gaussian(s, torch.zeros(2), torch.eye(2)), lambda x: x.sum(-1, True), torch.ones(1), 0.1
    ),
    "vector time": lambda s: Denoising(s, network(noise_levels=2), observe="blocks"),
    "baseline": lambda s: Denoising(s, network(), baseline=Truncated(s, -1.0, 1.0)),
    "a form of one's own": lambda s: Denoising(s, network(), parametrization=own_form),
    "denoise only": DenoiseOnly,
    "score only": ScoreOnly,
    **{
        f"denoising, {form}": lambda s, form=form: Denoising(
            s, network(), parametrization=form, data_mean=0.4, data_std=2.0
        )
        for form in PARAMETRIZATIONS
    },
}
OWN = ("denoise only", "score only")
every_estimator = pytest.mark.parametrize("name", MAKE)


def answered(model, question, z, t, condition=None):
    """An answer and its gradients in the state and the parameters, all finite."""
    z = z.clone().requires_grad_()
    answer = getattr(model, question)(z, t, condition)
    inputs = [z, *(p for p in model.parameters() if p.requires_grad)]
    slopes = torch.autograd.grad(answer.sin().sum(), inputs, allow_unused=True)
    assert answer.isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes if slope is not None)
    return answer.detach()


STATES = torch.tensor([[0.3, -0.8], [1.0, 1.0], [-4.0, 7.0]])


@every_precision
@every_estimator
def test_at_time_0_the_state_is_the_answer(name, dtype):
    model, z = MAKE[name](sde()).to(dtype), STATES.to(dtype)
    times = [0.0, 0, torch.zeros(()), torch.zeros(3), torch.zeros(3, 2)]
    for question, t in itertools.product(QUESTIONS, times):
        if f"{question} only" == name:
            continue  # that is what its author says
        wanted = z if question == "denoise" else torch.zeros_like(z)
        said = f"{question} at {t}: {{}}".format
        torch.testing.assert_close(answered(model, question, z, t), wanted, msg=said)


@every_precision
@pytest.mark.parametrize("name", [name for name in MAKE if name not in OWN])
@pytest.mark.parametrize("clean", [False, True])
def test_clean_components_are_the_answer(name, clean, dtype):
    """By a speed of 0, or a time of their own of 0; the other one goes on diffusing."""
    model, z = MAKE[name](sde() if clean else sde(0.0, 1.0)).to(dtype), STATES.to(dtype)
    t = torch.tensor([[0.0, 0.5]]).expand(3, 2) if clean else 0.5
    for question in QUESTIONS:
        found = answered(model, question, z, t)
        wanted = z if question == "denoise" else torch.zeros_like(z)
        torch.testing.assert_close(found[:, 0], wanted[:, 0])
        assert (found[:, 1] != 0).any()


@every_precision
def test_what_is_said_just_before_goes_on_at_time_0(dtype):
    """``D -> z`` and ``sigma``-sized ``eps`` on average over the noise: its mean is 0."""
    model = Gaussian(sde(), torch.zeros(2), torch.eye(2))
    z = STATES.to(dtype)
    for t in (1e-4, 1e-6, 1e-8):
        sigma = float(model.sde.kernel(torch.tensor([t])).sigma)
        near = model.denoise(z, t) - z
        assert near.abs().max() < 10 * sigma + 1e-6
        xi = torch.randn(4000, 2, dtype=dtype)
        noise = model.noise(z[:1] + sigma * xi, t).mean(0)
        assert noise.abs().max() < 0.1


@every_precision
@pytest.mark.parametrize("clean", [False, True])
def test_conditions_are_the_answer(clean, dtype):
    joint = Joint(y=(1,), x=(1,))
    process = DiagonalSDE(VP(), joint, None or joint.per_block(y=float(clean), x=1.0))
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    for model in (
        Gaussian(process, torch.zeros(2), covariance),
        Gaussian(process, torch.ones(2), SINGULAR),
    ):
        known = condition(model, clean=clean, y=torch.ones(3, 1, dtype=dtype)).to(dtype)
        z = known.sde.basis(STATES[:, :1].to(dtype))
        for question in QUESTIONS:
            assert answered(known, question, z, 0.5)[:, 0].eq(float(question == "denoise")).all()
            wanted = z if question == "denoise" else torch.zeros_like(z)
            torch.testing.assert_close(answered(known, question, z, 0.0), wanted)


@every_precision
def test_classifier_free_and_multi_scale_answers(dtype):
    guided, c = (
        ClassifierFree(Conditioned(sde()), torch.zeros(1), guidance=3.0),
        torch.ones(3, 1, dtype=dtype),
    )
    for question in QUESTIONS[1:]:
        assert answered(guided, question, STATES.to(dtype), 0.0, c).eq(0).all()
    bands = DiagonalSDE(Cosine(), Haar((4,), 1), drop=[1.0, 0.5])
    model = MultiScale(bands, [network(2), network(4)]).to(dtype)
    z = torch.cat([STATES, STATES], -1).to(dtype)
    for question in QUESTIONS:
        wanted = z if question == "denoise" else torch.zeros_like(z)
        torch.testing.assert_close(answered(model, question, z, 0.0), wanted)


class Decay(Schedule):
    """A user's own, whose derivatives at time 0 are infinite."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(3.0))

    def log_alpha(self, t):
        return -self.rate.to(t) * t

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))


def parameter(value):
    return nn.Parameter(torch.tensor(value))


LEARNED = {
    "VP": lambda: VP(parameter(0.1), parameter(20.0)),
    "SubVP": lambda: SubVP(parameter(0.1), parameter(20.0)),
    "VE": lambda: VE(parameter(0.01), parameter(50.0)),
    "Cosine": lambda: Cosine(parameter(-15.0)),
    "LogLinear": lambda: LogLinear(parameter(10.0), parameter(-10.0)),
    "Learned": lambda: Learned(2, log_snr_max=parameter(10.0)),
    "Decay": Decay,
}


@pytest.mark.covering(2)
@every_precision
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", LEARNED)
def test_schedules_learn_beside_components_without_noise(name, weighting, dtype):
    """Of a loss, an answer, a step and a bridge; by speed, and by what is shown clean."""
    for speeds, settings in (([1.0, 0.0], {}), ([1.0, 1.0], {"observe": "components"})):
        process = DiagonalSDE(LEARNED[name](), Identity((2,), {"a": 1, "b": 1}), speeds)
        net = ResidualMLP((2,), 8, 1, noise_levels=2 if settings else 1)
        model = Denoising(process, net, weighting=weighting, **settings).to(dtype)
        x = torch.randn(64, 2, dtype=dtype)
        ts = torch.tensor([[0.0, 0.2], [0.3, 0.6]], dtype=dtype)
        now = readings.reverse(process, torch.tensor([[0.5]]).to(x), x, 1.0)
        step = readings.reverse_propagator(process, ts[1:], ts[:1], x, 1.0)
        kernels = (
            readings.bridge(process, *ts.split(1)),
            readings.transition(process, *ts.split(1)),
            step,
        )
        values = {
            "loss": model.loss(x, generator=torch.Generator().manual_seed(0)),
            "score": model.score(x, 0.5).square().sum(),
            "slope": now.cast(now.slope).sum(),
            "response": now.cast(now.response).sum(),
            "rate of lengths": now.cast(now.length_rate).sum(),
            "kernels": sum(
                v[v.isfinite()].sum() for kernel in kernels for v in kernel if v is not None
            ),
            "diffusion": process.g(torch.tensor(0.5).to(x), x).sum(),
        }
        for what, value in values.items():
            learned = list(process.schedule.parameters())
            slopes = torch.autograd.grad(value, learned, allow_unused=True, retain_graph=True)
            finite = [slope.isfinite().all() for slope in slopes if slope is not None]
            assert value.isfinite(), what
            assert all(finite), what
            assert finite, what


@every_precision
@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_a_signal_too_weak_for_a_number_is_none(form, dtype):
    """Float32 has no ``e^-200``: answers stay finite."""
    process = DiagonalSDE(VP(beta_max=900.0), Identity((2,)))
    model = Denoising(process, network(), parametrization=form).to(dtype)
    for question in QUESTIONS:
        answered(model, question, STATES.to(dtype), 1.0)
