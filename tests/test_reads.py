"""How often a schedule is evaluated: once for all that is wanted of a time, and of many times."""

import functools

import pytest
import torch
import torchdiffeq
import torchsde
from models import SOLVERS
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
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    FixedStep,
    Haar,
    Identity,
    Joint,
    Learned,
    Noise,
    ProbabilityFlow,
    Quadrature,
    ReverseSDE,
    Schedule,
    ScoreEstimator,
    bound,
    condition,
    log_prob,
)
from scoresde.conditioning import Composition
from scoresde.inference.parameter_estimators import PartEstimator, PosteriorEstimator
from scoresde.likelihood import DensityFlow
from scoresde.objectives.weighting import WEIGHTINGS
from scoresde.sampling import grid
from solvers import DDIM, Adaptive, ExponentialRungeKutta, Heun

QUESTIONS = ("read", "alpha", "sigma", "log_alpha", "log_snr", "rates", "forward")
BLOCKS = {"a": 2, "b": 1}


class Count:
    """Calls of functions that no other of them has made."""

    def __init__(self):
        self.total = self.depth = 0

    def of(self, function, adds=1):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.total += adds * (self.depth == 0)
            self.depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1

        return counted

    def by(self, call):
        """How many one call makes, and what it returns."""
        before, found = self.total, call()
        return self.total - before, found


def kinds(base):
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.fixture
def reads(monkeypatch):
    """Counts evaluations of schedules, all of them."""
    count = Count()
    for kind in {*kinds(Schedule)}:
        for name in {*QUESTIONS} & {*vars(kind)}:
            monkeypatch.setattr(kind, name, count.of(vars(kind)[name]))
    # the rates of a reading are found when they are asked for, and are no reading of their own
    monkeypatch.setattr(Schedule, "_rates_where", count.of(Schedule._rates_where, adds=0))
    return count


class Answering(nn.Module):
    """A network that counts how often it is asked."""

    def __init__(self, n, **options):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.asked = ResidualMLP((n,), 8, 1, **options), 0
        nn.init.normal_(self.inner.output_layer[1].weight, std=0.3)

    def forward(self, x, level):
        self.asked += 1
        return self.inner(x, level)


def denoising(schedule=None, speeds=1.0, delays=0.0, **options):
    schedule = VP() if schedule is None else schedule
    sde = DiagonalSDE(schedule, Identity((3,), BLOCKS), speeds, delays=delays)
    levels = 3 if "observe" in options else 1
    return Denoising(sde, Answering(3, noise_levels=levels), **options)


def staged(**options):
    sde = DiagonalSDE(Cosine(), Haar((4,), 1), [1.0, 1.5], drop=[1.0, 0.5])
    return MultiScale(sde, [Answering(2), Answering(4)], **options)


MODELS = {
    "uniform": denoising,
    "a speed per block": lambda **o: denoising(speeds=[1.0, 0.6], **o),
    "a clock per component": lambda **o: denoising(
        speeds=[1.0, 0.6, 1.5], delays=[0.0, 0.2, 0.1], **o
    ),
    "a schedule per block": lambda **o: denoising(VP(0.1, [10.0, 20.0]), **o),
    "learned": lambda **o: denoising(Learned(2), **o),
    "observing": lambda **o: denoising(speeds=[1.0, 0.6], observe="blocks", **o),
    "multi-scale": staged,
}
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
every_model = pytest.mark.parametrize("name", MODELS)


def ready(name, dtype, **options):
    """A model, and events it has met: the first are looked at, in the light of their SDE."""
    model = MODELS[name](**options).to(dtype)
    x = torch.randn(6, *model.sde.basis.event_shape, dtype=dtype)
    model.loss(x)
    return model, x


@pytest.mark.covering(2)
@every_dtype
@every_model
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_update_reads_once(reads, name, weighting, dtype):
    """For all stages, which are trained at times of their own."""
    model, x = ready(name, dtype, weighting=weighting)
    assert reads.by(lambda: model.loss(x).backward())[0] == 1


class Silent(ScoreEstimator):
    """An estimator that needs no schedule."""

    def denoise(self, z, t, condition=None):
        return torch.zeros_like(z)


