"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of the one at ``path`` when all has gone well.

    It is on the disk before this ends. What is there is kept otherwise; a process killed on the
    way leaves ``.NAME.PID.tmp`` beside it.

    Raises:
        OSError: If the folder is missing or cannot be written, or ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.files import replacing
        >>> path = Path(tempfile.mkdtemp(), "notes")
        >>> with replacing(path) as file:
        ...     _ = file.write(b"new")
        >>> path.read_text()
        'new'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is durable once its folder is
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
