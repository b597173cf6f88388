"""Arrays of NumPy's files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from scoresde.checks import expect
from scoresde.data.dataset import Dataset
from scoresde.data.stored import Array, joined, native


def read_array(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    levels: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Reads an array ``(N, *event_shape)``.

    Args:
        path: A ``.npy`` or ``.npz`` file, or a folder of ``.npy`` files that follow each other
            in the order of their names. Arrays of Python objects are refused: reading them can
            run code.
        key: Which array of an ``.npz`` file; may be omitted if it holds one.
        levels: Number of levels of integer data; known for ``uint8`` (256) and booleans (2).
        lazy: Whether to leave the numbers on the disk, memory-mapped, and read those that are
            asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the data are not real numbers.
        ValueError: If a file cannot be read, or the data are not as `Dataset` expects.

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
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    expect(len(paths) > 0, str(path), "a folder with .npy files in it", "none")
    mapped = lazy or path.is_dir()
    arrays = [_array(one, key, mapped) for one in paths]
    kind = arrays[0].dtype
    if kind.kind not in "biuf":
        raise TypeError(f"{path}: expected real numbers, got an array of {kind}")
    if kind.kind == "f":
        expect(levels is None, "levels", f"None for {kind} data", levels)
    elif levels is None:
        levels = {"bool": 2, "uint8": 256}.get(str(kind))
        expect(levels is not None, "levels", f"the number of levels of {kind} data", None)
    if not mapped:
        return Dataset(path.name, native(arrays[0]), levels)
    for one, array in zip(paths, arrays, strict=True):
        whole = array.ndim > 1 and array.size > 0
        expect(whole, str(one), "a shape (N, *event), no size 0", array.shape)
    stored = joined(arrays)
    return Dataset(path.name, stored if lazy else stored[:], levels)


def _array(path: Path, key: str | None, mapped: bool) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                expect(not mapped, "lazy", "False for an .npz file", mapped)
                if key is None and len(content.files) == 1:
                    key = content.files[0]
                expect(key in content.files, "key", f"one of {', '.join(content.files)}", key)
                return np.asarray(content[str(key)])
        expect(key is None, "key", "None for a single array", key)
        return np.asanyarray(content)
    # Garbled files fail in numpy, zipfile or zlib, each with errors of its own.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as .npy or .npz: {error}") from error
