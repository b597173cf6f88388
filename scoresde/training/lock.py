"""Folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from scoresde.internals.atomic import NO_FOLLOW

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PAUSE = 0.02
"""Seconds between two looks at a lock that someone else has: less than most saves take."""

_LOCKED_BY_OTHERS = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What systems say of a lock that someone else has; anything else: that there are no locks."""


class FolderLocked(OSError):
    """A folder has a writer already; the message says which, where and since when."""


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], wait: float = 0.0) -> Iterator[Path]:
    """A folder for this writer alone, among threads, processes and machines that share its disk.

    The lock is the kernel's (``flock``), on a file ``.lock`` that says who has it, and is released
    when a process ends in any way. It does not concern readers.

    Args:
        folder: Created if missing.
        wait: For how many seconds to wait for another writer to end.

    Raises:
        FolderLocked: If there still is one.
        OSError: If the folder cannot be written, or ``.lock`` is a link or no file.

    Warns:
        UserWarning: If the folder's disk has no locks; nothing is locked then.
    """
    path = Path(folder, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, time.monotonic() + wait)
    _descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_holder_record()).encode())
        yield path.parent
    finally:
        if descriptor in _descriptors:  # not in a child
            _descriptors.discard(descriptor)
            _free(path, descriptor)


def _locked(path: Path, until: float) -> int:
    """A descriptor of the file at ``path``, locked, and still at that path."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise FileExistsError(errno.EEXIST, "in the way, and not a lock", str(path))
            if _lock(descriptor):
                # whoever had the lock has removed the file: this may be one that nobody else finds
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(status, os.lstat(path)):
                        return descriptor
            elif time.monotonic() >= until:
                raise FolderLocked(
                    f"{path.parent}: {_holder(descriptor)} is writing there, one at a time may"
                )
            else:
                time.sleep(_PAUSE)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether a file is ours now, without waiting."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # a place that nobody reads
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED_BY_OTHERS:
            return False
        warnings.warn(
            f"folder: its disk knows no locks ({error.strerror}): make sure that one process at a "
            "time writes there",
            stacklevel=6,
        )
    return True


def _free(path: Path, descriptor: int) -> None:
    if sys.platform == "win32":  # what is open cannot be removed there
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
    else:  # while it is ours: whoever has opened it meanwhile sees that it is no longer there
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _holder_record() -> dict[str, str | int]:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _holder(descriptor: int) -> str:
    """Who has written into a lock; it may be empty for a moment."""
    try:
        match json.loads(os.pread(descriptor, 4096, 0)):
            case {"process": int(process), "host": str(host), "since": str(since)}:
                return f"process {process} of {host}, since {since},"
    except (AttributeError, OSError, ValueError):
        pass
    return "another process"


_descriptors: set[int] = set()


def _close_in_child() -> None:
    """A child that outlives its parent does not keep what the parent had."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
