"""Samplers that are prepared once draw what solvers draw, and ask nothing of what is known."""

import pytest
import torch
from models import SOLVERS
from torch import nn
from walks import (
    PREPARED,
    changes_of_tensors,
    every_dtype,
    guided,
    network,
    staged,
    uniform,
)

from estimators import ClassifierFree, Denoising
from scoresde import (
    VP,
    DiagonalSDE,
    Identity,
    Joint,
    Learned,
    Noise,
    condition,
)
from scoresde.conditioning import ResampleObserved
from scoresde.sampling.sampler import Sampler
from scoresde.sampling.tape import NoiseTape, ReplayedNoise
from scoresde.schedules import Schedule
from solvers import DDIM, Adaptive, ExponentialMultistep, Langevin

every_solver = pytest.mark.parametrize("solver", PREPARED.values(), ids=PREPARED)


def conditional(clean):
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    model = Denoising(sde, network(3, noise_levels=3), observe="blocks")
    return condition(model, clean=clean, y=torch.ones(1))


MODELS = {
    "uniform": uniform,
    "learned": lambda: uniform(Learned(2)),
    "staged": staged,
    "conditional": lambda: conditional(False),
    "clean": lambda: conditional(True),
    "guided": guided,
}
every_model = pytest.mark.parametrize("name", MODELS)


def seeded(count=None, first=0):
    if count is None:
        return torch.Generator().manual_seed(first)
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def etas(kind):
    return (0.0,) if kind.weak_order is None else (0.0, 0.7)


@pytest.mark.covering(2)
@every_dtype
@every_model
@every_solver
def test_what_is_compiled_draws_what_is_sampled(solver, name, dtype):
    model = MODELS[name]().to(dtype)
    for eta in etas(solver):
        # multistep methods have all their memory in the third step
        sampler = solver(3, eta=eta).compiled(model, (4,))
        for seed, count in ((3, None), (7, 4)):  # again, and with other noise
            found = sampler(seeded(count, seed))
            wanted = sampler.solver.sample(model, (4,), generator=seeded(count, seed))
            assert found.dtype == dtype
            assert torch.equal(found, wanted)


BETWEEN = {
    "corrector": {"corrector": Langevin()},
    "churn": {"churn": 0.4, "eta": 0.5},
    "final": {"final_denoise": True},
    "all": {"corrector": Langevin(2), "churn": 0.4, "final_denoise": True},
}


@pytest.mark.covering(2)
@every_dtype
@pytest.mark.parametrize("name", ["uniform", "staged", "clean"])
@pytest.mark.parametrize("kind", BETWEEN)
@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_what_is_done_between_steps_is_done(solver, kind, name, dtype):
    model = MODELS[name]().to(dtype)
    sampler = solver(5, **BETWEEN[kind]).compiled(model, (2, 5))
    for seed in (3, 7):
        found = sampler(seeded(first=seed))
        wanted = sampler.solver.sample(model, (2, 5), generator=seeded(first=seed))
        assert found.shape[:2] == (2, 5)
        assert torch.equal(found, wanted)


def test_what_is_observed_is_drawn_anew():
    model = conditional(False)
    sampler = DDIM(5, eta=1.0, corrector=ResampleObserved()).compiled(model, (4,))
    assert torch.equal(sampler(seeded()), sampler.solver.sample(model, (4,), generator=seeded()))


@every_dtype
def test_conditions_are_read_when_samples_are_drawn(dtype):
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3, dtype=dtype)

        def forward(self, x, level, condition):
            return self.inner(x) * condition

    torch.manual_seed(0)
    sde = DiagonalSDE(VP(), Identity((3,)))
    model = Denoising(sde, Told())
    guided = ClassifierFree(model, torch.zeros(1, dtype=dtype), guidance=1.5)
    for estimator in (model, guided):
        known = torch.ones(4, 1, dtype=dtype)
        sampler = DDIM(5).compiled(estimator, (4,), condition=known)
        for value in (1.0, 2.0):
            known.fill_(value)
            wanted = DDIM(5).sample(estimator, (4,), condition=known, generator=seeded())
            assert torch.equal(sampler(seeded()), wanted)


