"""The training loop: what it keeps, what it measures, how it fails."""

import contextlib
import math

import attrs
import pytest
import torch
from forks import FORKS, needs_fork
from runs import DATA, fitted, model, same
from torch import nn

from estimators import Denoising, ResidualMLP
from scoresde import DCT, DiagonalSDE, Identity, LogLinear, ScoreEstimator
from scoresde.data import Dataset
from scoresde.data.events import events
from scoresde.data.placement import PlacedEvents
from scoresde.training import Training, checkpoint
from scoresde.training.batches import TrainingBatches
from scoresde.training.distributed import SINGLE_PROCESS
from scoresde.training.run_identity import RunIdentity
from scoresde.training.state import TrainingState
from solvers import DDIM


def measured(estimator, average, seed):
    run = TrainingState.new(Training(measured_events=4096), estimator, seed, SINGLE_PROCESS)
    run.average.restore({name: p.detach() for name, p in average.named_parameters()})
    with run.average.in_place():
        return run.held_out_loss(PlacedEvents.of("data", DATA, run.device))


def test_the_loss_falls():
    estimator = model()
    history = Training(steps=300, batch_size=64, lr=5e-3, ema=0.9).fit(
        estimator, DATA, DATA, progress=False
    )
    assert history.held_out[-1] < 0.8 * history.held_out[0]
    assert not estimator.training


def test_a_run_is_reproducible():
    def weights(seed):
        estimator = model()
        Training(steps=20).fit(estimator, DATA, DATA, seed=seed, progress=False)
        return nn.utils.parameters_to_vector(estimator.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_measuring_swaps_and_restores_exactly():  # invariant 44
    estimator = model()
    other = model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    before = {k: v.clone() for k, v in estimator.state_dict().items()}
    found = measured(estimator, other, seed=3)
    assert estimator.training
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, before[name])
    # the held-out loss is that of the average, not of the raw weights
    assert found == measured(other, other, seed=3)
    assert found != measured(estimator, estimator, seed=3)


def test_what_is_kept_is_the_average_and_the_best_one():
    estimator = model()
    options = {"measurements": 40, "measured_events": 4096}
    training = Training(steps=40, ema=0.5, lr=0.3, warmup=0.0, **options)
    history = training.fit(estimator, DATA, DATA, seed=5, progress=False)
    assert history.best == history.steps[history.held_out.index(min(history.held_out))]
    assert history.best < 40  # at this rate it gets worse again
    kept = measured(estimator, estimator, seed=5)
    assert kept == min(history.held_out)


class Told(ScoreEstimator):
    """The loss of an event is its first number, and 100 for every update there has been."""

    def __init__(self):
        super().__init__(DiagonalSDE(LogLinear(), Identity((1,))))
        self.weight = nn.Parameter(torch.zeros(()))
        self.updates = 0

    def denoise(self, z, t, condition=None):
        return 0 * z

    def loss(self, x, condition=None, generator=None):
        return x.mean() + 100 * self.updates * self.training + 0 * self.weight


