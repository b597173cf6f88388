"""What reads a source."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scoresde.checks import nearest
from scoresde.data.arrays import read_array
from scoresde.data.builtin import BUILT_IN
from scoresde.data.dataset import Dataset
from scoresde.data.images import read_images
from scoresde.data.tables import read_csv


def load(source: str | os.PathLike[str], **options: Any) -> Dataset:
    """Reads data: a built-in set by name, a ``.npy``, ``.npz`` or ``.csv`` file, or a folder.

    Args:
        source: ``"digits"``, ``"patches"``, or a path: of a file, of a folder with ``.npy`` files,
            or of one with images.
        options: Those of `digits`, `patches`, `read_array`, `read_csv` or `read_images`.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        TypeError: If an option does not apply, or the data are not real numbers.
        ValueError: If the data cannot be read or used; the message says why.

    Example:
        >>> from scoresde.data import load
        >>> load("digits")
        Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, levels=17)
    """
    return reader(source)(**options)


def reader(source: str | os.PathLike[str]) -> Callable[..., Dataset]:
    """What `load` calls with options, and with nothing else.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.

    Example:
        >>> from scoresde.data import reader
        >>> reader("digits")().values.shape
        torch.Size([1797, 1, 8, 8])
    """
    if isinstance(source, str) and source in BUILT_IN:
        return BUILT_IN[source]
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir() and not any(path.glob("*.npy")):
        return partial(read_images, path)
    if suffix == ".csv":
        return partial(read_csv, path)
    if path.exists() or suffix in (".npy", ".npz"):
        return partial(read_array, path)
    hint = nearest(str(source), BUILT_IN)
    raise FileNotFoundError(f"{source}: no such file or folder, nor a built-in data set{hint}")
