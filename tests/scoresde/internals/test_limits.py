"""What files may cost, and which have no end."""

import contextlib
import json
import os
import socket
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from forks import forked
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save

from scoresde import DCT
from scoresde.app import config
from scoresde.app.config import ConfigError
from scoresde.app.model import Model
from scoresde.data import load
from scoresde.internals import limits
from scoresde.training import checkpoint
from scoresde.training.checkpoint import CheckpointError


def test_the_bound_is_settable(monkeypatch):
    assert limits.memory() == 2**30
    monkeypatch.setenv("SCORESDE_MEMORY", "12345")
    assert limits.memory() == 12345
    with limits.memory_limit(2**40):
        limits.expect_memory("x", 2**40)
        with pytest.raises(ValueError, match=r"x: expected at most 1\.02e\+03 GiB, got"):
            limits.expect_memory("x", 2**40 + 1)
    assert limits.memory() == 12345


@pytest.mark.parametrize("text", ["", "1e9", "-1", "1 GiB", "\u0661"])
def test_a_bound_that_is_none(monkeypatch, text):
    monkeypatch.setenv("SCORESDE_MEMORY", text)
    with pytest.raises(ValueError, match=r"SCORESDE_MEMORY: expected a number of bytes"):
        limits.memory()


@pytest.mark.parametrize("memory", [0, -1, 1.5, "1", None])
def test_what_cannot_be_allowed(memory):
    with (
        pytest.raises(ValueError, match="memory: expected a positive number"),
        limits.memory_limit(memory),
    ):
        pass


def test_the_bound_is_a_threads_own():
    seen = []
    with limits.memory_limit(7):
        thread = threading.Thread(target=lambda: seen.append(limits.memory()))
        thread.start()
        thread.join()
    assert seen == [2**30]


def test_a_large_file_may_cost_in_proportion():
    with limits.memory_limit(1000):
        limits.expect_memory("x", 1600, on_disk=100)
        with pytest.raises(ValueError, match="SCORESDE_MEMORY=1601"):
            limits.expect_memory("x", 1601, on_disk=100)


def test_a_sparse_file_is_a_small_one(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="sparse: expected"):
        limits.read(path)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def bound(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path):
    path.symlink_to(path.name)


def folder(path):
    path.mkdir()


ENDLESS = [pipe, device, bound, loop, folder]


@pytest.mark.parametrize("make", ENDLESS, ids=lambda make: make.__name__)
def test_what_has_no_end_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("x"))
    with pytest.raises((OSError, ValueError), match="x"):
        limits.read("x")


def test_text_may_cost_the_bound_alone(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 10_000)
    with (
        limits.memory_limit(limits.JSON * 10_000 - 1),
        pytest.raises(ValueError, match="x: expected"),
    ):
        limits.read(path, limits.JSON)
    with limits.memory_limit(limits.JSON * 10_000):
        assert len(limits.read(path, limits.JSON)) == 10_000


def model(folder, basis, shape, weights=None):
    """A folder of a few kilobytes that names a large basis, digests and all."""
    settings = {
        "sde": {"name": "diagonal", "schedule": "vp", "basis": basis},
        "estimator": {"name": "denoising", "network": {"name": "residual-mlp", "width": 1}},
        "solver": "ddim",
    }
    content = {"settings": settings, "facts": {"event_shape": shape, "bins": None}}
    checkpoint.save(folder, weights or {"weight": torch.zeros(4)}, content)
    return folder


@pytest.mark.parametrize(
    ("basis", "shape"),
    [
        ("dct", [1, 20_000, 1]),
        ("dct", [100_000]),
        ("dct", [10**6, 10, 10]),
        ("pca", [1, 150, 150]),
        ("pca", [10**6]),
        ({"name": "dct", "bands": 2}, [9_000]),
    ],
)
def test_a_small_model_may_name_no_large_basis(tmp_path, basis, shape):
    folder = model(tmp_path, basis, shape)
    with pytest.raises(CheckpointError, match=r"event_shape: expected at most 1 GiB, got .* GiB"):
        Model.load(folder)


@pytest.mark.parametrize("basis", ["dct", "pca"])
def test_the_bound_of_a_basis_is_settable(tmp_path, basis):
    folder = model(tmp_path, basis, [1, 32, 32])
    with (
        limits.memory_limit(2**17),
        pytest.raises(CheckpointError, match="event_shape: expected at most"),
    ):
        Model.load(folder)
    with pytest.raises(CheckpointError, match=r"Missing key|do not fit") as later:
        Model.load(folder)
    assert "event_shape" not in str(later.value)