@pytest.mark.parametrize(
    ("batch", "values"),
    [(128, [3.0]), (3, [1.0, 2.0, 6.0]), (7, [5.0] * 5000), (16, range(16)), (5000, range(5000))],
    ids=lambda v: str(v) if isinstance(v, int) else f"{len(v)} events",
)
def test_losses_are_means_over_events_and_updates(batch, values):
    """However events are cut into batches, and however many updates lie between measurements."""
    data = Dataset("numbers", torch.tensor([*values], dtype=torch.get_default_dtype())[:, None])
    training = Training(steps=7, measurements=3, batch_size=batch)
    estimator, same = Told(), Dataset("fours", torch.full((9, 1), 4.0))
    history = training.fit(
        estimator,
        same,
        data,
        progress=False,
        on_step=lambda step: setattr(estimator, "updates", step),
    )
    assert history.steps == [2, 4, 6, 7]
    assert history.losses == pytest.approx([4 + 50, 4 + 250, 4 + 450, 4 + 600])
    assert history.held_out == pytest.approx([sum(values) / len(values)] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"steps": 100_000, "batch_size": 128}, 4096),
        ({"steps": 1000, "batch_size": 32}, 960),  # a tenth of 3 * 32,000 in ten
        ({"steps": 1000, "batch_size": 32, "measurements": 3}, 3200),
        ({"steps": 10, "batch_size": 8}, 256),
        ({"steps": 10, "batch_size": 300}, 300),
        ({"steps": 10, "batch_size": 8, "measured_events": 1}, 8),
        ({"steps": 10, "batch_size": 8, "measured_events": 20}, 16),
        ({"steps": 10, "batch_size": 8, "measured_events": 10**6}, 10**6),
    ],
)
def test_a_measurement_takes_its_share_of_the_time(settings, count):
    training, seen = Training(**settings), []
    assert training.held_out_count == count
    if count > 300:
        return
    estimator = model()
    losses = estimator.losses

    def counted(x, *arguments, **options):
        if not torch.is_grad_enabled():
            seen.append(len(x))
        return losses(x, *arguments, **options)

    estimator.losses = counted
    attrs.evolve(training, steps=1, measurements=1, measured_events=count).fit(
        estimator, DATA, DATA, progress=False
    )
    assert sum(seen) == count


def test_averaging_is_exponential_after_a_while():
    """Among the first updates the decay is smaller: the untrained weights are forgotten."""
    kept = [Training(ema=0.9).ema_decay(count) for count in range(200)]
    assert kept[0] == 0.0
    assert kept[1] == pytest.approx(2 / 11)
    assert kept[10] == pytest.approx(11 / 20)
    assert kept[-1] == pytest.approx(0.9)


def test_the_rate_rises_and_falls():
    training = Training(steps=100, warmup=0.1)
    rates = [training.lr_factor(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-2


def test_integers_are_dequantised_anew():
    data = Dataset("levels", torch.tensor([[0], [3]]), bins=4)
    generator = torch.Generator().manual_seed(0)
    first, second = events(data, generator), events(data, generator)
    assert not torch.equal(first, second)
    assert ((first >= -1) & (first <= 1)).all()


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, level):
        return x * self.weight * math.nan


def test_a_loss_that_is_not_finite_is_named():
    estimator = Denoising(DiagonalSDE(LogLinear(), Identity((2,))), Broken())
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        Training(steps=3).fit(estimator, DATA, progress=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("steps", 2**31 + 1),
        ("batch_size", -1),
        ("batch_size", 2**20 + 1),
        ("lr", 0.0),
        ("lr", "0.002"),
        ("lr", float("nan")),
        pytest.param("lr", 10**400, id="lr-beyond floats"),
        ("lr", True),
        ("ema", 1.0),
        ("ema", "much"),
        ("warmup", -0.1),
        ("weight_decay", -1e-3),
        ("clip", 0),
        ("measurements", 2.0),
        ("precision", "float8"),
        ("precision", ["float32"]),
        ("patience", 0),
        ("patience", 0.5),
    ],
)
def test_settings_are_checked(option, value):
    with pytest.raises(ValueError, match=rf"^{option}: expected .*, got "):
        Training(**{option: value})


@pytest.mark.parametrize("seed", [1.5, "a", None, True, 2**64, -(2**63) - 1])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match=r"^seed: expected a whole number .*, got "):
        Training(steps=1).fit(model(), DATA, seed=seed, progress=False)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_seed_of_torch_is_one(seed):
    Training(steps=1).fit(model(), DATA, seed=seed, progress=False)


