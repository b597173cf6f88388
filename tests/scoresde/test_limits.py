"""What files may cost, and which have no end."""

import os
import socket
import threading
from pathlib import Path

import pytest

from scoresde import limits


def test_the_bound_is_settable(monkeypatch):
    assert limits.memory() == 2**30
    monkeypatch.setenv("SCORESDE_MEMORY", "12345")
    assert limits.memory() == 12345
    with limits.allow(2**40):
        limits.afford("x", 2**40)
        with pytest.raises(ValueError, match=r"x: expected at most 1\.02e\+03 GiB, got"):
            limits.afford("x", 2**40 + 1)
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
        limits.allow(memory),
    ):
        pass


def test_the_bound_is_a_threads_own():
    seen = []
    with limits.allow(7):
        thread = threading.Thread(target=lambda: seen.append(limits.memory()))
        thread.start()
        thread.join()
    assert seen == [2**30]


def test_a_large_file_may_cost_in_proportion():
    with limits.allow(1000):
        limits.afford("x", 1600, on_disk=100)
        with pytest.raises(ValueError, match="SCORESDE_MEMORY=1601"):
            limits.afford("x", 1601, on_disk=100)


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
    with limits.allow(limits.TEXT * 10_000 - 1), pytest.raises(ValueError, match="x: expected"):
        limits.read(path, limits.TEXT)
    with limits.allow(limits.TEXT * 10_000):
        assert len(limits.read(path, limits.TEXT)) == 10_000