def test_weights_allow_a_basis_in_proportion(tmp_path):
    basis = model(tmp_path, "pca", [1, 16, 16], {"weight": torch.zeros(2**18)})
    with limits.memory_limit(2**17), pytest.raises(CheckpointError, match="Missing key"):
        Model.load(basis)


def test_a_large_transform_is_refused_in_python_too():
    with pytest.raises(ValueError, match="event_shape: expected at most 1 GiB"):
        DCT((20_000,))
    with limits.memory_limit(2**20), pytest.raises(ValueError, match="SCORESDE_MEMORY="):
        DCT((256,))
    assert DCT((256,)).dim == 256


@pytest.mark.parametrize("make", ENDLESS, ids=lambda make: make.__name__)
def test_configurations_and_checkpoints_have_an_end(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(Path("x.toml"))
    with pytest.raises((OSError, ConfigError), match=r"x\.toml"):
        config.read("x.toml")
    Path("model").mkdir()
    make(Path("model/config.json"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load("model")
    (path,) = model(Path("whole"), "dct", [4]).glob("model-*")
    path.unlink()
    make(path)
    with pytest.raises(CheckpointError, match="model-"):
        checkpoint.load(path.parent)


def test_configurations_are_small(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("# a comment\n" * 30_000)
    with pytest.raises(ConfigError, match=r"x\.toml: expected at most 1 GiB"):
        config.read(path)
    path.write_text("\n" + "a." * 4000 + "a = 1\n")
    with pytest.raises(ConfigError, match=r"x\.toml, line 2: expected at most 4096 characters"):
        config.read(path)


def test_a_manifest_is_small(tmp_path):
    folder = model(tmp_path, "dct", [4])
    text = json.loads((folder / "config.json").read_text())
    text["config"]["settings"]["data"] = [{}] * 2**22
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=r"config\.json: expected at most 1 GiB"):
        checkpoint.load(folder)


def test_a_description_of_weights_is_small(tmp_path, monkeypatch):
    folder = model(tmp_path, "dct", [4], {f"weight {i}": torch.zeros(1) for i in range(100)})
    assert len(checkpoint.load(folder)[0]) == 100
    monkeypatch.setenv("SCORESDE_MEMORY", str(limits.JSON * len(save({"a": torch.zeros(100)}))))
    with pytest.raises(CheckpointError, match=r"expected at most"):
        checkpoint.load(folder)


def held(kind):
    text = Path("/proc/self/status").read_text()
    return int(text.split(kind)[1].split()[0]) * 1024


def grown(read, path):
    """Says by how much the memory held has grown at most, and the error."""
    warnings.simplefilter("ignore")
    os.environ[limits.VARIABLE] = str(2**26)
    with contextlib.suppress(OSError):  # forgets earlier peaks, where that may be written
        Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS:")
    try:
        read(path)
    except Exception as error:
        print(held("VmHWM:") - before, type(error).__name__, str(error).replace("\n", " "))


def packed(path):
    np.savez_compressed(path, x=np.zeros((40_000_000, 1)))


def line(path):
    path.write_bytes(b"12," * 1_300_000)


def pixels(path):
    path.mkdir()
    Image.new("RGB", (8000, 8000)).save(path / "0.png")


def repeated(path):
    parquet.write_table(pyarrow.table({"a": np.full(20_000_000, 0.5)}), path)


def transform(path):
    model(path, "dct", [1, 6000, 1])


def components(path):
    model(path, "pca", [1, 80, 80])


def parts(path):
    path.write_bytes((b"a." * 4000 + b"a=1\n") * 3)


HOSTILE = {
    packed: (load, "x.npz"),
    line: (load, "x.csv"),
    pixels: (load, "x"),
    repeated: (load, "x.parquet"),
    transform: (Model.load, "x"),
    components: (Model.load, "x"),
    parts: (config.read, "x.toml"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="measures what a process has had")
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_process_takes_no_more_than_the_bound(tmp_path, make):
    """Each would take 5 to 20 times as much if it were read."""
    reader, name = HOSTILE[make]
    make(tmp_path / name)
    done = forked(grown, reader, tmp_path / name)
    assert "Error" in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) < 2**26, done.stdout
