"""Loading of data by name or path: which reader a source needs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scoresde.checks import expect
from scoresde.data.arrays import read_array
from scoresde.data.builtin import BUILT_IN
from scoresde.data.dataset import Dataset
from scoresde.data.folders import files
from scoresde.data.image_files import SUFFIXES
from scoresde.data.images import read_images
from scoresde.data.parquet import read_parquet
from scoresde.data.text import read_csv
from scoresde.internals.messages import join_names, nearest

READERS: dict[str, Callable[..., Dataset]] = {
    ".npy": read_array,
    ".npz": read_array,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".zip": read_images,
}
"""What reads a file, by the end of its name."""


def load(source: str | os.PathLike[str], **options: Any) -> Dataset:
    """Reads data: a built-in set by name, an array, a table, a folder, images in a zip file.

    What a source is read by, whose options are taken:

        "digits", "patches"                    digits, patches
        .npy, .npz, a folder of .npy files     read_array
        .csv, .tsv                             read_csv
        .parquet                               read_parquet
        a folder or .zip file of images        read_images
        an image, a single event               read_images

    Args:
        source: A name, or the path of a file or a folder.
        options: Those of `digits`, `scoresde.data.builtin.patches`, `read_array`, `read_csv`,
            `read_parquet` or `read_images`.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        TypeError: If an option does not apply, or the data are not real numbers.
        ValueError: If the data cannot be read or used; the message says why.

    Example:
        >>> from scoresde.data import load
        >>> load("digits")
        Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, bins=17)
    """
    read = reader(source)
    known = inspect.signature(read).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"{name}: no option of {source}{nearest(name, known)}")
    return read(**options)


def reader(source: str | os.PathLike[str]) -> Callable[..., Dataset]:
    """The function that `load` calls with options.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        ValueError: If nothing reads such a file, or a folder holds arrays beside images.

    Example:
        >>> from scoresde.data import reader
        >>> reader("digits")().values.shape
        torch.Size([1797, 1, 8, 8])
    """
    if isinstance(source, str) and source in BUILT_IN:
        return BUILT_IN[source]
    expect(os.fspath(source) != "", "source", "a data set, a file or a folder", "an empty name")
    path = Path(source)
    if path.is_dir():
        return partial(_reader_of_folder(path), path)
    suffix = path.suffix.lower()
    read = read_images if suffix in SUFFIXES else READERS.get(suffix)
    if read is not None:
        return partial(read, path)
    if not path.exists():
        hint = nearest(str(source), BUILT_IN)
        raise FileNotFoundError(f"{source}: no such file or folder, nor a built-in data set{hint}")
    got = repr(suffix) if suffix else "a file without a suffix"
    expect(False, str(path), f"{', '.join(READERS)}, or a folder of arrays or images", got)
    raise AssertionError


def _reader_of_folder(path: Path) -> Callable[..., Dataset]:
    paths = list(files(path))
    arrays = [
        entry.name for entry in paths if entry.parent == path and entry.suffix.lower() == ".npy"
    ]
    images = [str(entry.relative_to(path)) for entry in paths if entry.suffix.lower() in SUFFIXES]
    both = f"{join_names(arrays, 1)} beside {join_names(images, 1)}"
    expect(not (arrays and images), str(path), "a folder of arrays or of images", both)
    return read_array if arrays else read_images
