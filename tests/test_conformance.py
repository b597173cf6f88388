"""What is registered obeys the laws that plugins inherit, and what breaks them is found out."""

import attrs
import pytest
import torch
from models import OrnsteinUhlenbeck

from estimators import (
    Denoising,
    Gaussian,
    GaussianMixture,
    LinearGuidance,
    ResidualMLP,
    Truncated,
)
from scoresde import (
    DCT,
    EDM,
    PCA,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    FixedStep,
    Haar,
    Identity,
    Learned,
    LogLinear,
    Noise,
    RectifiedFlow,
    Schedule,
    ScoreEstimator,
    SubVP,
    plugins,
)
from scoresde.testing import BasisLaws, EstimatorLaws, ScheduleLaws, SDELaws, SolverLaws
from solvers import DDIM, EulerMaruyama


def bed(**settings):
    return DiagonalSDE(VP(), Identity((3,), {"a": 2, "b": 1}), [1.0, 0.6], **settings)


def denoising():
    torch.manual_seed(0)
    network = ResidualMLP((3,), 16, 1)
    torch.nn.init.normal_(network.leave[1].weight, std=0.3)
    return Denoising(bed(), network)


def trained_gaussian():
    return Gaussian(bed(), torch.tensor([1.0, 0.0, -1.0]), torch.eye(3) + 0.3)


MAKE = {
    "schedules": {
        "cosine": Cosine,
        "edm": EDM,
        "learned": lambda: Learned(2),
        "log-linear": lambda: LogLinear([9.0, 12.0], -8.0),
        "rectified-flow": RectifiedFlow,
        "sub-vp": SubVP,
        "ve": lambda: VE(0.01, [20.0, 50.0]),
        "vp": lambda: VP(0.1, [10.0, 20.0]),
    },
    "bases": {
        "dct": lambda: DCT((2, 4), None, 3),
        "haar": lambda: Haar((2, 4, 4), 2),
        "identity": lambda: Identity((2, 3)),
        "pca": lambda: PCA(torch.linalg.qr(torch.eye(4).double() + 0.3)[0]),
    },
    "sdes": {"diagonal": bed},
    "estimators": {
        "denoising": denoising,
        "gaussian": trained_gaussian,
        "gaussian-mixture": lambda: GaussianMixture(
            bed(), torch.tensor([0.3, 0.7]), torch.eye(3)[:2], torch.eye(3).expand(2, 3, 3)
        ),
        "truncated": lambda: Truncated(bed(), [-1.0, 0.0, -2.0], [0.5, 3.0, 2.0], 0.3, [0.7, 2.0]),
    },
    "solvers": {name: plugins.get("solvers", name) for name in plugins.available("solvers")},
}
MORE = {
    "sdes": {
        "dropping": lambda: DiagonalSDE(LogLinear(), Haar((4,), 1), drop=[1.0, 0.5]),
        "stopping": lambda: DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 2.0]),
        "clean": lambda: DiagonalSDE(VE(), Identity((2,), {"a": 1, "b": 1}), [1.0, 0.0]),
        "drift and diffusion only": lambda: OrnsteinUhlenbeck((2,)),
    },
    "estimators": {
        "guided": lambda: LinearGuidance(
            trained_gaussian(), lambda x: x[..., :1], torch.linspace(-1, 1, 1).double(), 0.5
        ),
    },
}
LAWS = {
    "schedules": ScheduleLaws,
    "bases": BasisLaws,
    "sdes": SDELaws,
    "estimators": EstimatorLaws,
    "solvers": SolverLaws,
}
ADAPTIVE = ("adaptive", "torchdiffeq")
EXACT = ("gaussian", "gaussian-mixture", "truncated")


def conforming(group, name, build):
    """The laws of a group, about one of its names."""
    laws = LAWS[group]
    body = {"make": lambda self, *args: build(*args)}
    if group == "solvers":
        body = {
            "make": lambda self, steps, eta: build(steps, eta=eta),
            "adaptive": name in ADAPTIVE,
        }
    if group == "estimators":
        body["exact"] = name in (*EXACT, "broken")
    return type(f"Test_{group}_{name}".replace("-", "_").replace(" ", "_"), (laws,), body)


for _group in LAWS:
    for _name, _build in {**MAKE[_group], **MORE.get(_group, {})}.items():
        _laws = conforming(_group, _name, _build)
        globals()[_laws.__name__] = _laws
del _laws


@pytest.mark.parametrize("group", LAWS)
def test_everything_registered_is_here(group):
    built_in = {n for n, p in plugins.available(group).items() if p.distribution == "scoresde"}
    assert set(MAKE[group]) == built_in


# What is broken, and the law that says so.