def test_frozen_weights_are_nothing_to_train():
    estimator = model().requires_grad_(False)
    with pytest.raises(ValueError, match="estimator: expected weights to train, got Denoising"):
        Training(steps=1).fit(estimator, DATA, progress=False)
    first = next(estimator.parameters()).requires_grad_()
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    Training(steps=3, weight_decay=0.5).fit(estimator, DATA, progress=False)
    changed = {k for k, v in estimator.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {name for name, p in estimator.named_parameters() if p is first}


def run_to_its_end(folder, target, said):
    torch.manual_seed(0)
    network = ResidualMLP((2,), width=16, depth=1, dropout=0.1)
    estimator = Denoising(DiagonalSDE(LogLinear(), Identity((2,))), network)
    history = Training(steps=60, measurements=6).fit(
        estimator, DATA, DATA, progress=False, folder=folder, save_every=7, on_step=said.send
    )
    torch.save((estimator.state_dict(), history.losses, history.held_out, history.best), target)


@needs_fork
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    """At several moments, one after the other, by a signal that nothing can catch."""

    def run(name, stops=()):
        target = tmp_path / f"{name}.pt"
        for stop in (*stops, None):
            here, there = FORKS.Pipe(duplex=False)
            process = FORKS.Process(target=run_to_its_end, args=(tmp_path / name, target, there))
            process.start()
            there.close()
            with contextlib.suppress(EOFError):  # at its end
                while here.recv() < (stop or torch.inf):
                    pass
                process.kill()
            process.join()
            assert (process.exitcode == 0) == (stop is None)
        return torch.load(target)

    (wanted, *history), (found, *same) = run("whole"), run("broken", stops=(3, 30, 31))
    assert same == history
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_a_run_that_is_over_is_not_repeated(tmp_path):
    training, first, second = Training(steps=20), model(), model()
    history = training.fit(first, DATA, DATA, progress=False, folder=tmp_path)
    called = []
    again = training.fit(second, DATA, DATA, progress=False, folder=tmp_path, on_step=called.append)
    assert called == []
    assert again == history
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_runs_are_not_mixed_up(tmp_path):
    Training(steps=4).fit(model(), DATA, progress=False, folder=tmp_path)
    with pytest.raises(ValueError, match=r"training\.lr: expected 0\.001, got 0\.002"):
        Training(steps=4, lr=2e-3).fit(model(), DATA, progress=False, folder=tmp_path)
    sde = DiagonalSDE(LogLinear(), Identity((2,)))
    other = Denoising(sde, ResidualMLP((2,), width=8, depth=1))
    with pytest.raises(ValueError, match=r"out_features: expected 16, got 8"):
        Training(steps=4).fit(other, DATA, progress=False, folder=tmp_path)
    with pytest.raises(ValueError, match="save_every: expected a whole number of at least 1"):
        Training(steps=4).fit(model(), DATA, progress=False, folder=tmp_path, save_every=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_of_networks_only(precision):
    seen = []
    training = Training(steps=40, batch_size=32, lr=5e-3, precision=precision)
    with pytest.MonkeyPatch.context() as patch:
        forward = nn.Linear.forward
        patch.setattr(nn.Linear, "forward", lambda *a: seen.append(forward(*a)) or seen[-1])
        estimator, history = fitted(training, held_out=DATA)
    assert {out.dtype for out in seen} == {getattr(torch, precision)}
    assert {p.dtype for p in estimator.parameters()} == {torch.float32}
    assert estimator.data_std.dtype == torch.float64
    assert estimator.sde.basis.matrix1.dtype == torch.float64
    assert estimator.data_std.item() == 1.3
    _, exact = fitted(attrs.evolve(training, precision="float32"), held_out=DATA)
    assert history.held_out != exact.held_out
    assert history.held_out == pytest.approx(exact.held_out, rel=5e-3)
    assert history.held_out[-1] < 0.97 * history.held_out[0]


class Rounded(nn.Module):
    def __init__(self, back):
        super().__init__()
        self.back = back

    def forward(self, x, level):
        return x.bfloat16().to(self.back)


def test_what_a_network_says_is_rounded_once():
    sde, z = DiagonalSDE(LogLinear(), DCT((3,))), torch.randn(5, 3)
    found, wanted = (
        Denoising(sde, Rounded(dtype)).denoise(z, 0.5) for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_goes_on_bit_for_bit(tmp_path, precision):
    training = Training(steps=30, batch_size=32, precision=precision, lr=5e-3)
    options = {"held_out": DATA, "save_every": 3}
    whole = fitted(training, folder=tmp_path / "whole", **options)
    broken = fitted(training, stops=(4, 5, 17), folder=tmp_path / "broken", **options)
    assert same(whole, broken)


def test_gradient_scales_are_saved(tmp_path):
    run = TrainingState.new(Training(precision="float16"), model(), 0, SINGLE_PROCESS)
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 32.0})
    identity = RunIdentity.of({}, run.estimator, DATA)
    with checkpoint.writer(tmp_path) as write:
        run.save(write, identity)
    other = TrainingState.new(Training(precision="float16"), model(), 0, SINGLE_PROCESS)
    other.restore(tmp_path, identity)
    assert other.scaler.get_scale() == 32.0


def test_a_gradient_that_overflows_is_left_out():
    """In float16 the step is skipped and the scale halved; training goes on."""
    run = TrainingState.new(Training(precision="float16", batch_size=8), model(), 0, SINGLE_PROCESS)
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**60})
    before = {name: value.clone() for name, value in run.estimator.state_dict().items()}
    run.update(TrainingBatches(DATA, run.training, 0, SINGLE_PROCESS, run.device))
    assert run.scaler.get_scale() == 2.0**59
    assert all(torch.equal(value, before[k]) for k, value in run.estimator.state_dict().items())


