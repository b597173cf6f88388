"""What is registered obeys the laws that plugins inherit, and what breaks them is found out."""

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import attrs
import pytest
import torch
from models import OrnsteinUhlenbeck, built_in
from torch.distributions import Independent, LogNormal, MultivariateNormal, Uniform

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import estimators
import scoresde
import solvers
from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    GaussianMixture,
    MultiScale,
    ResidualMLP,
    Truncated,
)
from scoresde import (
    DCT,
    EDM,
    VE,
    VP,
    Basis,
    Cosine,
    DiagonalSDE,
    DirectScoreEstimator,
    Dynamics,
    ExactTrace,
    FixedStep,
    Haar,
    Identity,
    Joint,
    Learned,
    LogLinear,
    Noise,
    Packed,
    PhaseSDE,
    ProbabilityFlow,
    ReverseSDE,
    Schedule,
    ScoreEstimator,
    Solver,
    SubVP,
    condition,
    plugins,
)
from scoresde.conditioning import Composition, ConditionedBasis
from scoresde.equation import Equation
from scoresde.inference import Coordinates, PriorEstimator
from scoresde.inference.parameter_estimators import PartEstimator, PosteriorEstimator
from scoresde.likelihood import DensityFlow
from scoresde.phase_space.flow import PhaseFlow
from scoresde.planning.draft_evaluator import ScaleMixtures
from scoresde.planning.independent_gaussian import IndependentGaussian
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients
from scoresde.sdes.sde_coefficients import PlainCoefficients
from scoresde.testing import (
    BasisLaws,
    DegradationLaws,
    EstimatorLaws,
    NetworkLaws,
    ScheduleLaws,
    SDELaws,
    SolverLaws,
    conformance,
    standard_normal,
)
from scoresde.testing.conformance import LAWS, arguments, conforming
from scoresde.testing.precision import assert_single_precision
from solvers import DDIM, EulerMaruyama


def bed(**settings):
    return DiagonalSDE(VP(), Identity((3,), {"a": 2, "b": 1}), [1.0, 0.6], **settings)


def network():
    torch.manual_seed(0)
    found = ResidualMLP((3,), 16, 1)
    torch.nn.init.normal_(found.output_layer[1].weight, std=0.3)
    return found


def denoising():
    return Denoising(bed(), network())


def trained_gaussian():
    return Gaussian(bed(), torch.tensor([1.0, 0.0, -1.0]), torch.eye(3) + 0.3)


def truncated():
    return Truncated(bed(), [-1.0, 0.0, -2.0], [0.5, 3.0, 2.0], 0.3, [0.7, 2.0])


def learned(value):
    return torch.nn.Parameter(torch.tensor(value))


JOINT = Joint(y=(1,), x=(2,))
KNOWN = {"y": torch.tensor([0.4]).double()}


def joint(speed):
    return DiagonalSDE(VP(), JOINT, JOINT.per_block(y=speed, x=1.0))


COVARIANCE = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 0.6]])


def conditional(clean):
    model = Gaussian(joint(1.0 if clean else 0.5), torch.zeros(3), COVARIANCE)
    return condition(model, clean=clean, **KNOWN)


def phase_space():
    """With less friction than is critical: what is registered does not oscillate."""
    drift, noise = torch.tensor([[0.0, 1.0], [-1.0, -1.0]]), torch.tensor([0.0, 2.0])
    dynamics = Dynamics(drift, noise, torch.tensor([0.0, 0.2]))
    return PhaseSDE(VP(), Identity((3,), {"a": 2, "b": 1}), dynamics, [1.0, 0.6])


def in_phase_space():
    return Gaussian(phase_space(), torch.tensor([1.0, 0.0, -1.0]), torch.eye(3) + 0.3)


def prior_estimator(prior):
    none, one = torch.zeros(2), torch.tensor([1.0, 0.7])
    to = Coordinates(prior, none[:1], one[:1], none, torch.zeros(1, 2), one, none)
    return PriorEstimator(to, DiagonalSDE(EDM(), Identity((2,))))


