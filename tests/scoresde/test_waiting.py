"""What sampling and likelihoods ask of a device, counted on one that has no values."""

import pytest
import torch
from models import SOLVERS

from estimators import ClassifierFree, Denoising, Gaussian, Guidance, MultiScale, ResidualMLP
from scoresde import (
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    FixedStep,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    Noise,
    Quadrature,
    bound,
    condition,
    log_prob,
)
from scoresde.likelihood import HutchPlusPlus, importance
from scoresde.testing import DeviceCalls
from solvers import DDIM, ExponentialMultistep, Langevin

META = torch.device("meta")
FIXED = {name: kind for name, kind in SOLVERS.items() if issubclass(kind, FixedStep)}
# who waits does not depend on it; float64 is there for the coefficients that are not cast
every_dtype = pytest.mark.parametrize("dtype", [torch.float32], ids=str)


def uniform(speeds=(1.0, 0.6), sizes=(1, 2)):
    blocks = {str(i): size for i, size in enumerate(sizes)}
    n = sum(sizes)
    sde = DiagonalSDE(VP(), Identity((n,), blocks), list(speeds))
    return Denoising(sde, ResidualMLP((n,), 8, 1), data_mean=0.5, data_std=2.0)


def staged():
    sde = DiagonalSDE(Cosine(), Haar((4,), 1), [1.0, 1.5], drop=[1.0, 0.5])
    return MultiScale(sde, [ResidualMLP((2,), 8, 1), ResidualMLP((4,), 8, 1)])


def conditional(clean):
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    model = Denoising(sde, ResidualMLP((3,), 8, 1, noise_levels=3), observe="blocks")
    return condition(model, clean=clean, y=torch.ones(1))


MODELS = {
    "uniform": uniform,
    "staged": staged,
    "many blocks": lambda: uniform([1.0, 1.2, 1.4, 1.6, 1.8], [1] * 5),
    "large": lambda: uniform(sizes=(100, 500)),
    "conditional": lambda: conditional(False),
    "clean": lambda: conditional(True),
    "guided": lambda: Guidance(uniform(), lambda x: x[..., :1], torch.ones(1), 0.3),
}
STEPS = 4
"""A wait a step is more than one; multistep methods have all their memory in the third."""
DENSE = [n for n in MODELS if n not in ("conditional", "clean")]
"""Those of which nothing is observed: where it is, what is read of the mask comes on top."""


def counted(function):
    with DeviceCalls() as calls:
        function()
    return calls


def waits(calls):
    return calls.copies.total(), calls.reads.total()


@pytest.mark.covering(2)
@every_dtype
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
@pytest.mark.parametrize("seeds", [None, 5])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_wait_once_whatever_the_steps(solver, eta, seeds, name, dtype):
    """At the end, for whether they are finite."""
    model = MODELS[name]().to(dtype).to(META)
    generator = seeds and [torch.Generator().manual_seed(i) for i in range(seeds)]
    calls = counted(lambda: solver(STEPS, eta=eta).sample(model, (5,), generator=generator))
    assert waits(calls) == (0, 1)


@pytest.mark.parametrize(
    "options", [{"corrector": Langevin()}, {"churn": 0.3}, {"final_denoise": True}], ids=str
)
def test_what_is_between_steps_does_not_wait(options):
    for name in ("uniform", "staged"):
        model = MODELS[name]().to(META)
        calls = counted(lambda: DDIM(STEPS, **options).sample(model, (5,)))  # noqa: B023
        assert waits(calls) == (0, 1)


def test_guidance_without_a_classifier_does_not_wait():
    model = ClassifierFree(uniform(), torch.zeros(1), guidance=2.0).to(META)
    model.estimator.network.forward = lambda x, level, known: x * known
    known = torch.ones(5, 1, device=META)
    calls = counted(lambda: DDIM(STEPS).sample(model, (5,), condition=known))
    assert waits(calls) == (0, 1)


def test_noise_with_a_generator_for_each_sample_is_sent_at_once():
    many = [torch.Generator().manual_seed(i) for i in range(50)]
    calls = counted(lambda: Noise(many)(torch.empty(50, 3, device=META)))
    assert (calls.queued.total(), *waits(calls)) == (1, 0, 0)


WALKS = [(solver, "staged") for solver in FIXED.values()]
WALKS += [(ExponentialMultistep, name) for name in MODELS if name != "staged"]
"""What is prepared of a model does not depend on who walks, and stages are the hardest."""


@every_dtype
@pytest.mark.parametrize(("solver", "name"), WALKS)
def test_a_compiled_sampler_sends_its_noise_and_nothing_else(solver, name, dtype):
    host = MODELS[name]().to(dtype)
    draws = {eta: sampler_draws(solver, eta, host) for eta in (0.0, 1.0)[: 1 + takes_noise(solver)]}
    model = host.to(META)
    for eta, asked in draws.items():
        with DeviceCalls():
            sampler = solver(STEPS, eta=eta).compiled(model, (5,))
        calls = counted(sampler)
        assert waits(calls) == (0, 1)
        if name != "guided":  # which asks the schedule at every step, on its device
            assert calls.queued.total() == 0
        source = torch.Generator().manual_seed(0)
        sent = counted(lambda s=sampler, g=source: s(g)).queued.total()
        assert sent - calls.queued.total() == len(asked)