class HalfRate(VP):
    def rates(self, t):
        f, g2 = super().rates(t)
        return f, g2 / 2


class NotClean(VE):
    """As codes that do not subtract ``sigma_min^2`` have it."""

    def sigma(self, t):
        low, high = self.sigma_min.to(t), self.sigma_max.to(t)
        return low * (high / low) ** t

    log_snr, rates = Schedule.log_snr, Schedule.rates


class NoRoot(VP):
    def sigma(self, t):
        return super().sigma(t) ** 2


class Stretched(Identity):
    def analyse(self, x):
        return 2 * super().analyse(x)

    def synthesise(self, z):
        return super().synthesise(z) / 2


class WrongSign(DiagonalSDE):
    def f(self, t, y):
        return -super().f(t, y)


class TwiceTheScore(OrnsteinUhlenbeck):
    def marginal_forcing(self, t, z, estimator, eta, condition):
        score = estimator.score(z, t, condition)
        return self.f(t, z) - (1 + eta**2) * self.g(t, z) ** 2 * score


class Entangled(OrnsteinUhlenbeck):
    def g(self, t, y):
        return (1 + y.sum(-1, keepdim=True) ** 2).sqrt().expand_as(y)


class Crowd(OrnsteinUhlenbeck):
    def f(self, t, y):
        return -y + 0.1 * y.mean(0)


class Forgotten(OrnsteinUhlenbeck):
    """Integrates its linear part, and leaves it to the solver once more."""

    def propagator(self, t, s, like):
        step = super().propagator(t, s, like)
        return step._replace(decay=torch.exp(-step.h))


class WideBridge(DiagonalSDE):
    def bridge(self, s, t, dim=None):
        found = super().bridge(s, t, dim)
        return found._replace(sigma=1.1 * found.sigma)


class LateLaw(DiagonalSDE):
    def marginal_propagator(self, t, s, like, eta):
        found = super().marginal_propagator(t, s, like, eta)
        return found._replace(gain=found.gain + 0.1 * found.h)


class Flipped(Gaussian):
    def score(self, z, t, condition=None):
        return -super().score(z, t, condition)


class Company(Gaussian):
    def score(self, z, t, condition=None):
        return super().score(z, t, condition) + 0.1 * z.mean(0)


class Twice(Gaussian):
    """Consistent with itself, but the score of no data."""

    denoise = ScoreEstimator.denoise

    def score(self, z, t, condition=None):
        return 2 * super().score(z, t, condition)


class NoiseForClean(Twice):
    """A network's noise, taken for the denoised mean."""

    score = ScoreEstimator.score

    def denoise(self, z, t, condition=None):
        return Gaussian.noise(Gaussian(self.sde, self.means[0], self.covariances[0]), z, t)


class Detached(Gaussian):
    def denoise(self, z, t, condition=None):
        return super().denoise(z.detach(), t, condition)

    score = ScoreEstimator.score


class OneTime(Gaussian):
    def score(self, z, t, condition=None):
        return super().score(z, torch.as_tensor(t).flatten()[0], condition)


class Hidden(Gaussian):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = torch.ones(3)


class OwnNoise(Denoising):
    def loss(self, x, condition=None, generator=None):
        return super().loss(x, condition)


class WrongTarget(Denoising):
    """Minus the noise is what its network learns."""

    def loss(self, x, condition=None, generator=None):
        noise, z = Noise.of(generator), self.sde.basis(x)
        t, xi = 0.01 + 0.98 * noise.uniform(z[:, 0]), noise(z)
        return (self.noise(self.sde.diffuse(z, t, xi), t) + xi).square().mean()


def learner(kind):
    torch.manual_seed(0)
    return kind(bed(), ResidualMLP((3,), 16, 1))


@attrs.frozen
class Strong(EulerMaruyama):
    strong_order = 1.5


@attrs.frozen
class Short(DDIM):
    def walk(self, sde, y, ts, noise, memory=None):
        yield from super().walk(sde, y, ts[:-1], noise, memory)


@attrs.frozen
class Narrow(DDIM):
    """Takes what it is told of the linear part for all there is."""

    def step(self, sde, y, step, noise, memory):
        return step.decay * y + step.gain * step.force(y) * (step.decay != 1), memory


@attrs.frozen
class Leaking(DDIM):
    def step(self, sde, y, step, noise, memory):
        end, memory = super().step(sde, y, step, noise, memory)
        return end + 0.01 * (step.s - step.t), memory


@attrs.frozen
class Doubling(DDIM):
    def transport(self, density, z, ts, noise):
        end, trace = super().transport(density, z, ts, noise)
        return end, 2 * trace