def composed(covariances=False):
    """Of two observations of noise 1."""
    sde, unit = bed(), torch.eye(3).double()
    covariance, seen = unit + 0.3, torch.tensor([[0.5, 0.0, 0.2], [-1.0, 0.4, 0.3]]).double()
    left = torch.linalg.inv(torch.linalg.inv(covariance) + unit)
    each = [Gaussian(sde, left @ y, left) for y in seen]
    known = (left.expand(2, 3, 3), covariance) if covariances else None
    return Composition(each, Gaussian(sde, torch.zeros(3).double(), covariance), known)


class Labelled(ScoreEstimator):
    """Of a Gaussian about its condition, a network's in its form."""

    def __init__(self):
        super().__init__(bed())
        torch.manual_seed(0)
        self.network = ResidualMLP((3,), 8, 1, condition_dim=2)
        self.centre = torch.nn.Linear(2, 3)

    def denoise(self, z, t, condition=None):
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z)))
        mean = self.centre(condition)
        return mean + alpha / (alpha**2 + sigma**2) * (z - alpha * mean)


def bands():
    return DiagonalSDE(Cosine(), Haar((4,), 1), drop=[1.0, 0.5])


def multi_scale():
    torch.manual_seed(0)
    networks = [ResidualMLP((n,), 8, 1) for n in (2, 4)]
    for network in networks:
        torch.nn.init.normal_(network.output_layer[1].weight, std=0.3)
    return MultiScale(bands(), networks)


ROOT = Path(__file__).parents[1]
MORE = {
    "schedules": {
        "log-linear, per block": lambda: LogLinear([9.0, 12.0], -8.0),
        "ve, per block": lambda: VE(0.01, [20.0, 50.0]),
        "vp, per block": lambda: VP(0.1, [10.0, 20.0]),
        "learned, per block": lambda: Learned(2),
        "cosine, learned": lambda: Cosine(learned(-15.0)),
        "learned, between learned ends": lambda: Learned(2, 4, learned(9.0), learned(-9.0)),
        "log-linear, learned": lambda: LogLinear(learned(10.0), learned(-10.0)),
        "sub-vp, learned": lambda: SubVP(learned(0.1), learned(20.0)),
        "ve, learned": lambda: VE(learned(0.01), learned(50.0)),
        "vp, learned": lambda: VP(learned(0.1), learned(20.0)),
    },
    "bases": {
        "dct, in bands": lambda: DCT((2, 4), None, 3),
        "joint": lambda: Joint(y=(2,), x=Haar((4,), 1)),
        "packed": lambda: Packed(Haar((1, 4, 4), 2)),
    },
    "sdes": {
        "conditioned": lambda: conditional(clean=True).sde,
        "learned": lambda: DiagonalSDE(Learned(2), Identity((3,), {"a": 2, "b": 1}), [1.0, 0.0]),
        "dropping": lambda: DiagonalSDE(LogLinear(), Haar((4,), 1), drop=[1.0, 0.5]),
        "stopping": lambda: DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 2.0]),
        "delayed": lambda: DiagonalSDE(
            VP(), Identity((3,), {"a": 2, "b": 1}), [1.5, 2.0], delays=[1 / 3, 0.0]
        ),
        "clean": lambda: DiagonalSDE(VE(), Identity((2,), {"a": 1, "b": 1}), [1.0, 0.0]),
        "drift and diffusion only": lambda: OrnsteinUhlenbeck((2,)),
        "of two copies": phase_space,
    },
    "estimators": {
        "guided by its labels": lambda: ClassifierFree(Labelled(), torch.zeros(2), guidance=2.5),
        "on a learned schedule": lambda: Denoising(MORE["sdes"]["learned"](), network()),
        "composed": composed,
        "composed by covariances": lambda: composed(covariances=True),
        "conditional": lambda: conditional(clean=False),
        "given an observation": lambda: PosteriorEstimator(
            Labelled(), torch.tensor([0.3, -0.2]), torch.tensor([1.0, -0.5, 0.2])
        ),
        "given its residual": lambda: PosteriorEstimator(
            trained_gaussian(), None, torch.tensor([1.0, -0.5, 0.2])
        ),
        "of a part": lambda: PartEstimator(Gaussian(joint(0.0), torch.zeros(3), COVARIANCE), "x"),
        "of a part, clean": lambda: PartEstimator(
            Gaussian(joint(0.5), torch.zeros(3), COVARIANCE), "x", True
        ),
        "a normal prior": lambda: prior_estimator(
            MultivariateNormal(torch.tensor([0.5, 0.0]), torch.eye(2) + 0.3)
        ),
        "a prior between bounds": lambda: prior_estimator(
            Independent(Uniform(torch.tensor([-1.0, 0.0]), torch.ones(2)), 1)
        ),
        "a prior on the line": lambda: prior_estimator(
            Independent(LogNormal(torch.zeros(2), torch.tensor([1.0, 0.5])), 1)
        ),
        "clean": lambda: conditional(clean=True),
        "independent": lambda: IndependentGaussian(bed(), torch.tensor([1.0, 0.5, 0.1])),
        "multi-scale that drops": multi_scale,
        "narrow": lambda: Truncated(DiagonalSDE(EDM(), Identity((2,))), 0.0, [1e-3, 5.0]),
        "of many scales": lambda: ScaleMixtures(
            bed(), torch.tensor([[1.0, 0.5, 2.0], [0.1, 3.0, 0.2]]), torch.tensor([0.7, 0.3])
        ),
        "singular": lambda: GaussianMixture(
            bed(), torch.tensor([0.3, 0.7]), torch.eye(3)[:2], torch.ones(2, 3, 3)
        ),
        "sure of its labels": Labelled,
        "truncated along a slope": lambda: Truncated(
            bed(),
            [-torch.inf, -torch.inf, -2.0],
            [torch.inf, torch.inf, 1.0],
            slope=torch.tensor([[0.0, 0.0, 1.5], [0.0, 0.0, -0.5], [0.0, 0.0, 0.0]]),
        ),
        "vector time": lambda: Denoising(
            bed(), ResidualMLP((3,), 8, 1, noise_levels=3), observe="blocks"
        ),
    },
}


