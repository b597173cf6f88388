"""NumPy's files: arrays of events."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from attrs import frozen

from scoresde.checks import choice, expect
from scoresde.data.conversion import Array, conversion
from scoresde.data.dataset import Dataset
from scoresde.data.folders import files
from scoresde.data.lazy_array import concatenated
from scoresde.data.pairs import labelled
from scoresde.data.tables import Missing, check_missing
from scoresde.internals import limits
from scoresde.internals.messages import join_names


def read_array(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    labels: str | None = None,
    condition: str | None = None,
    bins: int | None = None,
    lazy: bool = False,
    dtype: str | None = None,
    continuous: bool = False,
    missing: Missing = None,
    flip: bool = False,
    crop: int | Sequence[int] | None = None,
) -> Dataset:
    """Reads an array ``(N, *event_shape)``.

    Args:
        path: A ``.npy`` or ``.npz`` file, or a folder of ``.npy`` files that follow each other
            in the order of their names. Arrays of Python objects are refused: reading them can
            run code.
        key: Which array of an ``.npz`` file; may be omitted if it holds one beside the next two.
        labels: Which array of that file says which class each event is of, in whole numbers
            ``(N,)``.
        condition: Which array of that file events are conditioned on, real numbers ``(N, *shape)``.
        bins: Number of bins of whole numbers; known for ``uint8`` (256) and booleans (2).
        lazy: Whether to leave the numbers on the disk, memory-mapped, and read those that are
            asked for.
        dtype: ``"float32"`` or ``"float64"``, for real numbers. By default torch's default dtype;
            values that differ and would be equal in it are refused.
        continuous: Whether whole numbers are meant as real ones; by default there is a warning if
            a component has no others.
        missing: ``"nan"`` if NaN stands for missing values, which estimators with
            vector time take.
        flip: Whether training mirrors images left to right, see `Dataset`.
        crop: Size of the windows in images that are the events, see there.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the data are not real numbers.
        ValueError: If a file cannot be read, takes more memory than `scoresde.internals.limits`
            allows, or the data are not as `Dataset` expects.

    Warns:
        UserWarning: If components hold whole numbers alone and ``bins`` is not given.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from scoresde.data import read_array
        >>> path = Path(tempfile.mkdtemp(), "x.npy")
        >>> np.save(path, np.zeros((10, 2, 3), "f4"))
        >>> read_array(path).values.shape
        torch.Size([10, 2, 3])
    """
    path = Path(path)
    choice("lazy", lazy, False, True)
    check_missing(missing)
    if path.is_dir():
        expect(key is None, "key", "None for a folder", key)
    paths = _in_folder(path) if path.is_dir() else [path]
    expect(labels is None or condition is None, "condition", "None with labels", condition)
    beside = labels if condition is None else condition
    options = {} if beside is None else _conditions(path, beside, labels is not None, dtype)
    arrays = [_array(file, key, lazy, beside) for file in paths]
    for file, array in zip(paths, arrays, strict=True):
        filled = array.ndim > 1 and array.size > 0
        expect(filled, str(file), "a shape (N, *event), no size 0", array.shape)
        alike = array.dtype == arrays[0].dtype and array.shape[1:] == arrays[0].shape[1:]
        wanted = f"{arrays[0].dtype} of shape (N, {', '.join(map(str, arrays[0].shape[1:]))})"
        expect(alike, str(file), f"{wanted} as in {paths[0].name}", f"{array.dtype} {array.shape}")
    if not lazy:
        needed = sum(array.nbytes + 8 * array.size for array in arrays)
        limits.expect_memory(str(path), needed, sum(map(limits.size_on_disk, paths)))
    convert, bins = conversion(path.name, arrays, bins, dtype, continuous)
    # a copy, even of one: no file lies behind it
    values = concatenated(arrays, convert) if lazy else convert(np.concatenate(arrays))
    options |= {"missing": missing == "nan", "flip": flip, "crop": crop}
    return Dataset(path.name, values, bins, **options)


def _in_folder(path: Path) -> list[Path]:
    """The arrays of a folder; raises ``ValueError`` for what would be left out unsaid."""
    inside = [file for file in files(path) if file.suffix.lower() in (".npy", ".npz")]
    paths = [file for file in inside if file.parent == path and file.suffix.lower() == ".npy"]
    expect(len(paths) > 0, str(path), "a folder with .npy files in it", "none")
    others = [str(file.relative_to(path)) for file in inside if file not in paths]
    expect(not others, str(path), "no .npz file and no array in a subfolder", join_names(others))
    return paths


def _conditions(path: Path, key: str, labels: bool, dtype: str | None) -> dict[str, Any]:
    """Labels, or numbers that events are conditioned on, of an archive."""
    name = "labels" if labels else "condition"
    expect(isinstance(key, str), name, "the name of an array", repr(key))
    array = np.asarray(_array(path, key, False, argument=name))
    if labels:
        classes = array.ndim == 1 and array.dtype.kind in "biu"
        got = f"{array.dtype} {array.shape}"
        expect(classes, f"{path}, {key}", "whole numbers (N,)", got)
        return labelled([str(int(value)) for value in array])
    convert, _ = conversion(f"{path}, {key}", [array], None, dtype, continuous=True)
    return {"condition": convert(array)}


def _array(
    path: Path, key: str | None, lazy: bool, beside: str | None = None, argument: str = "key"
) -> Array:
    """The array of a file: in memory if it was packed, else memory-mapped."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with limits.opened(path) as file:
        if file.peek(4)[:4] == b"PK\x03\x04":
            expect(not lazy, "lazy", "False for an .npz file", lazy)
            return _packed(path, file, key, beside, argument)
        expect(key is None, argument, "None for a single array", key)
        header = _header(path, file, os.fstat(file.fileno()).st_size)
        with _garbled(path):
            if header.size == 0:  # nothing can be mapped
                return np.empty(header.shape, header.dtype)
            return np.memmap(file, header.dtype, "r", file.tell(), header.shape, header.order)


