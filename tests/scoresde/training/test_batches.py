"""Batches in an order that follows seed and step, whoever reads them."""

import itertools
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from forks import forked
from runs import DATA, edited

from scoresde.data import Dataset, LazyArray
from scoresde.training import Training
from scoresde.training.batches import BatchOrder, TrainingBatches
from scoresde.training.distributed import SINGLE_PROCESS, SingleProcess

CPU = torch.device("cpu")


def stored(read, name="stored"):
    return Dataset(name, LazyArray(len(DATA), read))


def noisy(rows):
    """Events that are drawn anew at every reading, as augmented ones are."""
    return DATA.values[rows] + 0.1 * torch.rand(len(rows), 2)


def weights(data, workers=None, **options):
    estimator = edited()
    training = Training(steps=7, batch_size=16, workers=workers)
    training.fit(estimator, data, progress=False, **options)
    return torch.nn.utils.parameters_to_vector(estimator.parameters())


@pytest.mark.parametrize("read", [lambda rows: DATA.values[rows], noisy])
@pytest.mark.parametrize("workers", [1, 2])
def test_who_reads_ahead_changes_nothing(read, workers):
    assert torch.equal(weights(stored(read)), weights(stored(read), workers))
    assert multiprocessing.active_children() == []


def test_data_on_a_disk_and_in_memory_train_the_same():
    assert torch.equal(weights(DATA), weights(stored(lambda rows: DATA.values[rows])))


def test_nor_do_workers_belong_to_the_run(tmp_path):
    data, called = stored(noisy), []
    first = weights(data, 2, folder=tmp_path)
    assert torch.equal(first, weights(data, 0, folder=tmp_path, on_step=called.append))
    assert called == []