def vectors(size):
    return lambda self, batch: standard_normal(*batch, size, seed=3)


CONDITIONED = {
    "guided by its labels": 2,
    "sure of its labels": 2,
    "of a part": 1,
    "of a part, clean": 1,
}
EXACT = (
    "composed",
    "composed by covariances",
    "given its residual",
    "of a part",
    "of a part, clean",
)
EXACT += ("a normal prior", "a prior between bounds", "a prior on the line")
globals().update(conformance("scoresde"))
for _group, _builds in MORE.items():
    for _name, _build in _builds.items():
        _told = {"exact": True} if _name in EXACT else {}
        if _name in CONDITIONED:
            _told["condition"] = vectors(CONDITIONED[_name])
        _laws = conforming(_group, _name, _build, **_told)
        globals()[_laws.__name__] = _laws
del _laws


def test_what_is_declared_is_installed():
    """Or laws look for less than there is: after a new line, install the project again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        (group.removeprefix("scoresde."), name, value)
        for group, entries in project["entry-points"].items()
        for name, value in entries.items()
    }
    installed = {
        (group, name, plugin.value)
        for group in plugins.GROUPS
        for name, plugin in plugins.available(group).items()
        if plugin.distribution == "scoresde"
    }
    assert installed == declared


def concrete(base):
    """The classes of a kind in the three packages, those that nobody registers included."""
    for package in (scoresde, estimators, solvers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found, queue = set(), [base]
    while queue:
        for kind in queue.pop().__subclasses__():
            queue.append(kind)
            module = sys.modules[kind.__module__]
            own = module.__name__.partition(".")[0] in ("scoresde", "estimators", "solvers")
            public = own and not module.__name__.startswith("scoresde.testing")
            # classes made anew by attrs leave their first draft behind
            if public and getattr(module, kind.__name__, None) is kind:
                found.add(kind)
    return {kind for kind in found if not inspect.isabstract(kind)}


BASES = {
    "schedules": Schedule,
    "bases": Basis,
    "sdes": Equation,
    "estimators": ScoreEstimator,
    "solvers": Solver,
}
DERIVED = {
    ProbabilityFlow: lambda model: ProbabilityFlow(model),
    ReverseSDE: lambda model: ReverseSDE(model, 0.7),
    DensityFlow: lambda model: DensityFlow(ProbabilityFlow(model), ExactTrace(), torch.eye(3)),
    PhaseFlow: lambda model: PhaseFlow(model),
}
"""Equations that laws of SDEs are not about, as they are none that diffuse data."""


@pytest.mark.parametrize("group", BASES)
def test_no_class_escapes(group):
    """Whatever is concrete obeys the laws, registered or not."""
    built = {type(build()) for build in MORE.get(group, {}).values()}
    built |= {type(kind(**arguments(group, kind))) for kind in built_in(group).values()}
    assert concrete(BASES[group]) - {*DERIVED, ConditionedBasis} <= built


@pytest.mark.parametrize("kind", DERIVED)
def test_derived_equations_in_single_precision(kind):
    """Drift, diffusion and forcing, from the first to the last time."""
    sign = -1 if kind is ReverseSDE else 1

    def find(model, z, t):
        equation, t = DERIVED[kind](model), sign * t.detach()
        y = equation.start(z) if kind is DensityFlow else z
        found = {"f": equation.f(t, y), "g": equation.g(t, y)}
        return found | {"forcing": equation.field(t, y).forcing(y)}

    flat = (denoising, trained_gaussian, truncated)
    for build in (in_phase_space,) if kind is PhaseFlow else flat:
        model = build()
        n = model.sde.dim
        for t in (model.sde.eps, 0.1, 0.9, model.sde.T):
            time = torch.tensor(t).double()
            far = torch.tensor([[1.0], [30.0], [1e3]]).double()
            size = far / model.sde.kernel(time.reshape(1)).sigma.min()
            assert_single_precision(
                kind.__name__, model, find, far * standard_normal(3, n), time, size=size
            )


def test_a_given_basis_in_single_precision():
    """Affine, and no law of bases is about it."""
    basis = conditional(clean=True).sde.basis

    def find(basis, x):
        z = basis(x)
        return {"coefficients": z, "events": basis.inverse(z)}

    far = torch.tensor([[1.0], [1e6]]).double()
    assert_single_precision("a given basis", basis, find, far * standard_normal(2, 2), size=far)


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


def saying(equation, coefficients):
    """An SDE that says of its times what others would."""

    class Saying(equation):
        def at(self, t, like=None):
            found = super().at(t, like)
            found.__class__ = coefficients
            return found

    return Saying


class WrongSign(DiagonalSDE):
    def f(self, t, y):
        return -super().f(t, y)


class _Louder(DirectScoreEstimator):
    def __init__(self, estimator):
        super().__init__(estimator.sde)
        self.estimator = estimator

    def score(self, z, t, condition=None):
        return 2 * self.estimator.score(z, t, condition)


class TwiceTheScore(PlainCoefficients):
    def reverse(self, estimator, *rest):
        return super().reverse(_Louder(estimator), *rest)


class Entangled(OrnsteinUhlenbeck):
    def g(self, t, y):
        return (1 + y.sum(-1, keepdim=True) ** 2).sqrt().expand_as(y)


class Crowd(OrnsteinUhlenbeck):
    def f(self, t, y):
        return -y + 0.1 * y.mean(0)


class Forgotten(PlainCoefficients):
    """Integrates its linear part, and leaves it to the solver once more."""

    def propagator(self, end):
        step = super().propagator(end)
        return step._replace(decay=torch.exp(-step.h))


class WideBridge(DiagonalCoefficients):
    def bridge(self, end):
        found = super().bridge(end)
        return found._replace(sigma=1.1 * found.sigma)


class _Unheard(DirectScoreEstimator):
    def __init__(self, estimator):
        super().__init__(estimator.sde)
        self.estimator = estimator

    def score(self, z, t, condition=None):
        return self.estimator.score(z, t, condition).detach()


class Forgetful(DiagonalCoefficients):
    """Its equations do not tell integrators of the weights of a score."""

    def reverse(self, estimator, *rest):
        return super().reverse(_Unheard(estimator), *rest)


class Brittle(OrnsteinUhlenbeck):
    """Has no rates after ``T``."""

    def forward(self, t, y):
        return self.f(t, y)

    def f(self, t, y):
        return -y * (1 + (self.T - t).sqrt())


class LateLaw(DiagonalCoefficients):
    def denoising_step(self, end, eta):
        found = super().denoising_step(end, eta)
        return found._replace(gain=found.gain + 0.1 * found.h)


class Flipped(Gaussian):
    def score(self, z, t, condition=None):
        return -super().score(z, t, condition)


class Company(Gaussian):
    def score(self, z, t, condition=None):
        return super().score(z, t, condition) + 0.1 * z.mean(0)


class Twice(Gaussian):
    """Consistent with itself, but the score of no data."""

    denoise = DirectScoreEstimator.denoise

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


class Overflowing(Gaussian):
    """Right to the last digit, and in float32 its derivative is inf/inf beside the branch taken."""

    def denoise(self, z, t, condition=None):
        plain = torch.where(z > 20, z, (1 + z.exp()).log())
        return super().denoise(z, t, condition) + plain - torch.nn.functional.softplus(z)

    score = ScoreEstimator.score


class Undefined(Gaussian):
    """As the formula has it, 0/0 where there is no noise."""

    def noise(self, z, t, condition=None):
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z)))
        return (z - alpha * self.denoise(z, t)) / sigma


class Shrunk(Gaussian):
    """Says something else of data that are known."""

    def denoise(self, z, t, condition=None):
        return 0.9 * super().denoise(z, t, condition)

    score = ScoreEstimator.score


class SlowRoot(Cosine):
    """``sigma^2 = 1 - alpha^2``, of which float32 leaves nothing at first."""

    def sigma(self, t):
        return (1 - self.alpha(t) ** 2).sqrt()


class Stopped(VP):
    """Its noise is a root whose slope is not a number where it is 0."""

    def rates(self, t):
        f, g2 = super().rates(t)
        return f, g2 + (self.beta_max.to(t) * (t - self.T) ** 2).sqrt() * 0


class OneTime(Gaussian):
    def score(self, z, t, condition=None):
        return super().score(z, torch.as_tensor(t).flatten()[0], condition)


class OneClock(Gaussian):
    """Takes what is clean for as noisy as the rest."""

    def denoise(self, z, t, condition=None):
        times = self.sde.time(t, z)
        return super().denoise(z, times.amax(-1, keepdim=True), condition)


class StraightThrough(Gaussian):
    """With gradients of something else, as networks that round have them."""

    def denoise(self, z, t, condition=None):
        mean = super().denoise(z, t, condition)
        return mean + 0.2 * (z - z.detach())


class Crowded(Gaussian):
    def denoise(self, z, t, condition=None):
        return super().denoise(z, t, condition) + 0.1 * z.mean(0)


class Hidden(Gaussian):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = torch.ones(3)


class OwnNoise(Denoising):
    def loss(self, x, condition=None, generator=None):
        return super().loss(x, condition)


class Shared(Gaussian):
    """Has a tensor by two names."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("again", self.means)


