"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What opens neither what a link leads to nor, in a child, what its parent has open.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which replaces the one at ``path`` if no error is raised inside.

    It is synchronised to the disk before this ends. Otherwise the old file is kept; a process that
    is killed leaves ``.NAME.RANDOM.tmp`` beside it, which is created exclusively, under a random
    name, so that no other writer has it and no link can have been made of it.

    Raises:
        OSError: If the folder is missing or cannot be written, or ``path`` is a folder.
    """
    path = Path(path)
    # as much of the name as people need to know it by: the whole may be as long as names can be
    temporary = path.with_name(f".{path.name[:48]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk they do not say where, NumPy's not even what
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is durable once its folder is
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