def test_a_run_goes_on_with_other_workers(tmp_path):
    def stop(step):
        if step == 3:
            raise RuntimeError

    for workers in (2, 0):
        folder = tmp_path / str(workers)
        with pytest.raises(RuntimeError):
            weights(stored(noisy), workers, on_step=stop, folder=folder, save_every=1)
        assert multiprocessing.active_children() == []
        assert torch.equal(weights(stored(noisy)), weights(stored(noisy), 1, folder=folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_data_is_said_in_the_same_words(workers):
    def read(rows):
        return DATA.values[rows].masked_fill((rows == 77).unsqueeze(-1), torch.nan)

    with pytest.raises(ValueError, match=r"^stored: expected .*, got .*(NaN|nan)"):
        Training(steps=50, workers=workers).fit(edited(), stored(read), progress=False)
    assert multiprocessing.active_children() == []


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_no_process_can_send_is_said_by_its_name():
    def read(rows):
        if len(rows) > 1:
            raise Unsendable("this", "that")
        return DATA.values[rows]

    with pytest.raises(RuntimeError, match=r"Unsendable: this and that"):
        Training(steps=5, workers=1).fit(edited(), stored(read), progress=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_default_device_is_not_for_who_reads(workers):
    data, estimator = stored(lambda rows: DATA.values[rows]), edited()
    wanted = weights(data)
    torch.set_default_device("meta")
    try:
        Training(steps=7, batch_size=16, workers=workers).fit(estimator, data, progress=False)
    finally:
        torch.set_default_device(None)
    assert torch.equal(wanted, torch.nn.utils.parameters_to_vector(estimator.parameters()))


def test_the_world_s_generators_are_left_alone():
    for workers in (0, 1):
        estimator, training = edited(), Training(steps=4, batch_size=16, workers=workers)
        data = stored(noisy)
        before = torch.get_rng_state()
        training.fit(estimator, data, progress=False)
        assert torch.equal(before, torch.get_rng_state())


def test_processes_share_the_rows_of_one():
    whole = BatchOrder(50, 12, seed=3)
    parts = [BatchOrder(50, 12, seed=3, index=i, processes=3) for i in range(3)]
    for step in range(4):
        together = torch.stack([part.own(step) for part in parts], 1).flatten()
        assert torch.equal(together, whole.whole(step))
    assert not torch.equal(whole.whole(0), whole.whole(1))
    assert not torch.equal(whole.whole(0), BatchOrder(50, 12, seed=4).whole(0))


def test_batches_come_in_any_order():
    """Read ahead as they are, one is read again where something went wrong."""
    data, training = stored(lambda rows: DATA.values[rows]), Training(batch_size=8, workers=1)
    with TrainingBatches(data, training, 5, SINGLE_PROCESS, CPU) as batches:
        for step in (0, 1, 2, 1, 2, 9, 0):
            assert torch.equal(batches.pairs(step).values, DATA.values[batches.order.whole(step)])
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_reads_its_own_events_only(count):
    read, processes = [], SingleProcess(num_processes=count)
    data = stored(lambda rows: read.append(len(rows)) or DATA.values[rows])
    read.clear()
    with TrainingBatches(data, Training(batch_size=8), 0, processes, CPU) as batches:
        assert batches.pairs(0).values.shape == (8 // count, 2)
    assert read == [8 // count]


def test_where_a_processor_trains_nobody_reads_ahead_unless_asked(monkeypatch):
    data, training = stored(lambda rows: DATA.values[rows]), Training()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    meta = torch.device("meta")

    def workers(data, device, training=training):
        return TrainingBatches(data, training, 0, SINGLE_PROCESS, device)._workers

    assert workers(data, CPU) == 0
    assert workers(data, meta) == 8
    assert workers(DATA, meta) == 0
    assert workers(data, CPU, Training(workers=3)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers(data, meta) == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert workers(data, meta) == 0


def test_where_processes_are_not_forked_what_cannot_be_sent_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"^workers: expected 0, as .* cannot be sent such data"):
        Training(steps=2, workers=1).fit(
            edited(), stored(lambda rows: DATA.values[rows]), progress=False
        )


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(process) for process in file.read().split()]


def interrupted(folder, number):
    """A run whose fifth update gets a signal, as all of its processes do where it is Ctrl-C."""
    os.setsid()

    def on_step(step):
        if step == 4:
            print(*children(), flush=True)
            if number == signal.SIGINT:
                os.killpg(0, number)
            else:
                os.kill(os.getpid(), number)

    data = stored(lambda rows: DATA.values[rows])
    training = Training(steps=9, batch_size=16, workers=2)
    try:
        training.fit(edited(), data, progress=False, folder=folder, on_step=on_step)
    except KeyboardInterrupt:
        print("interrupted", *children())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed by Linux")
def test_ctrl_c_ends_those_that_read_and_loses_nothing(tmp_path):
    from scoresde.training import checkpoint

    done = forked(interrupted, tmp_path, signal.SIGINT)
    first, last = done.stdout.splitlines()
    assert (len(first.split()), last, done.stderr) == (2, "interrupted", "")
    assert checkpoint.load(tmp_path)[1]["step"] == 5
    data = stored(lambda rows: DATA.values[rows])
    assert torch.equal(weights_of(tmp_path, data), weights_of(None, data))


def weights_of(folder, data):
    estimator = edited()
    Training(steps=9, batch_size=16).fit(estimator, data, progress=False, folder=folder)
    return torch.nn.utils.parameters_to_vector(estimator.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed by Linux")
def test_who_reads_does_not_outlive_who_trains(tmp_path):
    """Killed by what nothing can catch, it leaves nobody, and a folder that is free."""
    done = forked(interrupted, tmp_path, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    data = stored(lambda rows: DATA.values[rows])
    assert torch.equal(weights_of(tmp_path, data), weights_of(None, data))
    readers = [int(number) for number in done.stdout.split()]
    assert len(readers) == 2
    for _ in itertools.takewhile(lambda _: any(map(alive, readers)), range(300)):
        multiprocessing.Event().wait(0.1)
    assert not any(map(alive, readers))


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