def test_a_condition_in_another_dtype_is_followed():
    """What is cast when steps are prepared is cast anew."""

    class Told(nn.Linear):
        def forward(self, x, level, condition):
            return super().forward(x) * condition

    torch.manual_seed(0)
    known = torch.ones(4, 1, dtype=torch.float64)
    model = Denoising(DiagonalSDE(VP(), Identity((3,))), Told(3, 3))
    sampler = DDIM(5).compiled(model, (4,), condition=known)
    first = sampler(seeded())
    known.fill_(2.0)
    wanted = DDIM(5).sample(model, (4,), condition=known, generator=seeded())
    assert torch.equal(sampler(seeded()), wanted)
    assert not torch.equal(first, wanted)


# What is prepared is prepared once.


@pytest.fixture
def reads(monkeypatch):
    """How often a schedule was read."""
    count = [0]
    read = Schedule.read

    def counted(self, *args, **kwargs):
        count[0] += 1
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Schedule, "read", counted)
    return count


@pytest.mark.covering(1)
@every_dtype
@pytest.mark.parametrize("name", [n for n in MODELS if n != "guided"])
@every_solver
@pytest.mark.parametrize("extra", [{}, {"final_denoise": True}, {"churn": 0.3}], ids=str)
def test_a_compiled_sampler_reads_nothing(reads, extra, solver, name, dtype):
    model = MODELS[name]().to(dtype)
    for eta in etas(solver):
        sampler = solver(6, eta=eta, **extra).compiled(model, (4,))
        before = reads[0]
        assert before > 0
        sampler(seeded())
        assert reads[0] == before


@pytest.mark.parametrize("solver", PREPARED.values(), ids=PREPARED)
def test_preparing_costs_what_a_sample_costs(reads, solver):
    model = staged()
    start = reads[0]
    solver(6).sample(model, (4,), generator=seeded())
    once = reads[0]
    solver(6).compiled(model, (4,))
    assert reads[0] - once == once - start > 0


def test_a_sampler_makes_no_noise_of_its_own():
    model = uniform()
    state = torch.random.get_rng_state()
    sampler = DDIM(5, eta=1.0).compiled(model, (4,))
    assert torch.equal(state, torch.random.get_rng_state())
    sampler()
    assert not torch.equal(state, torch.random.get_rng_state())


# What changes is followed.


@pytest.mark.parametrize("name", changes_of_tensors())
@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_what_changes_is_followed(solver, name):
    model = uniform(Learned(2))
    sampler = solver(5).compiled(model, (4,))
    before = sampler(seeded())
    changes_of_tensors()[name](model)
    wanted = sampler.solver.sample(model, (4,), generator=seeded())
    assert torch.equal(sampler(seeded()), wanted)
    assert not torch.equal(before, wanted)
    assert torch.equal(sampler(seeded()), wanted)


def test_weights_that_change_in_place_cost_no_preparation(reads):
    model = uniform()
    sampler = DDIM(5).compiled(model, (4,))
    before = reads[0]
    changes_of_tensors()["weights"](model)
    sampler(seeded())
    assert reads[0] == before
    changes_of_tensors()["moments"](model)
    sampler(seeded())
    assert reads[0] > before


# Shapes, modes, refusals.


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
def test_shapes(shape):
    sampler = DDIM(5, eta=1.0).compiled(staged(), shape)
    assert sampler(seeded()).shape == (*shape, 4)
    assert sampler.sample_shape == shape


def test_networks_are_in_evaluation_mode_and_go_back():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout())

        def forward(self, x, level):
            return self.inner(x)

    model = Denoising(DiagonalSDE(VP(), Identity((3,))), Dropping())
    sampler = DDIM(5).compiled(model, (4,))
    assert torch.equal(sampler(seeded()), sampler(seeded()))
    assert model.training
    assert not sampler(seeded()).requires_grad