GETS_WORSE = Training(measured_events=4096, steps=40, ema=0.5, measurements=40, lr=0.3, warmup=0.0)


def test_patience_ends_a_run_that_gets_worse():
    _, whole = fitted(GETS_WORSE, held_out=DATA)
    estimator, history = fitted(attrs.evolve(GETS_WORSE, patience=3), held_out=DATA)
    count = len(history.steps)
    assert history.stopped
    assert not whole.stopped
    assert count < len(whole.steps)
    assert history.held_out == whole.held_out[:count]
    assert history.best == history.steps[count - 4]
    assert min(history.held_out) == history.held_out[count - 4]
    kept = measured(estimator, estimator, seed=0)
    assert kept == min(history.held_out)


def test_patience_survives(tmp_path):
    training = attrs.evolve(GETS_WORSE, patience=3)
    whole = fitted(training, held_out=DATA)
    last = whole[1].steps[-1]
    options = {"folder": tmp_path, "save_every": 1, "held_out": DATA}
    assert same(whole, fitted(training, stops=(1, last - 2, last - 1), **options))
    # over is over
    assert same(whole, fitted(training, stops=(last,), **options))


def test_patience_needs_a_loss_to_wait_for():
    with pytest.raises(ValueError, match="held_out: expected events"):
        Training(steps=2, patience=1).fit(model(), DATA, progress=False)


def test_what_is_shown_on_the_way():
    """The averaged weights, in eval mode, and what has been measured so far."""
    seen = []

    def look(step, estimator, history):
        assert not estimator.training
        own = Denoising.loss(estimator, DATA.values, generator=torch.Generator().manual_seed(1))
        seen.append((step, float(own.detach()), history))

    training = Training(steps=20, measurements=4, lr=1e-2)
    estimator, history = fitted(training, held_out=DATA, on_measure=look)
    assert [step for step, _, _ in seen] == history.steps == [5, 10, 15, 20]
    for i, (_, _, found) in enumerate(seen, start=1):
        assert found.held_out == history.held_out[:i]
        assert found.losses == history.losses[:i]
    estimator.eval()
    last = estimator.loss(DATA.values, generator=torch.Generator().manual_seed(1))
    assert history.best == 20
    assert seen[-1][1] == last.item()


def test_looking_does_not_change_the_run():
    def look(step, estimator, history):
        torch.rand(step)
        DDIM(3).sample(estimator, (4,))
        history.losses.clear()

    training = Training(steps=20, measurements=4)
    whole = fitted(training, held_out=DATA)
    assert same(whole, fitted(training, held_out=DATA, on_measure=look))