@attrs.frozen
class Alarmed(FixedStep):
    """Halves its steps where some sample is far away."""

    order, weak_order = 1.0, None

    def step(self, sde, y, step, noise, memory):
        parts = 1 + int(y.abs().max() > 5)
        h = (step.s - step.t) / parts
        for i in range(parts):
            y = y + h * sde.f(step.t + i * h, y)
        return y, None


@attrs.frozen
class Boastful(DDIM):
    order = 2.0


@attrs.frozen
class Deaf(DDIM):
    def step(self, sde, y, step, noise, memory):
        end, memory = super().step(sde, y, step, noise, memory)
        return end + 1e-6 * torch.randn_like(y), memory


@attrs.frozen
class Loud(DDIM):
    def step(self, sde, y, step, noise, memory):
        end, memory = super().step(sde, y, step, noise, memory)
        return (end if step.noise is None else end + 0.5 * step.noise * noise(y)), memory


def gaussian(kind):
    return kind(bed(), torch.zeros(3), torch.eye(3) + 0.3)


@pytest.mark.parametrize(
    ("laws", "build", "test", "words"),
    [
        (ScheduleLaws, HalfRate, "rates_are_derivatives", "g\\^2 = "),
        (ScheduleLaws, NoRoot, "rates_are_derivatives", "g\\^2 = "),
        (BasisLaws, lambda: Stretched((2,)), "it_is_orthonormal", "orthonormal"),
        (
            SDELaws,
            lambda: WrongSign(VP(), Identity((2,))),
            "the_kernel_obeys_the_moment_equations",
            "alpha' = f alpha",
        ),
        (SDELaws, lambda: LateLaw(VP(), Identity((2,))), "a_step_is_two_halves", "gain"),
        (EstimatorLaws, lambda: gaussian(Flipped), "its_answers_are_one_answer", "Tweedie"),
        (
            EstimatorLaws,
            lambda: gaussian(Company),
            "a_sample_does_not_hear_its_neighbours",
            "does not depend on the others",
        ),
        (ScheduleLaws, NotClean, "data_are_clean_at_time_0", "sigma\\(0\\) = 0"),
        (SDELaws, lambda: TwiceTheScore((2,)), "the_reverse_equations", "g\\^2 s"),
        (SDELaws, lambda: Entangled((2,)), "noise_is_diagonal", "i-th component only"),
        (SDELaws, lambda: Crowd((2,)), "samples_stand_alone", "f of a sample"),
        (SDELaws, lambda: Forgotten((2,)), "a_short_step_is_the_equation", "decay, gain"),
        (SDELaws, lambda: WideBridge(VP(), Identity((2,))), "transitions_compose", "bridge"),
        (EstimatorLaws, lambda: gaussian(Twice), "exact_scores_obey_fokker_planck", "Fokker"),
        (
            EstimatorLaws,
            lambda: gaussian(NoiseForClean),
            "exact_scores_obey_fokker_planck",
            "Fokker",
        ),
        (
            EstimatorLaws,
            lambda: gaussian(Detached),
            "its_derivative_is_that_of_its_values",
            "derivative of the score",
        ),
        (EstimatorLaws, lambda: gaussian(OneTime), "one_time_is_one_per_sample", "own time"),
        (EstimatorLaws, lambda: gaussian(Hidden), "saved_and_loaded", "buffers.*shift"),
        (
            EstimatorLaws,
            lambda: learner(OwnNoise),
            "its_loss_hears_its_generator_only",
            "generator that is given",
        ),
        (EstimatorLaws, lambda: learner(WrongTarget), "it_learns", "minimises the loss"),
        (SolverLaws, Strong, "the_strong_order_it_declares", "strong order declared, 1.5"),
        (SolverLaws, Short, "a_walk_shows_where_it_has_been", "every step"),
        (SolverLaws, Narrow, "drift_and_diffusion_are_enough", "dy = -y dt"),
        (SolverLaws, Leaking, "clean_components_stay", "clean components"),
        (SolverLaws, Doubling, "log_densities_are_carried_along", "log_prob"),
        (SolverLaws, Alarmed, "a_sample_has_a_generator_of_its_own", "batch mates"),
        (SolverLaws, Boastful, "the_order_it_declares", "order declared, 2: found 1.0"),
        (SolverLaws, Deaf, "the_same_seed_gives_the_same_samples", "same seed"),
        (SolverLaws, Loud, "the_weak_order_it_declares", "eta = 1 the error falls"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_what_breaks_a_law_is_told_which(laws, build, test, words):
    group = next(g for g, kind in LAWS.items() if kind is laws)
    broken = conforming(group, "broken", build)()
    with pytest.raises(AssertionError, match=words):
        getattr(broken, f"test_{test}")()