@pytest.mark.covering(1)
@every_dtype
@every_model
def test_a_bound_reads_once_for_all_draws(reads, name, dtype):
    """For itself and the network together, besides what it asks of the ends of time."""
    model, x = ready(name, dtype)
    few, many = (reads.by(lambda n=n: bound(model, x, draws=n))[0] for n in (1, 7))
    assert few == many == reads.by(lambda: bound(Silent(model.sde), x))[0]


EQUATIONS = {
    "reverse": (-1, lambda m, z: (ReverseSDE(m, 0.7), z)),
    "flow": (1, lambda m, z: (ProbabilityFlow(m), z)),
    "density": (1, lambda m, z: carried(m, z)),
}


def carried(model, z):
    probes = ExactTrace().draw(z, Noise())
    density = DensityFlow(ProbabilityFlow(model), ExactTrace(), probes)
    return density, density.start(z)


@pytest.mark.covering(2)
@every_dtype
@every_model
@pytest.mark.parametrize("kind", EQUATIONS)
def test_drift_and_diffusion_read_once(reads, name, kind, dtype):
    model, _ = ready(name, dtype)
    sign, make = EQUATIONS[kind]
    equation, y = make(model, torch.randn(6, model.sde.basis.dim, dtype=dtype))
    for t in (torch.tensor(0.2, dtype=dtype), torch.linspace(0.1, 0.4, 6, dtype=dtype)):
        assert reads.by(lambda t=t: equation.f(sign * t, y))[0] == 1
    t = sign * torch.tensor(0.2, dtype=dtype)
    assert reads.by(lambda: equation(t, y))[0] == 1
    assert reads.by(lambda: equation.g(t, y))[0] == (kind == "reverse")
    assert reads.by(lambda: model.sde.f(sign * t, y[:, : model.sde.basis.dim]))[0] == 1


@pytest.mark.parametrize("kind", ["flow", "density"])
def test_torchdiffeq_reads_once_per_evaluation(reads, kind):
    model, _ = ready("a speed per block", torch.float32)
    equation, y = EQUATIONS[kind][1](model, torch.randn(6, 3))
    before = model.network.asked
    found, _ = reads.by(
        lambda: torchdiffeq.odeint(equation, y, torch.tensor([0.1, 0.9]), method="dopri5")
    )
    assert found == model.network.asked - before > 0


def test_torchsde_reads_once_per_evaluation(reads):
    """Of the drift, which asks the network, and of the diffusion, which does not."""
    model, _ = ready("a speed per block", torch.float32)
    before, z, ts = model.network.asked, torch.randn(6, 3), torch.tensor([-0.75, -0.25])
    found, _ = reads.by(lambda: torchsde.sdeint(ReverseSDE(model), z, ts, method="euler", dt=0.05))
    assert found == 2 * (model.network.asked - before) > 0


@pytest.mark.covering(1)
@every_dtype
@every_model
@pytest.mark.parametrize("kind", ["reverse", "density"])
def test_an_attempt_reads_once(reads, name, kind, dtype):
    """For the solver and the network together."""
    model, _ = ready(name, dtype)
    z = torch.randn(1, model.sde.basis.dim, dtype=dtype)
    sign, make = {"reverse": (-1, lambda m, z: (ReverseSDE(m, 0.0), z))}.get(kind, EQUATIONS[kind])
    equation, y = make(model, z)
    ts = torch.tensor([0.05, 0.45], dtype=torch.float64)
    solver = Adaptive(rtol=1e-2, atol=1e-2, pad_to_multiple_of=1)
    found, outcome = reads.by(lambda: solver.solve(equation, y, ts if sign > 0 else -ts.flip(0)))
    assert bool(outcome.finished)
    assert found == int(outcome.steps) > 1


@pytest.mark.covering(1)
@every_dtype
@every_model
def test_a_step_that_chooses_its_nodes_reads_once(reads, name, dtype):
    """After the grid, which is chosen for all steps at once."""
    model, _ = ready(name, dtype)
    z, solver = torch.randn(6, model.sde.basis.dim, dtype=dtype), ExponentialRungeKutta()
    grids = set()
    for steps in (4, 9):
        ts = -torch.linspace(0.45, 0.05, steps + 1, dtype=torch.float64)
        walk = solver.walk(ReverseSDE(model, 0.0), z, ts, Noise())
        first, *others = (reads.by(lambda: next(walk, None))[0] for _ in range(steps))  # noqa: B023
        grids.add(first - 1)
        assert others == [1] * (steps - 1)
    assert len(grids) == 1