def takes_noise(solver):
    return solver.weak_order is not None


def sampler_draws(solver, eta, model):
    """What a walk asks of its noise."""
    asked = []

    class Asked(Noise):
        def __call__(self, like):
            asked.append(like.shape)
            return super().__call__(like)

    solver(STEPS, eta=eta).sample(model, (5,), generator=Asked())
    return asked


TRACES = {"exact": ExactTrace(), "hutchinson": Hutchinson(2), "deflated": HutchPlusPlus(2, 1)}
METHODS = {"solver": ExponentialMultistep, "quadrature": lambda n: Quadrature(n, tolerance=None)}


@pytest.mark.covering(1)
@every_dtype
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_densities_wait_once_whatever_the_steps(method, trace, name, dtype):
    """At the end, for whether they and the events are finite."""
    model = MODELS[name]().to(dtype).to(META)
    x = torch.empty(5, *model.sde.basis.event_shape, dtype=dtype, device=META)
    assert waits(counted(lambda: log_prob(model, x, method(STEPS), trace=trace))) == (0, 1)


@every_dtype
@pytest.mark.parametrize("name", ["uniform", "staged", "guided"])
def test_a_quadrature_looks_once_a_stage_for_what_needs_more_nodes(name, dtype):
    model = MODELS[name]().to(dtype).to(META)
    x = torch.empty(5, *model.sde.basis.event_shape, dtype=dtype, device=META)
    calls = counted(lambda: log_prob(model, x, Quadrature(STEPS)))
    assert waits(calls) == (0, 1 + len(model.sde.stages()))


@every_dtype
@pytest.mark.parametrize("name", [n for n in DENSE if n != "guided"])
def test_bounds_and_their_times_wait_once(name, dtype):
    model = MODELS[name]().to(dtype).to(META)
    x = torch.empty(5, *model.sde.basis.event_shape, dtype=dtype, device=META)
    assert waits(counted(lambda: bound(model, x, draws=3))) == (0, 1)
    assert waits(counted(lambda: importance(model, x, strata=16))) == (0, 1)


# A default device that is not the model's.


@pytest.fixture
def elsewhere():
    """New tensors are on a device without values unless their own is said."""
    before = torch.get_default_device()
    torch.set_default_device("meta")
    yield
    torch.set_default_device(before)


def on_cpu(name):
    with torch.device("cpu"):
        model = MODELS[name]()
        return model, torch.zeros(5, *model.sde.basis.event_shape)


@pytest.mark.parametrize(("solver", "name"), WALKS)
def test_samples_are_where_the_model_is(elsewhere, solver, name):
    model, _ = on_cpu(name)
    seeds = [torch.Generator("cpu").manual_seed(i) for i in range(5)]
    options = {"eta": 0.0 if solver.weak_order is None else 1.0, "final_denoise": True}
    for generator in (None, seeds[0], seeds):
        found = solver(3, **options).sample(model, (5,), generator=generator)
        assert found.device.type == "cpu"
        assert bool(found.isfinite().all())
    assert solver(3, **options).compiled(model, (5,))(seeds).device.type == "cpu"
    batches = solver(3, churn=0.2, corrector=Langevin()).sample(model, (5,), batch_size=2)
    assert batches.device.type == "cpu"


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", [n for n in MODELS if n != "conditional"])
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("method", [Quadrature(6, tolerance=0.0), DDIM(4)], ids=repr)
def test_densities_are_where_the_model_is(elsewhere, method, trace, name):
    model, x = on_cpu(name)
    generator = torch.Generator("cpu").manual_seed(0)
    found = log_prob(model, x, method, trace=trace, generator=generator)
    assert found.value.device.type == found.error.device.type == "cpu"
    if name != "guided":
        assert bound(model, x, generator=generator).device.type == "cpu"
        assert importance(model, x, generator=generator)(model.sde, 8).device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_named_where_it_cannot_be_looked_at_first(monkeypatch, dtype):
    """As on a device: with what comes out."""
    for module in ("exact", "variational"):
        monkeypatch.setattr(f"scoresde.likelihood.{module}.readable", lambda value: False)
    sde = DiagonalSDE(VP(), Identity((2,)))
    model = Gaussian(sde, torch.zeros(2), torch.eye(2)).to(dtype)
    x = torch.tensor([[0.0, torch.nan]], dtype=dtype)
    for ask in (log_prob, bound, importance):
        with pytest.raises(ValueError, match="x: expected finite numbers, got 1 NaN"):
            ask(model, x)
