"""What `sample` keeps between calls changes no sample, and goes with what it was made of."""

import gc
import threading
import weakref

import attrs
import pytest
import torch
from torch import nn
from walks import PREPARED, changes_of_tensors, every_dtype, guided, network, staged, uniform

from estimators import ClassifierFree, Denoising, ResidualMLP
from scoresde import (
    VP,
    Clock,
    DiagonalSDE,
    Identity,
    Learned,
    Noise,
    Schedule,
)
from scoresde.internals.snapshot import Snapshot, parts_of
from scoresde.sampling import cache
from scoresde.sampling.grid import log_snr
from solvers import DDIM, Adaptive, ExponentialMultistep, Langevin

MODELS = {"uniform": uniform, "learned": lambda: uniform(Learned(2)), "staged": staged}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(solver, model, shape=(4,), **options):
    return solver.sample(model, shape, generator=seeded(), **options)


@pytest.fixture
def reads(monkeypatch):
    """How often a schedule was read."""
    count, read = [0], Schedule.read

    def counted(self, *args):
        count[0] += 1
        return read(self, *args)

    monkeypatch.setattr(Schedule, "read", counted)
    return count


def is_planned_again(reads, solver, model, **options):
    before = reads[0]
    drawn(solver, model, **options)
    return reads[0] > before


@pytest.mark.covering(2)
@every_dtype
@pytest.mark.parametrize("name", [*MODELS, "guided"])
@pytest.mark.parametrize("solver", PREPARED.values(), ids=PREPARED)
@pytest.mark.parametrize("extra", [{}, {"corrector": Langevin()}, {"churn": 0.3}], ids=str)
def test_another_call_draws_what_the_first_would(reads, extra, solver, name, dtype):
    make = {**MODELS, "guided": guided}[name]
    eta = 0.0 if solver.weak_order is None else 0.7
    model, plan = make().to(dtype), solver(6, eta=eta, **extra)
    plan.sample(model, (4,), generator=seeded(5))
    before = reads[0]
    found = drawn(plan, model)
    # guidance and correctors ask at every step, of states
    assert (reads[0] == before) or name == "guided" or "corrector" in extra
    assert torch.equal(found, drawn(plan, make().to(dtype)))
    assert found.dtype == dtype


def test_two_walks_of_one_model_do_not_meet(reads):
    model, solvers = uniform(), [DDIM(5), DDIM(5, eta=1.0), DDIM(6), ExponentialMultistep(5)]
    first = [drawn(solver, model) for solver in solvers]
    before = reads[0]
    again = [drawn(attrs.evolve(solver), model) for solver in solvers]  # equal, not the same
    assert reads[0] == before
    assert all(map(torch.equal, first, again))
    assert drawn(DDIM(5), model, (2, 2)).shape == (2, 2, 3)
    assert drawn(DDIM(5), model, dtype=torch.float64).dtype == torch.float64


def test_batches_are_planned_once_and_the_last_once_more(reads):
    model = uniform()
    start = reads[0]
    DDIM(5).sample(model, (4,))
    each = reads[0] - start
    DDIM(5).sample(model, (11,), batch_size=4)
    assert reads[0] == start + 2 * each


def changes():
    tensors = changes_of_tensors()

    def schedule(model):
        model.sde.schedule = VP(beta_max=10.0)

    def clock(model):
        model.sde.clock = Clock([1.0, 0.3])

    def number(model):
        model.sde.eps = 0.1

    def parametrization(model):
        model.parametrization = lambda alpha, sigma, std: uniform().parametrization(
            alpha, sigma, 2 * std
        )

    def replaced(model):
        model.network = ResidualMLP((3,), 8, 2)
        nn.init.normal_(model.network.output_layer[1].weight)

    def network_alone(model):
        model.network.double()

    def data(model):
        for p in model.network.parameters():
            p.data = 0.5 * p.data

    def learned_data(model):
        vector = nn.utils.parameters_to_vector(model.sde.schedule.parameters())
        nn.utils.vector_to_parameters(vector * 1.5, model.sde.schedule.parameters())

    attributes = schedule, clock, number, parametrization, replaced
    data_of = network_alone, data, learned_data
    return tensors | {f.__name__: f for f in (*attributes, *data_of)}


@pytest.mark.parametrize("name", changes())
@pytest.mark.parametrize("solver", [DDIM(5), ExponentialMultistep(5)], ids=repr)
def test_what_changes_is_followed(solver, name):
    model, fresh = uniform(Learned(2)), uniform(Learned(2))
    before = drawn(solver, model, dtype=torch.float32)
    for each in (model, fresh):
        torch.manual_seed(0)
        changes()[name](each)
    found = drawn(solver, model, dtype=torch.float32)
    assert torch.equal(found, drawn(solver, fresh, dtype=torch.float32))
    assert not torch.equal(found, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_samples_made_in_other_modes_are_the_same(mode):
    model = uniform()
    with mode():
        inside = drawn(DDIM(5), model)
    assert torch.equal(inside, drawn(DDIM(5), model))
    assert drawn(DDIM(5), model).is_inference() is False


def test_gradients_flow_through_what_is_not_kept():
    model = uniform(Learned(2))
    drawn(DDIM(5), model)
    x = DDIM(5).rsample(model, (4,), generator=seeded())
    assert torch.equal(x, drawn(DDIM(5), model))
    (slope,) = torch.autograd.grad(x.sum(), model.sde.schedule.weight)
    assert slope.isfinite().all()
    assert slope.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_that_a_grid_writes_to_are_followed(dtype):
    """It may give the same tensor each time, with other numbers in it."""
    model, times = uniform(), torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=dtype)
    solver = DDIM(3, grid=lambda sde, steps: times)
    before = drawn(solver, model)
    assert torch.equal(drawn(solver, model), before)
    times[1] = 0.9
    assert torch.equal(drawn(solver, model), drawn(solver, uniform()))
    assert not torch.equal(drawn(solver, model), before)