def diagonal():
    return DiagonalSDE(VP(), Identity((3,), BLOCKS), [1.0, 0.6])


KNOWN = {
    "Gaussian": lambda sde: Gaussian(sde, torch.zeros(3), torch.eye(3) + 0.3),
    "mixture": lambda sde: GaussianMixture(
        sde, [0.5, 0.5], [[-1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [torch.eye(3)] * 2
    ),
    "truncated": lambda sde: Truncated(sde, -torch.ones(3), torch.ones(3)),
    "guided": lambda sde: Guidance(KNOWN["Gaussian"](sde), torch.neg, torch.ones(3), 0.5),
    "classifier-free": lambda sde: ClassifierFree(KNOWN["mixture"](sde), torch.zeros(1)),
    "composed": lambda sde: Composition([KNOWN["Gaussian"](sde)] * 2, KNOWN["mixture"](sde)),
    "shifted": lambda sde: PosteriorEstimator(KNOWN["Gaussian"](sde), None, torch.ones(3)),
}
every_known = pytest.mark.parametrize("name", KNOWN)


@pytest.mark.covering(1)
@every_dtype
@every_known
def test_what_is_known_reads_once_as_well(reads, name, dtype):
    """A drift, a diffusion, and the steps of a solver: as models that are networks do."""
    model = KNOWN[name](diagonal()).to(dtype)
    z, noise = torch.randn(6, 3, dtype=dtype), Noise(torch.Generator().manual_seed(0))
    reverse = ReverseSDE(model, 0.7)
    for t in (torch.tensor(0.2, dtype=dtype), torch.linspace(0.1, 0.4, 6, dtype=dtype)):
        assert reads.by(lambda t=t: model.denoise(z, t))[0] == 1
        assert reads.by(lambda t=t: reverse.f(-t, z))[0] == 1
        assert reads.by(lambda t=t: reverse.g(-t, z))[0] == 1
    ts = -torch.linspace(0.45, 0.05, 7, dtype=torch.float64)
    for solver in (DDIM(), Heun()):
        planned, steps = reads.by(lambda s=solver: list(s.prepare(reverse, ts, z)))
        assert (planned, len(steps)) == (1, 6)
        assert reads.by(lambda s=solver: s.run(z, steps, noise))[0] == 0  # noqa: B023
    for method in (DDIM, functools.partial(Quadrature, tolerance=None)):
        few, many = (reads.by(lambda n=n, m=method: densities(model, z, m(n)))[0] for n in (2, 4))
        assert few == many


def densities(model, z, method):
    return log_prob(model, model.sde.basis.inverse(z), method, errors=False)


PLANNED = {name: kind for name, kind in SOLVERS.items() if issubclass(kind, FixedStep)}
every_planned = pytest.mark.parametrize("solver", PLANNED.values(), ids=PLANNED)


def etas(solver):
    return (0.0,) if solver(1).weak_order is None else (0.0, 0.7)


@pytest.mark.covering(1)
@every_dtype
@every_model
@every_planned
def test_planned_steps_are_read_once_and_walked_without_reading(reads, solver, name, dtype):
    model, _ = ready(name, dtype)
    z = torch.randn(6, model.sde.basis.dim, dtype=dtype)
    for eta in etas(solver):
        reverse, noise = ReverseSDE(model, eta), Noise(torch.Generator().manual_seed(0))
        ts = -torch.linspace(0.45, 0.05, 7, dtype=torch.float64)
        planned, steps = reads.by(lambda: list(solver().prepare(reverse, ts, z)))  # noqa: B023
        assert (planned, len(steps)) == (1, 6)
        assert reads.by(lambda: solver().run(z, steps, noise))[0] == 0  # noqa: B023
        walked = reads.by(lambda: list(solver().walk(reverse, z, ts, noise)))[0]  # noqa: B023
        assert walked == 1


@pytest.mark.parametrize("name", grid.GRIDS)
def test_a_grid_is_read_as_often_however_many_clocks_stop(reads, name, monkeypatch):
    """And is the same where that is too much to be read at once."""
    found = []
    for count in (2, 9):
        blocks = {str(i): 1 for i in range(count)}
        sde = DiagonalSDE(Cosine(), Identity((count,), blocks), torch.linspace(1, 2, count))
        found.append(reads.by(lambda s=sde: DDIM(20, grid=name).times(s)))
    assert found[0][0] == found[1][0] <= 2
    monkeypatch.setattr(grid, "_AT_ONCE", 2049 * 9 * 4)
    torch.testing.assert_close(DDIM(20, grid=name).times(sde), found[1][1], rtol=1e-14, atol=0)


def conditional(clean):
    """A network whose joint events are conditioned on a part of them."""
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    model = Denoising(sde, Answering(3, noise_levels=3), observe="blocks")
    return condition(model, clean=clean, y=torch.ones(1))


@every_planned
@pytest.mark.parametrize("clean", [False, True])
def test_what_is_conditioned_is_planned_as_well(reads, solver, clean):
    posterior, noise = conditional(clean), Noise(torch.Generator().manual_seed(0))
    z, ts = torch.randn(6, 3), -torch.linspace(0.9, 0.1, 7, dtype=torch.float64)
    reverse = ReverseSDE(posterior, 0.0)
    planned, steps = reads.by(lambda: list(solver().prepare(reverse, ts, z)))
    assert planned == 1
    assert reads.by(lambda: solver().run(z, steps, noise))[0] == 0


@pytest.mark.parametrize("clean", [False, True])
def test_a_part_of_a_joint_event_is_planned_as_well(reads, clean):
    """The joint model hears of more components than the equation has: it reads for itself."""
    speeds = [1.0 if clean else 0.0, 1.0]
    joint = Gaussian(DiagonalSDE(VP(), Joint(y=(1,), x=(2,)), speeds), torch.zeros(3), torch.eye(3))
    seen = PosteriorEstimator(PartEstimator(joint, "x", clean), torch.ones(1), torch.zeros(2))
    z, ts = torch.randn(6, 2), -torch.linspace(0.9, 0.1, 7, dtype=torch.float64)
    planned, steps = reads.by(lambda: list(DDIM().prepare(ReverseSDE(seen, 0.0), ts, z)))
    assert (planned, len(steps)) == (2, 6)
    assert reads.by(lambda: DDIM().run(z, steps, Noise()))[0] == 0


def asked(model):
    return sum(part.asked for part in model.modules() if isinstance(part, Answering))


@pytest.mark.covering(1)
@every_dtype
@every_model
@every_planned
def test_reads_of_samples_and_densities_do_not_depend_on_the_number_of_steps(
    reads, solver, name, dtype
):
    model, x = ready(name, dtype)
    asks = [lambda n, e=e: solver(n, eta=e).sample(model, (5,)) for e in etas(solver)]
    for ask in (*asks, lambda n: log_prob(model, x, solver(n), errors=False)):
        few, many = (reads.by(lambda n=n: ask(n))[0] for n in (5, 11))  # noqa: B023
        assert few == many


@pytest.mark.covering(1)
@every_dtype
@every_model
@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_quadrature_reads_once_for_all_steps(reads, tolerance, name, dtype):
    """And once for whatever steps it halves that are evaluated together, at their own times."""
    model, x = ready(name, dtype)
    rest, pieces = [], 1 + len(model.sde.breakpoints())
    for n in (6, 13):
        before = asked(model)
        found, _ = reads.by(lambda n=n: log_prob(model, x, Quadrature(n, tolerance=tolerance)))
        halved = asked(model) - before - n - pieces
        assert (halved > 0) == (tolerance == 0)
        rest.append(found - halved)
    assert rest[0] == rest[1]


@every_model
def test_a_count_counts(reads, name):
    """What asks a schedule twice is seen."""
    model, _ = ready(name, torch.float32)
    schedule, t = model.sde.schedule, torch.tensor([0.3])
    for question in QUESTIONS:
        assert reads.by(lambda q=question: getattr(schedule, q)(t))[0] == 1
    assert reads.by(lambda: (schedule(t), schedule.rates(t)))[0] == 2
    assert reads.by(lambda: model.sde.at(t.unsqueeze(-1)).kernel)[0] == 1