class WrongTarget(Denoising):
    """Minus the noise is what its network learns."""

    def loss(self, x, condition=None, generator=None):
        noise, z = Noise.of(generator), self.sde.basis(x)
        t, xi = 0.01 + 0.98 * noise.uniform(z[:, 0]), noise(z)
        return (self.noise(self.sde.diffuse(z, t, xi), t) + xi).square().mean()


def learner(kind):
    torch.manual_seed(0)
    return kind(bed(), ResidualMLP((3,), 16, 1))


def shown(x):
    return x.mul_(0.5)


def centred(x):
    return (x - x.mean(0)) / 2


def noisy(x):
    return (x + 0.1 * torch.randn_like(x)).clamp(-1, 1)


def bright(x):
    return 1.5 * x


def rounded(x):
    return x + 1e6 - 1e6


class Wide(ResidualMLP):
    """Says more than it was asked for."""

    def forward(self, x, noise_level, condition=None):
        return super().forward(x, noise_level).repeat(1, 2)


class InPlace(ResidualMLP):
    def forward(self, x, noise_level, condition=None):
        return super().forward(x.mul_(2.0), noise_level)


class InCompany(ResidualMLP):
    def forward(self, x, noise_level, condition=None):
        return super().forward(x, noise_level) + x.mean(0, keepdim=True)


