"""Every event is learned from with its own condition, however it comes."""

from contextlib import nullcontext

import attrs
import pytest
import torch
from runs import DATA, Stop, same

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Identity, LogLinear, ScoreEstimator
from scoresde.data import Dataset, LazyArray
from scoresde.training import Training, distributed
from scoresde.training.batch_loss import BatchLoss
from scoresde.training.batches import TrainingBatches
from scoresde.training.distributed import SingleProcess

VECTORS = DATA.values.roll(1, 0) * torch.linspace(1, 2, len(DATA)).unsqueeze(-1)


def model(dtype=torch.float32, dropout=0.1):
    torch.manual_seed(0)
    network = ResidualMLP((2,), width=8, depth=1, condition_dim=2, dropout=dropout)
    # a network that is not told anything says 0 at first
    torch.nn.init.normal_(network.output_layer[1].weight, std=0.1)
    return Denoising(DiagonalSDE(LogLinear(), Identity((2,))), network).to(dtype)


class Matching(ScoreEstimator):
    """Its loss is how far events are from what they are told."""

    def __init__(self):
        super().__init__(DiagonalSDE(LogLinear(), Identity((2,))))
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), []

    def denoise(self, z, t, condition=None):
        return z

    def loss(self, x, condition=None, generator=None):
        self.seen.append(condition.dtype)
        return self.weight.square() + (x[:, 0] - condition.reshape(len(x), -1)[:, 0]).abs().mean()


COUNT = 40
NUMBERED = torch.arange(float(COUNT)).unsqueeze(-1).repeat(1, 2)
TOLD = {"labels": torch.arange(COUNT), "vectors": NUMBERED.clone(), "doubles": NUMBERED.double()}


def pair(rows):
    return NUMBERED[rows], TOLD["labels"][rows]


def read_together():
    both = LazyArray(COUNT, pair)
    return Dataset("mine", both, condition=both.condition)


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_events_and_conditions_stay_together(kind, lazy, accumulation):
    told = TOLD[kind]
    values = LazyArray(COUNT, NUMBERED.__getitem__) if lazy else NUMBERED
    data, estimator = Dataset("mine", values, condition=told), Matching()
    training = Training(steps=3, batch_size=6, accumulation=accumulation, lr=1e-12)
    history = training.fit(estimator, data, data, progress=False)
    assert history.losses + history.held_out == pytest.approx([1.0] * 6)
    assert set(estimator.seen) == {torch.int64 if kind == "labels" else torch.float32}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_read_together_and_ahead(workers):
    training = Training(steps=3, batch_size=6, workers=workers, lr=1e-12)
    history = training.fit(Matching(), read_together(), progress=False)
    assert history.losses == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_with_conditions_goes_on_bit_for_bit(tmp_path, lazy, dtype):
    values = LazyArray(len(DATA), DATA.values.__getitem__) if lazy else DATA.values
    data = Dataset("mine", values, condition=VECTORS)
    training = Training(steps=4, batch_size=8, measurements=2)

    def fit(stops, **options):
        for stop in (*stops, None):

            def on_step(step, stop=stop):
                if step == stop:
                    raise Stop

            estimator = model(dtype)
            try:
                history = training.fit(
                    estimator, data, data, progress=False, on_step=on_step, **options
                )
            except Stop:
                continue
        return estimator, attrs.evolve(history, seconds=0.0)

    assert same(fit([]), fit([2], folder=tmp_path / "run", save_every=1))


@pytest.mark.parametrize("lazy", [False, True])
def test_other_labels_are_another_run(tmp_path, lazy):
    def fit(told, classes=None, events=NUMBERED):
        events = LazyArray(COUNT, events.__getitem__) if lazy else events
        data = Dataset("mine", events, condition=told, classes=classes)
        training = Training(steps=1, batch_size=4)
        training.fit(Matching(), data, progress=False, folder=tmp_path / "run")

    labels, names = TOLD["labels"] % 4, ("a", "b", "c", "d")
    other = labels.clone()
    other[17] = 3
    fit(labels, names)
    fit(labels, names)
    with pytest.raises(ValueError, match=r"another one: data.condition: expected 40 conditions"):
        fit(other, names)
    with pytest.raises(ValueError, match=r"another one: data.classes: expected a, b, c, d, got b"):
        fit(labels, ("b", "a", "c", "d"))
    with pytest.raises(ValueError, match=r"another one: data: expected 40 events"):
        fit(labels, names, NUMBERED + 1)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_processes_share_events_with_their_conditions(count, parts, monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "_parallel", lambda module: module)
    monkeypatch.setattr(distributed.SharedLoss, "alone", lambda *_: nullcontext())
    training = Training(batch_size=8, accumulation=parts)
    data, gradients = Dataset("mine", DATA.values, condition=VECTORS), []
    for processes in (1, count):
        shares = []
        for index in range(processes):
            alone = SingleProcess(num_processes=processes, process_index=index)
            estimator = model(dropout=0.0)
            loss = BatchLoss.new(training, estimator, 0, alone)
            batches = TrainingBatches(data, training, 0, alone, torch.device("cpu"))
            loss.gradients(batches, 3, lambda value: value)
            shares.append(torch.cat([w.grad.flatten() for w in estimator.parameters()]))
        gradients.append(torch.stack(shares).mean(0))
    torch.testing.assert_close(*gradients)


def test_the_event_whose_condition_fails_is_named():
    class Failing(Matching):
        def loss(self, x, condition=None, generator=None):
            return super().loss(x, condition) + torch.where(condition == 7, torch.nan, 0.0).sum()

    data = Dataset("mine", NUMBERED, condition=TOLD["labels"])
    with pytest.raises(FloatingPointError, match="event 7 of mine is by itself"):
        Training(steps=40, batch_size=8).fit(Failing(), data, progress=False)