def test_grids_of_others_are_asked_each_time():
    model, ends = uniform(), [4]

    def grid(sde, steps):
        return log_snr(sde, ends[0])

    first = drawn(DDIM(5, grid=grid), model)
    ends[0] = 3
    assert not torch.equal(drawn(DDIM(5, grid=grid), model), first)
    ends[0] = 4
    assert torch.equal(drawn(DDIM(5, grid=grid), model), first)


def test_what_a_class_adds_to_a_solver_is_seen():
    class Spy(DDIM):
        def walk(self, equation, y, ts, noise, memory=None):
            seen.append(len(ts))
            return super().walk(equation, y, ts, noise, memory)

    class Scaled(DDIM):
        factor = 1.0

        def weights(self, ahead, discontinuous, at, memory):
            assert self.factor
            return at.each(self.factor * ahead.gain)[0]

        def step(self, y, step, noise, memory):
            return step.decay * y + step.weights * step.fields[0].forcing(y), None

    model, seen = uniform(), []
    for _ in range(3):
        drawn(Spy(5), model)
    assert seen == [6] * 3
    assert not Spy(5).planned
    with pytest.raises(ValueError, match="one that knows its steps beforehand"):
        Spy(5).compiled(model, (4,))
    one, two = Scaled(5), Scaled(5)
    object.__setattr__(two, "factor", 2.0)
    assert one == two
    assert not torch.equal(drawn(one, model), drawn(two, model))


def test_correctors_and_what_they_know_are_asked():
    class Pull:
        by = 0.5

        def __call__(self, reverse, z, t, noise):
            return self.by * z

    pull, model = Pull(), uniform()
    first = drawn(DDIM(5, corrector=pull), model)
    pull.by = 0.9
    assert not torch.equal(drawn(DDIM(5, corrector=pull), model), first)


class Told(nn.Linear):
    def forward(self, x, level, condition):
        first = condition if isinstance(condition, torch.Tensor) else condition[0][0]
        return super().forward(x) * first


def told():
    torch.manual_seed(0)
    return Denoising(DiagonalSDE(VP(), Identity((3,))), Told(3, 3))


@every_dtype
def test_a_walk_is_kept_with_its_condition(reads, dtype):
    """And prepared anew for another one, or if somebody has written to it."""
    model = told().to(dtype)
    for estimator in (model, ClassifierFree(model, torch.zeros(1, dtype=dtype), guidance=1.5)):
        known, other = (torch.full((1,), v, dtype=torch.float64) for v in (1.0, 2.0))
        first = drawn(DDIM(5), estimator, condition=known)
        assert not is_planned_again(reads, DDIM(5), estimator, condition=known)
        assert torch.equal(drawn(DDIM(5), estimator, condition=known), first)
        second = drawn(DDIM(5), estimator, condition=other)
        assert not torch.equal(first, second)
        known.fill_(2.0)
        assert torch.equal(drawn(DDIM(5), estimator, condition=known), second)
        known.data = torch.ones(1, dtype=torch.float64)
        assert torch.equal(drawn(DDIM(5), estimator, condition=known), first)


def test_conditions_in_collections_are_looked_into():
    model = told()
    known = ([torch.ones(1)], 2)
    first = drawn(DDIM(5), model, condition=known)
    assert torch.equal(drawn(DDIM(5), model, condition=known), first)
    known[0][0] = torch.full((1,), 2.0)
    second = drawn(DDIM(5), model, condition=known)
    assert not torch.equal(second, first)
    known[0][0].mul_(0.5)
    assert torch.equal(drawn(DDIM(5), model, condition=known), first)


class Notes:
    def __init__(self):
        self.known = torch.ones(1)

    def __getitem__(self, name):
        return [self.known]


@pytest.mark.parametrize("kind", ["others", "dictionaries", "large", "differentiated"])
def test_conditions_that_cannot_be_looked_at_are_not_held(kind, monkeypatch):
    model, known = told(), torch.ones(3, requires_grad=kind == "differentiated")
    if kind == "large":
        monkeypatch.setattr(cache, "_MOST_NUMBERS", 2)
    known = {"others": Notes(), "dictionaries": {0: [known]}}.get(kind, known)
    drawn(DDIM(5), model, condition=known)
    assert model not in cache._walks