def test_inference_mode():
    model = uniform()
    with torch.inference_mode():
        sampler = DDIM(5).compiled(model, (4,))
        inside = sampler(seeded())
    assert torch.equal(sampler(seeded()), inside)


@pytest.mark.parametrize("solver", [Adaptive(), SOLVERS["torchdiffeq"](5)], ids=repr)
def test_solvers_that_choose_their_steps_are_refused(solver):
    with pytest.raises(ValueError, match="solver: expected one that knows its steps beforehand"):
        solver.compiled(uniform(), (4,))


def test_samples_that_diverge_are_refused():
    model = uniform()
    sampler = DDIM(5).compiled(model, (4,))
    with torch.no_grad():
        model.network.output_layer[1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="samples: expected finite numbers from DDIM"):
        sampler(seeded())


def test_generators_are_checked():
    sampler = DDIM(5).compiled(uniform(), (4,))
    with pytest.raises(ValueError, match="one generator, or 4"):
        sampler(seeded(3))
    with pytest.raises(TypeError, match="generator: expected a Generator, got 3"):
        sampler(3)


def test_nothing_is_compiled_unasked(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    DDIM(2).compiled(uniform(), (4,))()


def test_what_it_is_can_be_seen():
    sampler = DDIM(5).compiled(uniform(), (4,))
    assert isinstance(sampler, Sampler)
    assert repr(sampler).startswith("Sampler(DDIM(steps=5")


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", ["uniform", "staged", "clean"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_the_walk_compiles_as_a_whole(solver, eta, name):
    torch._dynamo.reset()
    model = MODELS[name]()
    options = {"fullgraph": True, "backend": "eager"}
    sampler = solver(3, eta=eta).compiled(model, (4,), compile=options)
    for seed in (3, 7):
        wanted = sampler.solver.sample(model, (4,), generator=seeded(first=seed))
        assert torch.equal(sampler(seeded(first=seed)), wanted)


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune", "fullgraph": True},
        {"backend": "cudagraphs"},
        {"options": {"triton.cudagraphs": True}},
    ],
    ids=str,
)
def test_no_graph_is_captured_within_another(asked):
    """On whatever device, as what is written on one is run on others."""
    with pytest.raises(ValueError, match="compile: expected what leaves CUDA graphs to this"):
        DDIM(3).compiled(uniform(), (4,), compile=asked)


@pytest.mark.parametrize("asked", ["reduce-overhead", 1, None])
def test_what_are_no_arguments_of_a_compiler_are_refused(asked):
    with pytest.raises(TypeError, match="compile: expected a Mapping"):
        DDIM(3).compiled(uniform(), (4,), compile=asked)


def test_other_modes_are_taken():
    model, asked = uniform(), {"mode": None, "backend": "eager", "options": None}
    sampler = DDIM(2).compiled(model, (4,), compile=asked)
    assert torch.equal(sampler(seeded()), DDIM(2).sample(model, (4,), generator=seeded()))


@every_dtype
def test_whatever_was_drawn_is_drawn_again(dtype):
    like, uniform_law = torch.empty(3, 2, dtype=dtype), torch.distributions.Uniform(0.0, 1.0)
    tape = NoiseTape(Noise(seeded()))
    flat = torch.distributions.Independent(uniform_law.expand((2,)), 1)
    asked = (
        lambda noise: noise(like),
        lambda noise: noise.uniform(like),
        lambda noise: noise.stratified(like, 2),
        lambda noise: noise.draw(flat, like),
    )
    first = [draw(tape) for draw in asked]
    assert all(
        torch.equal(*pair) for pair in zip(tape.draw_all(Noise(seeded())), first, strict=True)
    )
    drawn = ReplayedNoise(first)
    assert all(draw(drawn) is known for draw, known in zip(asked, first, strict=True))
    plain = Noise(seeded())
    assert all(torch.equal(draw(plain), known) for draw, known in zip(asked, first, strict=True))
