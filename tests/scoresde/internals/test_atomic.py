"""Files are whole or not there, and no link leads a writer elsewhere."""

import errno
import os
import threading

import pytest

from scoresde.internals import atomic as files
from scoresde.internals.atomic import atomic_write


def write(path, content):
    with atomic_write(path) as file:
        file.write(content)


def test_links_of_what_may_be_written_are_not_followed(tmp_path, monkeypatch):
    """Even where the name could be guessed."""
    victim, path = tmp_path / "precious", tmp_path / "config.json"
    victim.write_text("kept")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".config.json.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write(path, b"new")
    (tmp_path / f".config.json.{os.getpid()}.tmp").symlink_to(victim)
    monkeypatch.undo()
    write(path, b"new")
    assert (victim.read_text(), path.read_text()) == ("kept", "new")


def test_a_link_at_the_name_itself_is_replaced(tmp_path):
    victim, path = tmp_path / "precious", tmp_path / "config.json"
    victim.write_text("kept")
    path.symlink_to(victim)
    write(path, b"new")
    assert (victim.read_text(), path.read_text()) == ("kept", "new")
    assert not path.is_symlink()


def test_threads_have_names_of_their_own(tmp_path):
    path, sizes = tmp_path / "x", [10**5 + i for i in range(8)]
    threads = [threading.Thread(target=write, args=(path, b"a" * n)) for n in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.stat().st_size in sizes
    assert list(tmp_path.iterdir()) == [path]


def test_names_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("x" * 255)
    write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_what_the_mask_lets_them(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    write(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("9 requested and 5 written")],
)
def test_a_full_disk_says_where(tmp_path, error):
    path = tmp_path / "x.npy"

    def fill():
        with atomic_write(path):
            raise error

    with pytest.raises(OSError, match=rf"{error.strerror or error}: '.*x\.npy'") as caught:
        fill()
    assert caught.value.errno == (error.errno or errno.EIO)
    assert not list(tmp_path.iterdir())