def _packed(
    path: Path, file: IO[bytes], key: str | None, beside: str | None, argument: str
) -> Array:
    """An array of a zip archive, the only one but for one that is beside it if it has no name."""
    with contextlib.ExitStack() as stack:
        with _garbled(path):
            archive = stack.enter_context(zipfile.ZipFile(file))
            parts = archive.infolist()
            members = {entry.filename.removesuffix(".npy"): entry for entry in parts}
        expect(
            len(members) == len(parts), str(path), "arrays of different names", join_names(members)
        )
        others = [name for name in members if name != beside]
        key = others[0] if key is None and len(others) == 1 else key
        expect(key in others, argument, f"one of {join_names(others)}", key)
        member = members[str(key)]
        label = f"{path}, {key}"
        # what NumPy writes: others may ask for memory on their own
        usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        expect(usual, label, "an array that is stored or deflated", member.compress_type)
        with _garbled(path):
            stream = stack.enter_context(archive.open(member))
        header = _header(label, stream, member.file_size)
        limits.expect_memory(label, 2 * header.nbytes + 8 * header.size, limits.size_on_disk(path))
        with _garbled(path):
            content, filled = np.empty(header.nbytes, "u1"), 0
            while part := stream.read(min(2**20, header.nbytes - filled)):
                content[filled : filled + len(part)] = np.frombuffer(part, "u1")
                filled += len(part)
            expect(filled == header.nbytes, label, f"{header.nbytes} bytes", filled)
            return content.view(header.dtype).reshape(header.shape, order=header.order)


@frozen
class _Header:
    """The header of a ``.npy`` file."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self.size * self.dtype.itemsize


def _header(label: Path | str, file: IO[bytes], length: int) -> _Header:
    """Reads a header, and checks its claims against the file's length before memory is taken."""
    with _garbled(label):
        version = np.lib.format.read_magic(file)
        # headers of later versions have no bound, and are written for records alone
        expect(version == (1, 0), "format", "1.0, as of plain numbers", version)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    header = _Header(shape, "F" if fortran else "C", dtype)
    if dtype.kind not in "biuf":
        named = "Python objects, which are not read" if dtype.hasobject else f"an array of {dtype}"
        raise TypeError(f"{label}: expected real numbers, got {named}")
    remaining = length - file.tell()
    complete = min(shape, default=0) >= 0 and header.nbytes <= remaining
    expect(complete, str(label), f"numbers of shape {shape} and {dtype}", f"{remaining} bytes")
    return header


@contextlib.contextmanager
def _garbled(label: Path | str) -> Iterator[None]:
    """Turns errors of damaged files, of numpy, zipfile or zlib, into one ``ValueError``."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{label}: cannot be read as .npy or .npz: {error}") from error