class Rounded(ResidualMLP):
    """Adds and takes away what float32 has no digits for."""

    def forward(self, x, noise_level, condition=None):
        return super().forward(x, noise_level) + x + 1e6 - 1e6


class Unsaved(ResidualMLP):
    def __init__(self, event_shape):
        super().__init__(event_shape, 8, 1)
        self.shift = torch.ones(3)


@attrs.frozen
class Strong(EulerMaruyama):
    strong_order = 1.5


@attrs.frozen
class Short(DDIM):
    def walk(self, equation, y, ts, noise, memory=None):
        yield from super().walk(equation, y, ts[:-1], noise, memory)


@attrs.frozen
class Narrow(DDIM):
    """Takes what it is told of the linear part for all there is."""

    def step(self, y, step, noise, memory):
        forcing = step.fields[0].forcing(y)
        return step.decay * y + step.gain * forcing * (step.decay != 1), memory


@attrs.frozen
class Leaking(DDIM):
    def step(self, y, step, noise, memory):
        end, memory = super().step(y, step, noise, memory)
        return end + 0.01 * step.length, memory


@attrs.frozen
class Doubling(DDIM):
    def transport(self, density, z, ts, noise):
        end, trace = super().transport(density, z, ts, noise)
        return end, 2 * trace


@attrs.frozen
class Alarmed(FixedStep):
    """Halves its steps where some sample is far away."""

    order, weak_order = 1.0, None
    nodes = (0.0, 0.5)

    def step(self, y, step, noise, memory):
        first, middle = step.fields
        half = y + step.length / 2 * first.drift(y)
        if y.abs().max() > 5:
            return half + step.length / 2 * middle.drift(half), None
        return 2 * half - y, None


