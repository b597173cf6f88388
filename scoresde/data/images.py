"""Folders and zip files of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from scoresde.checks import choice, expect
from scoresde.data.conversion import Array
from scoresde.data.dataset import Dataset
from scoresde.data.image_files import ImageFiles, image_files
from scoresde.data.lazy_array import LazyArray
from scoresde.data.pairs import labelled
from scoresde.data.picture import Picture
from scoresde.internals import limits
from scoresde.internals.messages import join_names

_MOST_THREADS = 8
"""So many decode faster than most disks read."""

_JOBS = 1024
"""Images that threads are told of at a time: the first error ends it."""


def read_images(
    folder: str | os.PathLike[str],
    *,
    mode: str = "RGB",
    size: int | Sequence[int] | None = None,
    resize: str = "crop",
    lazy: bool = False,
    background: int | Sequence[int] | None = None,
    frames: str | None = None,
    subfolders: bool | None = None,
    flip: bool = False,
    crop: int | Sequence[int] | None = None,
    labels: bool = False,
) -> Dataset:
    """Reads the images of a folder or a zip file, sorted by name.

    They are rotated as their EXIF data say. Embedded colour profiles are not applied. Images that
    would lose something are refused: more than 8 bits per channel, more than one frame,
    transparency, and colours other than grey and RGB, such as CMYK.

    Args:
        folder: Hidden files, and those that are no images, are ignored. A zip file is not unpacked;
            if all of its images are in one folder, that is used.
        mode: ``"RGB"``, where grey images fill all three channels, or ``"L"`` for grey, where
            colours are ``0.299 R + 0.587 G + 0.114 B`` (ITU-R 601-2).
        size: What images are resized to: a side, or height and width. As they are if None.
        resize: For images of other proportions than ``size``: ``"crop"`` keeps as much of the
            middle as it can, ``"stretch"`` changes proportions, ``"pad"`` fills up with the
            ``background``, which is black if none is given.
        lazy: Whether to read an image every time it is asked for, instead of all of them now.
        background: A shade of 0 to 255, or three of them, behind images with transparency:
            ``alpha c + (1 - alpha) background``, of shades as they stand.
        frames: ``"first"`` reads the first one of several.
        subfolders: Whether to read those of subfolders, too; by default there may be none.
        flip: Whether training mirrors them left to right, at random; see `Dataset`.
        crop: Side, or height and width, of windows in them that are the events, in training at
            random places: smaller than ``size``. See `Dataset`.
        labels: Whether subfolders are classes, by their names, on which events are conditioned:
            the topmost ones, for images further below.

    Returns:
        ``(N, channels, height, width)``, 256 bins.

    Raises:
        OSError: If there is no such folder or file.
        ValueError: If there is no image, or one is unreadable, of another size than the first, of
            a kind that is refused, or takes more memory than `scoresde.internals.limits` allows.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from scoresde.data import read_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (20, 30)).save(folder / "black.png")
        >>> read_images(folder, mode="L", size=8).values.shape
        torch.Size([1, 1, 8, 8])
    """
    choice("lazy", lazy, False, True)
    choice("frames", frames, None, "first")
    picture = Picture(mode, size, resize, background, frames == "first")
    stored = image_files(Path(folder), _below(subfolders, labels))
    options = _classes(str(folder), stored) if labels else {}
    shape = _read(stored, picture, 0).shape

    def one(index: int) -> Array:
        image = _read(stored, picture, index)
        expected = f"the size of {stored.paths[0].name} {shape}, or pass size="
        expect(image.shape == shape, stored.label(index), expected, image.shape)
        return image

    def read(indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *shape), np.uint8)

        def decode(i: int) -> None:
            images[i] = one(int(indices[i]))

        with ThreadPoolExecutor(_threads()) as threads:
            for part in torch.arange(len(indices)).split(_JOBS):
                # how much memory may be taken is said of the thread that asks
                jobs = [threads.submit(copy_context().run, decode, i) for i in part.tolist()]
                for job in jobs:
                    job.result()
        return torch.from_numpy(images)

    values = LazyArray(len(stored.paths), read)
    if not lazy:
        limits.expect_memory(str(folder), values.shape.numel(), stored.on_disk)
    options |= {"bins": 256, "flip": flip, "crop": crop}
    return Dataset(stored.name, values if lazy else values[:], **options)


def _below(subfolders: bool | None, labels: bool) -> bool | None:
    """Whether images are taken from subfolders: where these are classes all are there."""
    choice("subfolders", subfolders, None, False, True)
    choice("labels", labels, False, True)
    expect(not labels or subfolders is not False, "subfolders", "True with labels", subfolders)
    return labels or subfolders


def _classes(folder: str, stored: ImageFiles) -> dict[str, Any]:
    """The class of each image: the folder in which it is."""
    alone = [str(path) for path in stored.paths if len(path.parts) == 1]
    expect(not alone, folder, "every image in the folder of its class", join_names(alone))
    return labelled([path.parts[0] for path in stored.paths])


def _read(stored: ImageFiles, picture: Picture, index: int) -> Array:
    with stored.opened(index) as content:
        return picture.read(stored.label(index), content, stored.size_on_disk(index))


def _threads() -> int:
    """One in a process that reads ahead, of which there are as many as there is time for."""
    if get_worker_info() is not None:
        return 1
    return min(_MOST_THREADS, os.cpu_count() or 1)
