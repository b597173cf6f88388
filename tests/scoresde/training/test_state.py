"""Runs that are extended, interrupted, shared, wrapped, and that fail: nothing is lost or mixed."""

import math
import os
import signal
import threading

import attrs
import pytest
import torch
from runs import DATA, Stop, edited, fitted, model, same
from torch import nn

from estimators import Denoising, ResidualMLP
from scoresde import DCT, DiagonalSDE, LogLinear
from scoresde.data import Dataset, LazyArray
from scoresde.training import Training, checkpoint
from scoresde.training.batch_loss import BatchLoss
from scoresde.training.distributed import SINGLE_PROCESS
from scoresde.training.lock import FolderLocked
from scoresde.training.run_identity import RunIdentity
from scoresde.training.state import TrainingState


def extended(folder, stops):
    """Weights and history of a run of 12 updates extended to 30, interrupted on the way."""
    training = Training(steps=12, measurements=3, lr=5e-3)
    fitted(training, held_out=DATA, folder=folder, save_every=5)
    longer = attrs.evolve(training, steps=30)
    return fitted(longer, stops=stops, held_out=DATA, folder=folder, save_every=4)


def test_a_run_is_extended_bit_for_bit(tmp_path):
    whole, broken = extended(tmp_path / "a", ()), extended(tmp_path / "b", (13, 20, 29))
    assert same(whole, broken)
    assert whole[1].steps == [4, 8, 12, 20, 30]
    # the rates of the longer run, from where it was
    assert not same(whole, fitted(Training(steps=30, measurements=3, lr=5e-3), held_out=DATA))
    with pytest.raises(ValueError, match=r"training\.steps: expected 30 or more, got 12"):
        fitted(Training(steps=12, measurements=3, lr=5e-3), held_out=DATA, folder=tmp_path / "a")


def test_an_interrupted_run_is_extended(tmp_path):
    training = Training(steps=12, measurements=3)
    longer = attrs.evolve(training, steps=20)
    for name in "ab":
        with pytest.raises(Stop):
            fit_until(training, 7, tmp_path / name)
    whole = fitted(longer, folder=tmp_path / "a", save_every=1)
    assert same(whole, fitted(longer, stops=(9, 15), folder=tmp_path / "b", save_every=1))


