"""Data that stay on the disk: the same numbers, the same training, little memory."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import forked
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from estimators import Denoising, ResidualMLP, measure
from scoresde import PCA, DiagonalSDE, Identity, LogLinear
from scoresde.app.evaluation import evaluate
from scoresde.app.model import Model
from scoresde.data import Dataset, load, split
from scoresde.data.events import Batches, events
from scoresde.data.lazy_array import LazyArray, concatenated
from scoresde.training import Training
from solvers import DDIM


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
def test_arrays_joined_are_one(sizes, data):
    whole = np.arange(3 * sum(sizes), dtype="f4").reshape(-1, 3)
    stored = concatenated(np.split(whole, np.cumsum(sizes)[:-1]))
    wanted, place = torch.from_numpy(whole), st.integers(0, sum(sizes) - 1)
    rows = torch.tensor(data.draw(st.lists(place, max_size=9)), dtype=torch.int64)
    assert (stored.shape, stored.dtype, len(stored)) == (wanted.shape, wanted.dtype, len(wanted))
    assert torch.equal(stored[rows], wanted[rows])
    assert torch.equal(stored[1:], wanted[1:])
    if len(rows):
        again = torch.randint(len(rows), (4,))
        assert torch.equal(stored.select(rows)[again], wanted[rows][again])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "uint8", "bool", ">i4"])
@pytest.mark.parametrize("shards", [0, 3])
def test_the_same_as_in_memory(tmp_path, dtype, shards):
    array = (np.random.default_rng(0).normal(size=(20, 2, 3)) > 0).astype(dtype)
    path = tmp_path / ("a" if shards else "a.npy")
    if shards:
        path.mkdir()
        for i, part in enumerate(np.split(array, [4, 15])):
            np.save(path / f"{i}.npy", part)
    else:
        np.save(path, array)
    options = {">i4": {"bins": 2}, "uint8": {}, "bool": {}}.get(dtype, {"continuous": True})
    memory, lazy = load(path, **options), load(path, lazy=True, **options)
    assert (memory.lazy, lazy.lazy) == (False, True)
    assert (lazy.bins, lazy.values.dtype) == (memory.bins, memory.values.dtype)
    assert torch.equal(memory.values.double(), torch.from_numpy(array.astype("f8")))
    for one, other in ((lazy, memory), *zip(split(lazy, 0.7), split(memory, 0.7), strict=True)):
        assert one.lazy != other.lazy
        assert one.values.shape == other.values.shape
        assert torch.equal(one.read(slice(None)), other.values)
        assert torch.equal(events(one, torch.Generator().manual_seed(1)),
                           events(other, torch.Generator().manual_seed(1)))  # fmt: skip


def test_images_are_read_when_asked_for(tmp_path):
    for i in range(3):
        pixels = np.full((4, 6, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    lazy = load(tmp_path, lazy=True, mode="L")
    assert torch.equal(lazy.values[:], load(tmp_path, mode="L").values)
    (tmp_path / "2.png").write_bytes(b"garbled")
    assert lazy.read(torch.tensor([1, 0])).flatten(1).unique(dim=1).tolist() == [[40], [0]]
    with pytest.raises(ValueError, match=r"2\.png: expected an image"):
        lazy.read(torch.tensor([0, 2]))
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected the size of 0\.png"):
        lazy.read(torch.tensor([1]))


def test_values_are_checked_when_they_are_read(tmp_path):
    array = np.zeros((9, 2), "f4")
    array[7, 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy", lazy=True)
    data.read(torch.arange(7))
    with pytest.raises(ValueError, match=r"a\.npy: expected finite numbers"):
        data.read(torch.tensor([7]))
    np.save(tmp_path / "b.npy", np.array([[0], [9]]))
    data = load(tmp_path / "b.npy", lazy=True, bins=4)
    with pytest.raises(ValueError, match=r"integers from 0 to 3, got 9 to 9"):
        data.read(torch.tensor([1]))


def test_what_cannot_be_left_on_the_disk(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"lazy: expected False for an \.npz file"):
        load(tmp_path / "a.npz", lazy=True)
    (tmp_path / "a.npz").unlink()
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    np.save(tmp_path / "b.npy", np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"b\.npy: expected float64 .* \(N, 3\) as in a\.npy, got"):
        load(tmp_path)
    for bad in (np.zeros(3), np.zeros(()), np.zeros((3, 0))):
        np.save(tmp_path / "b.npy", bad)
        with pytest.raises(ValueError, match=re.escape("b.npy")):
            load(tmp_path / "b.npy", lazy=True)
    with pytest.raises(ValueError, match="count: expected at least one"):
        LazyArray(0, lambda rows: torch.zeros(len(rows), 2))
    crooked = LazyArray(4, lambda rows: torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"read: expected events \(3, 2\), got \(1, 2\)"):
        crooked[torch.arange(3)]
    with pytest.raises(TypeError, match="floating-point"):
        Dataset("x", LazyArray(4, lambda rows: torch.zeros(len(rows), 2, dtype=torch.int64)))


def settings(path, **options):
    """Of a model that measures all it can: principal components, means and deviations."""
    return {
        "data": {"source": str(path), **options},
        "sde": {"name": "diagonal", "schedule": "log-linear", "basis": "pca"},
        "estimator": {"name": "denoising", "network": {"name": "residual-mlp", "width": 16}},
        "solver": {"name": "ddim", "steps": 3},
        "training": {"steps": 5, "batch_size": 8},
    }


def test_training_is_the_same_bit_for_bit(tmp_path):
    """Far more is stored than is read."""
    array = np.random.default_rng(0).integers(0, 256, (5000, 1, 3, 3), np.uint8)
    np.save(tmp_path / "a.npy", array)
    memory = Model.train(settings(tmp_path / "a.npy"), progress=False)
    lazy = Model.train(settings(tmp_path / "a.npy", lazy=True), progress=False)
    assert lazy.history.losses == memory.history.losses
    assert lazy.history.held_out == memory.history.held_out
    assert lazy.facts == memory.facts
    torch.testing.assert_close(
        lazy.estimator.state_dict(), memory.estimator.state_dict(), rtol=0, atol=0, equal_nan=True
    )
    reports = (
        evaluate(
            memory.estimator,
            load(tmp_path / "a.npy", lazy=lazy),
            memory.solver,
            count=3,
            generator=torch.Generator().manual_seed(0),
        )
        for lazy in (False, True)
    )
    assert next(reports) == next(reports)


def test_measured_in_pieces():
    """In one pass what torch finds in all of them."""
    values = 3 * torch.randn(9001, 4, dtype=torch.float64) + torch.tensor([100.0, 0, -5, 1])
    values[5000:] *= 2
    parts = list(values.split(1234))
    basis = PCA.fit(parts)
    whole = PCA.fit(values)
    covariance = values.T.cov(correction=0)
    torch.testing.assert_close(basis.variances, torch.linalg.eigvalsh(covariance).flip(0))
    torch.testing.assert_close(basis.components, whole.components)
    torch.testing.assert_close(
        basis.components @ covariance @ basis.components.T, torch.diag(basis.variances)
    )
    found = measure(DiagonalSDE(LogLinear(), basis), parts)
    z = basis(values)
    torch.testing.assert_close(found["data_mean"], z.mean(0))
    torch.testing.assert_close(found["data_std"], z.std(0, correction=0))
    with pytest.raises(ValueError, match="data: expected events, got none"):
        measure(DiagonalSDE(LogLinear(), basis), [])


def test_batches_are_all_events_at_every_pass():
    data = Dataset("bins", torch.arange(2**14)[:, None] % 4, bins=4)
    batches = Batches(data, seed=3)
    first, second = torch.cat(list(batches)), torch.cat(list(batches))
    assert torch.equal(first, second)
    assert torch.equal(((first + 1) * 2).floor().long(), data.values)
    assert len(list(batches)) == 4


def trained(path, lazy):
    train, held_out = split(load(path, lazy=lazy), 0.9)
    sde = DiagonalSDE(LogLinear(), Identity(tuple(train.values.shape[1:])))
    model = Denoising(sde, ResidualMLP(train.values.shape[1:], width=8, depth=1))
    Training(steps=3, batch_size=16).fit(model, train, held_out, progress=False)


def train_in_an_eighth(small, large):
    import resource

    trained(small, True)
    text = Path("/proc/self/status").read_text()
    limit = int(text.split("VmData:")[1].split()[0]) * 1024 + 2**27
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    trained(large, True)
    print("trained")
    try:
        trained(large, False)
    except (MemoryError, RuntimeError, ValueError) as error:
        print("no room:", type(error).__name__)


@pytest.mark.skipif(sys.platform != "linux", reason="limits what a process may allocate")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A gigabyte, of which nothing is on the disk either, in an eighth of one."""
    for name, count in (("small.npy", 2**8), ("large.npy", 2**20)):
        np.lib.format.open_memmap(tmp_path / name, "w+", "f4", (count, 1, 16, 16)).flush()
    done = forked(train_in_an_eighth, tmp_path / "small.npy", tmp_path / "large.npy")
    assert done.stdout.startswith("trained\nno room"), done.stdout + done.stderr


def test_own_data_of_any_kind():
    """What has items and a length, one event at a time."""
    items = [torch.full((2,), float(i)) for i in range(10)]
    stored = LazyArray(len(items), lambda rows: torch.stack([items[i] for i in rows]))
    data = Dataset("items", stored)
    sde = DiagonalSDE(LogLinear(), Identity((2,)))
    model = Denoising(sde, ResidualMLP((2,), width=8, depth=1), **measure(sde, Batches(data)))
    assert model.data_mean.tolist() == pytest.approx([4.5, 4.5])
    Training(steps=2).fit(model, data, data, progress=False)
    assert DDIM(2).sample(model, (3,)).shape == (3, 2)