@attrs.frozen
class Coarse(DDIM):
    def step(self, y, step, noise, memory):
        end, memory = super().step(y, step, noise, memory)
        return end + 1e5 - 1e5, memory


@attrs.frozen
class Boastful(DDIM):
    order = 2.0


@attrs.frozen
class Deaf(DDIM):
    def step(self, y, step, noise, memory):
        end, memory = super().step(y, step, noise, memory)
        return end + 1e-6 * torch.randn_like(y), memory


@attrs.frozen
class Loud(DDIM):
    def step(self, y, step, noise, memory):
        end, memory = super().step(y, step, noise, memory)
        loud = 0.0 if step.noise_std is None else 0.5 * step.noise_std * noise(y)
        return end + loud, memory


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
        (
            SDELaws,
            lambda: saying(DiagonalSDE, LateLaw)(VP(), Identity((2,))),
            "a_step_is_two_halves",
            "gain",
        ),
        (EstimatorLaws, lambda: gaussian(Flipped), "its_answers_are_one_answer", "Tweedie"),
        (
            EstimatorLaws,
            lambda: gaussian(Company),
            "a_sample_does_not_depend_on_its_batch",
            "does not depend on the others",
        ),
        (ScheduleLaws, NotClean, "data_are_clean_at_time_0", "sigma\\(0\\) = 0"),
        (
            SDELaws,
            lambda: saying(OrnsteinUhlenbeck, TwiceTheScore)((2,)),
            "the_reverse_equations",
            "g\\^2 s",
        ),
        (SDELaws, lambda: Entangled((2,)), "noise_is_diagonal", "i-th component only"),
        (SDELaws, lambda: Crowd((2,)), "samples_stand_alone", "f of a sample"),
        (
            SDELaws,
            lambda: saying(OrnsteinUhlenbeck, Forgotten)((2,)),
            "a_short_step_is_the_equation",
            "decay, gain",
        ),
        (
            SDELaws,
            lambda: saying(DiagonalSDE, Forgetful)(VP(), Identity((2,))),
            "adjoints_find_the_weights",
            "odeint gives the weights",
        ),
        (
            SDELaws,
            lambda: Brittle((2,)),
            "integrators_may_look_past_the_ends_of_time",
            "past the ends of time is finite .forward, after T",
        ),
        (
            SDELaws,
            lambda: saying(DiagonalSDE, WideBridge)(VP(), Identity((2,))),
            "transitions_compose",
            "bridge",
        ),
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
        (
            EstimatorLaws,
            lambda: gaussian(Overflowing),
            "single_precision",
            "gradient of denoise in input 0 is finite",
        ),
        (
            EstimatorLaws,
            lambda: gaussian(Undefined),
            "where_there_is_no_noise",
            "no noise, noise is finite",
        ),
        (
            EstimatorLaws,
            lambda: gaussian(Shrunk),
            "where_there_is_no_noise",
            "no noise, the denoised mean is the state",
        ),
        (ScheduleLaws, SlowRoot, "single_precision", "sigma is accurate in float32"),
        (
            ScheduleLaws,
            lambda: Stopped(beta_max=learned(20.0)),
            "single_precision",
            "gradient of g\\^2 in beta_max is finite",
        ),
        (SolverLaws, Coarse, "single_precision", "an integration: the end in float32"),
        (EstimatorLaws, lambda: gaussian(OneTime), "one_time_is_one_per_sample", "own time"),
        (
            EstimatorLaws,
            lambda: gaussian(Crowded),
            "what_is_observed_goes_with_its_samples",
            "some samples of a conditional",
        ),
        (
            EstimatorLaws,
            lambda: gaussian(OneClock),
            "conditionals_of_exact_scores_are_exact",
            "Fokker",
        ),
        (
            EstimatorLaws,
            lambda: gaussian(StraightThrough),
            "the_bound_is_no_density_above",
            "bound >= ",
        ),
        (EstimatorLaws, lambda: gaussian(Hidden), "saved_and_loaded", "buffers.*shift"),
        (EstimatorLaws, lambda: gaussian(Shared), "saved_and_loaded", "written to a file"),
        (
            EstimatorLaws,
            lambda: learner(OwnNoise),
            "its_loss_hears_its_generator_only",
            "generator that is given",
        ),
        (EstimatorLaws, lambda: learner(WrongTarget), "it_learns", "minimises the loss"),
        (NetworkLaws, Wide, "events_go_in_and_come_out", "shape and dtype"),
        (NetworkLaws, InPlace, "events_go_in_and_come_out", "not written on"),
        (NetworkLaws, InCompany, "a_sample_does_not_depend_on_its_batch", "other samples"),
        (NetworkLaws, Rounded, "single_precision", "a network: the prediction in float32"),
        (NetworkLaws, Unsaved, "saved_and_loaded", "buffers.*shift"),
        (SolverLaws, Strong, "the_strong_order_it_declares", "strong order declared, 1.5"),
        (SolverLaws, Short, "a_walk_shows_where_it_has_been", "ends where integrate does"),
        (SolverLaws, Narrow, "drift_and_diffusion_are_enough", "dy = -y dt"),
        (SolverLaws, Leaking, "clean_components_stay", "clean components"),
        (SolverLaws, Doubling, "log_densities_are_carried_along", "log_prob"),
        (SolverLaws, Alarmed, "a_sample_has_a_generator_of_its_own", "batch mates"),
        (SolverLaws, Boastful, "the_order_it_declares", "order declared, 2: found 1.0"),
        (SolverLaws, Deaf, "the_same_seed_gives_the_same_samples", "same seed"),
        (SolverLaws, Loud, "the_weak_order_it_declares", "eta = 1 the error falls"),
        (DegradationLaws, lambda: torch.sum, "parts_are_as_many_as_events", "a part for every"),
        (DegradationLaws, lambda: shown, "parts_are_as_many_as_events", "not written on"),
        (DegradationLaws, lambda: centred, "a_part_does_not_depend_on_its_batch", "other events"),
        (DegradationLaws, lambda: noisy, "the_same_again", "function of its event"),
        (DegradationLaws, lambda: bright, "parts_stay_in_range", "from -1 to 1"),
        (DegradationLaws, lambda: rounded, "single_precision", "float32 is accurate"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_what_breaks_a_law_is_told_which(laws, build, test, words):
    group = next(g for g, kind in LAWS.items() if kind is laws)
    told = {"exact": True} if laws is EstimatorLaws else {}
    broken = conforming(group, "broken", build, **told)()
    with pytest.raises(AssertionError, match=words):
        getattr(broken, f"test_{test}")()