def fit_until(training, stop, folder, error=None):
    def on_step(step):
        if step == stop:
            raise Stop if error is None else error

    torch.manual_seed(0)
    network = ResidualMLP((2,), width=16, depth=1, dropout=0.1)
    estimator = Denoising(DiagonalSDE(LogLinear(), DCT((2,))), network, data_std=[1.3])
    options = {"progress": False, "on_step": on_step, "folder": folder}
    return training.fit(estimator, DATA, save_every=1000 if error else 1, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_who_interrupts_loses_nothing(tmp_path, error):
    training = Training(steps=20)
    with pytest.raises(type(error)):
        fit_until(training, 7, tmp_path / "broken", error)
    assert checkpoint.load(tmp_path / "broken")[1]["step"] == 7
    whole = fitted(training, folder=tmp_path / "whole")
    assert same(whole, fitted(training, folder=tmp_path / "broken"))


@pytest.fixture
def keyboard():
    """Ctrl-C raises, also where the tests run in the background and nobody can press it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("where", ["update", "measure", "save"])
def test_ctrl_c_is_heard_where_nothing_is_half_done(tmp_path, where, monkeypatch):
    training, sent = Training(steps=20, measurements=4), []
    owner = {"update": BatchLoss}.get(where, TrainingState)
    target = {"update": "gradients", "measure": "held_out_loss", "save": "save"}[where]
    real = getattr(owner, target)

    def slow(self, *arguments):
        found = real(self, *arguments)
        step = arguments[1] if where == "update" else self.step
        if step == {"update": 11}.get(where, 10) and not sent:
            sent.append(1)
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(owner, target, slow)
    options = {"held_out": DATA, "save_every": 5}
    with pytest.raises(KeyboardInterrupt):
        fitted(training, folder=tmp_path / "broken", **options)
    assert sent
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoint.load(tmp_path / "broken")[1]["step"] == {"update": 12}.get(where, 10)
    whole = fitted(training, folder=tmp_path / "whole", **options)
    assert same(whole, fitted(training, folder=tmp_path / "broken", **options))


def test_an_interrupt_in_the_middle_of_an_update_is_not_written(tmp_path):
    """What is read raises it by itself, after numbers have been drawn."""
    training, reads = Training(steps=12, batch_size=8), []

    def read(places):
        reads.append(len(places))
        if (
            len(places) == 8 and reads.count(8) == 9
        ):  # a read for every update, one for every measurement
            raise KeyboardInterrupt
        return DATA.values[places]

    data = Dataset("stored", LazyArray(len(DATA), read))
    options = {"progress": False, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        training.fit(edited(), data, folder=tmp_path, **options)
    assert checkpoint.load(tmp_path)[1]["step"] == 4
    found, wanted = edited(), edited()
    training.fit(found, data, folder=tmp_path, **options)
    training.fit(wanted, DATA, **options)
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)


def test_two_do_not_train_in_one_folder(tmp_path):
    """The second is told who does, before any work; the first goes on."""
    found = []

    def second(step):
        if step == 2:
            with pytest.raises(
                FolderLocked, match=rf"process {os.getpid()} of .* since .* one at a time"
            ):
                Training(steps=4).fit(model(), DATA, progress=False, folder=tmp_path)
            found.append(step)

    history = Training(steps=4).fit(
        model(), DATA, progress=False, folder=tmp_path, on_step=second, save_every=1
    )
    assert (found, history.steps[-1]) == ([2], 4)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_threads_train_what_each_would_alone():
    """With dropout, whose numbers are torch's global ones."""
    training, found = Training(steps=15, batch_size=8), {}

    def run(seed, estimator):
        training.fit(estimator, DATA, DATA, seed=seed, progress=False)
        found[seed] = nn.utils.parameters_to_vector(estimator.parameters())

    for seed in range(4):
        run(seed, edited())
    wanted, found = found, {}
    threads = [threading.Thread(target=run, args=(seed, edited())) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert torch.equal(wanted[seed], found[seed])
        assert not torch.equal(wanted[seed], wanted[(seed + 1) % 4])


def test_dropout_follows_the_seed_and_leaves_the_global_generator_alone():
    weights, found = edited().state_dict(), []
    for world in (1, 2):
        estimator = edited()
        estimator.load_state_dict(weights)
        torch.manual_seed(world)
        before = torch.get_rng_state()
        Training(steps=5).fit(estimator, DATA, DATA, progress=False)
        assert torch.equal(before, torch.get_rng_state())
        found.append(nn.utils.parameters_to_vector(estimator.parameters()))
    assert torch.equal(*found)


WRAPPERS = {
    "plain": lambda network: network,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
}


@pytest.mark.parametrize(("before", "after"), zip(WRAPPERS, reversed(WRAPPERS), strict=True))
def test_a_wrapped_network_goes_on_unwrapped_and_back(tmp_path, before, after):
    def wrapped(name):
        estimator = edited()
        estimator.network = WRAPPERS[name](estimator.network)
        return estimator

    def stop(step):
        if step == 3:
            raise Stop

    training = Training(steps=6, batch_size=16)
    options = {"progress": False, "folder": tmp_path, "save_every": 1}
    with pytest.raises(Stop):
        training.fit(wrapped(before), DATA, DATA, on_step=stop, **options)
    estimator, wanted = wrapped(after), edited()
    history = training.fit(estimator, DATA, DATA, **options)
    whole = training.fit(wanted, DATA, DATA, progress=False)
    assert history.held_out == whole.held_out
    for a, b in zip(estimator.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_estimator_is_trained_itself(name):
    first, second = edited(), edited()
    training = Training(steps=3, batch_size=16)
    training.fit(first, DATA, progress=False)
    training.fit(WRAPPERS[name](second), DATA, progress=False)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("held_out", [None, DATA])
@pytest.mark.parametrize("steps", [1, 40])
def test_a_rate_beyond_all_measure_ends_without_a_model(tmp_path, held_out, steps):
    """The largest that there may be; in float64 what it leads to is still a number."""
    training = Training(steps=steps, lr=1e30, weight_decay=0.0)
    with pytest.raises(FloatingPointError, match=r"is (nan|inf) (after|at) step [12]\b"):
        training.fit(edited(), DATA, held_out, progress=False, folder=tmp_path, save_every=1)
    if (tmp_path / "config.json").exists():
        state, _ = checkpoint.load(tmp_path)
        assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", ["data", "held_out"])
def test_the_event_whose_loss_is_no_number_is_named(tmp_path, part, dtype):
    bad = DATA.values.to(dtype, copy=True)
    bad[37] = {torch.float32: 1e30, torch.float64: 1e300}[dtype]
    data = {"data": DATA.values.to(dtype), "held_out": DATA.values.to(dtype), part: bad}
    said = rf"loss is (nan|inf) (after|at) step 1, as that of event 37 of {part} is by itself"
    with pytest.raises(FloatingPointError, match=said):
        Training(steps=4).fit(edited().to(dtype), **data, progress=False, folder=tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_missing_values_where_nobody_takes_them_are_named(tmp_path):
    values = DATA.values.clone()
    values[3, 0] = float("nan")
    gaps = Dataset("gaps", values, missing=True)
    said = r"event 3 of gaps is by itself, of which values are missing: only estimators with vec"
    with pytest.raises(FloatingPointError, match=said):
        Training(steps=1, batch_size=512).fit(edited(), gaps, progress=False)


class Cliff(torch.autograd.Function):
    """Finite, with a gradient that is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


class Steep(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, level):
        return Cliff.apply(x * self.weight)


def test_a_gradient_that_is_no_number_is_named():
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (nan|inf) at step 1"):
        Training(steps=3).fit(edited(network=Steep()), DATA, progress=False)


class Fails(nn.Module):
    """Right for some updates, then not, then right again."""

    def __init__(self, bad, gradient=False):
        super().__init__()
        self.inner, self.bad, self.gradient = ResidualMLP((2,), 16, 1), bad, gradient
        self.step = 0

    def forward(self, x, level):
        out = self.inner(x, level)
        if not self.training or self.step != self.bad:
            return out
        return Cliff.apply(out) if self.gradient else out * math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("complex_too", [False, True])
def test_a_failure_that_is_noticed_later_is_named_as_it_was(dtype, gradient, complex_too):
    """And leaves the weights of before, whether the optimiser is fused or not."""
    training, kept, seen = Training(steps=60, measurements=1), {}, []
    estimator = edited(network=Fails(5, gradient)).to(dtype)
    if complex_too:  # which no fused optimiser takes
        estimator.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))

    def on_step(step):
        seen.append(step)
        estimator.network.step = step
        if step == 5:
            kept.update({k: v.clone() for k, v in estimator.state_dict().items()})
        if step == 20:  # the update is done again as it was
            estimator.network.bad = -1

    real = TrainingState.expect_finite

    def expect_finite(self, batches):
        estimator.network.step = estimator.network.bad = 5
        real(self, batches)

    what = "the gradient's norm" if gradient else "the loss"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "expect_finite", expect_finite)
        with pytest.raises(FloatingPointError, match=rf"{what} is (nan|inf) at step 6\b"):
            training.fit(estimator, DATA, progress=False, on_step=on_step)
    assert seen[-1] == (5 if complex_too else 31)
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_failure_is_noticed_before_anything_is_measured_or_written(tmp_path):
    for options in ({"save_every": 8}, {"measurements": 7}):
        training = Training(steps=60, measurements=options.pop("measurements", 1))
        estimator, seen = edited(network=Fails(5)), []

        def on_step(step, estimator=estimator, seen=seen):
            estimator.network.step = min(step, 5)
            seen.append(step)

        with pytest.raises(FloatingPointError, match="the loss is nan at step 6"):
            training.fit(
                estimator, DATA, progress=False, on_step=on_step, folder=tmp_path, **options
            )
        assert seen[-1] == 7
        assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_failure_in_half_precision_leaves_the_weights_of_before(dtype):
    estimator, kept = edited(network=Fails(5)).to(dtype), {}

    def on_step(step):
        estimator.network.step = step
        if step == 5:
            kept.update({k: v.clone() for k, v in estimator.state_dict().items()})
        if step == 31:
            estimator.network.bad = 31

    training = Training(steps=60, measurements=1, precision="float16")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 6"):
        training.fit(estimator, DATA, progress=False, on_step=on_step)
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, kept[name])


def test_what_was_good_stays_when_a_run_fails(tmp_path):
    estimator = edited()

    def spoil(step):
        if step == 4:
            with torch.no_grad():
                next(estimator.network.parameters()).fill_(math.nan)

    with pytest.raises(FloatingPointError, match="at step 5"):
        Training(steps=9).fit(
            estimator, DATA, progress=False, folder=tmp_path, on_step=spoil, save_every=1
        )
    assert checkpoint.load(tmp_path)[1]["step"] == 4


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    run = TrainingState.new(Training(), edited(), 0, SINGLE_PROCESS)
    name = next(iter(run.average.values))
    run.average.values[name].fill_(math.inf)
    identity, said = RunIdentity.of({}, run.estimator, DATA), f"{name} is not finite after step 0"
    with checkpoint.writer(tmp_path) as write, pytest.raises(FloatingPointError, match=said):
        run.save(write, identity)
    assert list(tmp_path.iterdir()) == []


def test_a_default_device_is_for_others(tmp_path):
    """The meta device refuses every number that was made there."""
    estimator, integers = edited(), Dataset("x", (DATA.values > 0).long(), bins=2)
    training = Training(steps=4)
    options = {"progress": False, "folder": tmp_path, "save_every": 1}
    torch.set_default_device("meta")
    try:
        history = training.fit(estimator, integers, DATA, **options)
        assert training.fit(estimator, integers, DATA, **options) == history
    finally:
        torch.set_default_device(None)
