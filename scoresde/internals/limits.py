"""Limits on memory: what a file may cost, before anything is allocated, and chunks of events.

A small file can ask for any amount of memory: a compressed array of zeros, a header that claims a
size, a configuration with a large basis. So whatever reads a file, or builds what it describes,
asks `expect_memory` first. It allows

    max(memory(), 16 bytes for every byte that the file takes on the disk).

The first is 1 GiB unless the environment variable ``SCORESDE_MEMORY`` or `memory_limit` says
otherwise; the second admits files of any size that are not sparse. Python and its libraries
take about 0.5 GiB besides.

Files are opened by `opened`, which refuses those without an end: pipes, devices, and links to such.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from io import BufferedReader

from scoresde.checks import expect

MEMORY = 2**30
"""Bytes, where nothing else is said."""

AMPLIFICATION = 16
"""How many bytes of memory a byte on the disk becomes, as a table's ``0,`` does: a float64 on its
way to float32, and twice that while its list grows."""

JSON = 64
"""Bytes of memory for a byte of JSON, at most, as ``{},`` becomes a dictionary of 64. A description
of weights in a checkpoint becomes objects at about the same rate."""

TOML = 4096
"""The same for TOML, of which little is read slowly, as ``[a]`` becomes several dictionaries."""

TOML_LINE = 4096
"""Most characters of a line of TOML, as a key of ``n`` parts, ``a.a.a``, takes ``4 n^2`` bytes."""

CHUNK_EVENTS, CHUNK_NUMBERS = 4096, 2**22
"""Most events, and numbers in them, that are read, measured or sampled at a time: enough that the
overhead of each chunk is lost, and 32 MB in float64, of which a network makes some hundred times
as much on the way."""

VARIABLE = "SCORESDE_MEMORY"

_allowed: ContextVar[int | None] = ContextVar("scoresde.internals.limits", default=None)


def memory() -> int:
    """Bytes that a small file may cost.

    Raises:
        ValueError: If the environment variable ``SCORESDE_MEMORY`` is not a number of bytes.
    """
    allowed = _allowed.get()
    if allowed is not None:
        return allowed
    text = os.environ.get(VARIABLE, str(MEMORY))
    good = text.isascii() and text.isdigit()
    expect(good, VARIABLE, f"a number of bytes, such as {MEMORY}", repr(text))
    return int(text)


@contextlib.contextmanager
def memory_limit(memory: int) -> Iterator[None]:
    """Another bound for what is read inside, in this thread.

    Args:
        memory: Bytes.

    Raises:
        ValueError: If that is not a positive whole number.
    """
    good = isinstance(memory, int) and memory > 0
    expect(good, "memory", "a positive number of bytes", repr(memory))
    token = _allowed.set(memory)
    try:
        yield
    finally:
        _allowed.reset(token)


def chunk_size(event_shape: Sequence[int]) -> int:
    """Number of events to work on at a time where all might not fit into memory."""
    return max(1, min(CHUNK_EVENTS, CHUNK_NUMBERS // max(1, math.prod(event_shape))))


def expect_memory(name: str, needed: int, on_disk: int = 0) -> None:
    """Raises ``ValueError`` if something would take more memory than a file may cost.

    Args:
        name: What is to be built or read, for the message.
        needed: Bytes that it would take.
        on_disk: Bytes of the file that asks for it, see `size_on_disk`.
    """
    most = max(memory(), AMPLIFICATION * on_disk)
    if needed > most:
        got = f"{needed / 2**30:.3g} GiB; {VARIABLE}={needed} allows it"
        expect(False, name, f"at most {most / 2**30:.3g} GiB", got)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """A regular file, to read: a pipe or a device would never end.

    Raises:
        OSError: If it is missing or cannot be opened.
        ValueError: If it is no regular file.
    """
    # without O_NONBLOCK a pipe that nobody writes to would be waited for while it is opened
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        mode = os.fstat(file.fileno()).st_mode
        expect(stat.S_ISREG(mode), str(path), "a file", _kind(mode))
        yield file


def read(path: str | os.PathLike[str], factor: int = 1) -> bytes:
    """A file's content, if there is memory for what is made of it.

    Args:
        path: A regular file.
        factor: Bytes of memory per byte of the file, with all that is made of it: `JSON` for
            structured text, which may cost `memory` and no more.

    Raises:
        OSError, ValueError: As `opened` and `expect_memory`.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        expect_memory(str(path), factor * size, size_on_disk(path))
        return file.read(size)


def size_on_disk(path: str | os.PathLike[str]) -> int:
    """Bytes that a file takes there: few for a sparse one, whatever size it claims."""
    status = os.stat(path)
    # 512 is POSIX's unit, whatever the file system's; a freshly written file may have no blocks yet
    return (
        min(status.st_size, 512 * status.st_blocks)
        if hasattr(status, "st_blocks")
        else status.st_size
    )


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_so in kinds.items() if is_so(mode)), "a device")