@pytest.mark.parametrize("condition", [None, torch.ones(1)], ids=["alone", "told"])
def test_a_bar_is_shown_over_what_is_kept(reads, capsys, condition):
    model = uniform() if condition is None else told()
    first = drawn(DDIM(5), model, condition=condition)
    options = {"condition": condition, "progress": True}
    assert not is_planned_again(reads, DDIM(5), model, **options)
    assert "100%" in capsys.readouterr().err
    assert torch.equal(drawn(DDIM(5), model, **options), first)


def test_what_is_large_or_not_planned_is_not_kept(reads, monkeypatch):
    model = uniform()
    drawn(Adaptive(rtol=0.1, atol=0.1), model)
    assert model not in cache._walks
    monkeypatch.setattr(cache, "_MOST_NUMBERS", 17)
    assert is_planned_again(reads, DDIM(5), model)
    assert is_planned_again(reads, DDIM(5), model)
    monkeypatch.setattr(cache, "_MOST_NUMBERS", 18)
    assert is_planned_again(reads, DDIM(5), model)
    assert not is_planned_again(reads, DDIM(5), model)
    for steps in range(6, 12):
        monkeypatch.setattr(cache, "_MOST_NUMBERS", 99)
        drawn(DDIM(steps), model)
    assert len(cache._walks[model]) == 4


class Counting(Denoising):
    asked = 0

    def denoise(self, z, t, condition=None):
        self.asked += 1
        return super().denoise(z, t, condition)


@pytest.mark.parametrize("solver", [DDIM(5), ExponentialMultistep(5)], ids=repr)
def test_what_is_kept_goes_with_the_estimator(solver):
    """Without waiting for circles to be looked for: it may be all that fits on a device."""
    gc.collect()
    gc.disable()
    try:
        for kind in (Denoising, Counting):
            model = kind(uniform().sde, network(3))
            parts = [weakref.ref(part) for part in (model, model.network)]
            drawn(solver, model)
            drawn(solver, model)
            assert len(cache._walks[model]) == 1
            del model
            assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_an_estimator_that_writes_notes_has_them():
    model = Counting(uniform().sde, network(3))
    for calls in (1, 2, 3):
        drawn(DDIM(5), model)
        assert model.asked == 5 * calls
    assert list(model.state_dict()) == list(Counting(uniform().sde, network(3)).state_dict())


def test_modes_are_put_back_whoever_samples():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout())

        def forward(self, x, level):
            started.wait()
            return self.inner(x)

    model = Denoising(DiagonalSDE(VP(), Identity((3,))), Dropping())
    started = threading.Barrier(1)
    wanted, found = drawn(DDIM(5), model), []
    started = threading.Barrier(2)
    threads = [
        threading.Thread(target=lambda: found.append(drawn(DDIM(5), model))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, wanted) for x in found)
    assert len(found) == 2
    assert all(part.training for part in model.modules())


def test_noise_is_drawn_anew():
    model, solver = uniform(), DDIM(5, eta=1.0)
    assert not torch.equal(solver.sample(model, (4,)), solver.sample(model, (4,)))
    many = [torch.Generator().manual_seed(i) for i in range(4)]
    alone = solver.sample(model, (1,), generator=[torch.Generator().manual_seed(2)])
    torch.testing.assert_close(solver.sample(model, (4,), generator=many)[2], alone[0])
    with pytest.raises(ValueError, match="one generator, or 4"):
        solver.sample(model, (4,), generator=Noise(many[:3]))


@pytest.mark.parametrize("wrong", [(4.0,), ("4",), (-1,), 4.5])
def test_shapes_are_checked_each_time(wrong):
    model = uniform()
    drawn(DDIM(5), model)
    with pytest.raises((TypeError, ValueError), match="sample_shape"):
        drawn(DDIM(5), model, wrong)


# Snapshots.


CHANGES = {
    "written": lambda whole: whole["a"].weight.detach().add_(1),
    "attribute": lambda whole: setattr(whole["a"], "note", 3),
    "longer": lambda whole: whole["b"][0].append(2),
    "shorter": lambda whole: whole.pop("c"),
    "order": lambda whole: whole["b"].reverse(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_looks_into_collections_and_modules(change):
    whole = {"a": nn.Linear(1, 1), "b": [[1], 2], "c": torch.zeros(1)}
    before = Snapshot(*parts_of(whole))
    assert before.holds()
    change(whole)
    assert not before.holds()


def test_a_snapshot_keeps_no_tensor():
    x = torch.zeros(1)
    before, place = Snapshot([x], [[x]]), weakref.ref(x)
    del before._containers[0][0], x
    assert place() is None
    assert not before.holds()


def test_what_is_not_read_may_be_written_to():
    x, moved = torch.zeros(1), torch.zeros(1)
    before, placed = Snapshot([x, moved], read=lambda v: False), Snapshot([moved], placed=True)
    x.add_(1)
    assert before.holds()
    assert placed.holds()
    moved.data = torch.ones(1)
    assert before.holds()
    assert not placed.holds()
    moved.data = torch.ones(1, dtype=torch.float64)
    assert not before.holds()
