"""One writer has a folder: among threads and processes, until it ends, however it ends."""

import json
import os
import re
import signal
import threading
import time

import pytest
import torch
from forks import FORKS, needs_fork

from scoresde.training import checkpoint, lock
from scoresde.training.lock import FolderLocked, folder_lock


def hold(folder, seconds, said):
    with folder_lock(folder):
        said.send("mine")
        time.sleep(seconds)


def hold_with_a_child(folder, said):
    with folder_lock(folder):
        if os.fork() == 0:
            said.send(os.getpid())
        time.sleep(600)


def started(function, *arguments):
    """A process and the first that it says."""
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=function, args=(*arguments, there))
    process.start()
    return process, here.recv()


@needs_fork
def test_who_has_it_is_said_and_whoever_is_killed_has_it_no_more(tmp_path):
    process, _ = started(hold, tmp_path, 600)
    said = rf"{re.escape(str(tmp_path))}: process {process.pid} of \S+, since 20\d\d-.*, is writing"
    with pytest.raises(FolderLocked, match=said), folder_lock(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / ".lock").exists()  # nobody was left to remove it
    with folder_lock(tmp_path) as folder:
        assert folder == tmp_path
    assert list(tmp_path.iterdir()) == []


@needs_fork
def test_one_waits_for_another_to_end(tmp_path):
    process, _ = started(hold, tmp_path, 0.5)
    with folder_lock(tmp_path, wait=60):
        process.join()
        assert process.exitcode == 0


def test_threads_take_turns(tmp_path):
    inside, seen = [], []

    def work():
        for _ in range(50):
            with folder_lock(tmp_path, wait=60):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 300
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        _ = 1 / 0
    with folder_lock(tmp_path):
        pass


@needs_fork
def test_a_child_that_outlives_its_parent_does_not_keep_it(tmp_path):
    """As a loader's worker may, whose parent was killed."""
    process, child = started(hold_with_a_child, tmp_path)
    try:
        with pytest.raises(FolderLocked), folder_lock(tmp_path):
            pass
        process.kill()
        process.join()
        with folder_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe"])
def test_what_is_no_lock_is_left_alone(tmp_path, kind):
    victim, path = tmp_path / "precious", tmp_path / "run" / ".lock"
    victim.write_text("kept")
    path.parent.mkdir()
    {
        "link": lambda: path.symlink_to(victim),
        "hard link": lambda: os.link(victim, path),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    with pytest.raises(OSError, match=r"\.lock") as error, folder_lock(path.parent):
        pass
    assert not isinstance(error.value, FolderLocked)
    assert victim.read_text() == "kept"
    assert os.path.lexists(path)


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """By one that ended between opening and locking: another may have made a new one since."""
    real, calls = lock._lock, []

    def late(descriptor):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(lock, "_lock", late)
    with folder_lock(tmp_path), pytest.raises(FolderLocked), folder_lock(tmp_path):
        pass


def test_a_lock_without_a_word_is_one(tmp_path):
    process, _ = started(hold, tmp_path, 600)
    (tmp_path / ".lock").write_text('["nothing"]')
    with pytest.raises(FolderLocked, match="another process is writing"), folder_lock(tmp_path):
        pass
    process.kill()
    process.join()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.warns(UserWarning, match="knows no locks .Operation not supported"),
        folder_lock(tmp_path),
    ):
        pass


def test_saves_wait_for_each_other_and_a_writer_is_waited_for_no_longer(tmp_path, monkeypatch):
    def save(step):
        for _ in range(10):
            checkpoint.save(tmp_path, {"w": torch.full((100,), float(step))}, {"step": step})

    threads = [threading.Thread(target=save, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state, config = checkpoint.load(tmp_path)
    assert (state["w"] == config["step"]).all()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.1)
    with checkpoint.writer(tmp_path) as write:
        with pytest.raises(FolderLocked, match=f"process {os.getpid()}"):
            save(0)
        with pytest.raises(FolderLocked):
            checkpoint.remove(tmp_path)
        write({"w": torch.ones(1)}, {"step": "last"})
    assert checkpoint.load(tmp_path)[1] == {"step": "last"}
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 2
