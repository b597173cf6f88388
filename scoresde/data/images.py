"""Folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.dataset import Dataset
from scoresde.data.stored import Array, Stored


def read_images(
    folder: str | os.PathLike[str],
    *,
    mode: str = "RGB",
    size: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Reads the images of a folder, not of its subfolders, sorted by name.

    Args:
        folder: Other files in it are ignored.
        mode: ``"RGB"``, or ``"L"`` for grey.
        size: If given, images are cropped to their central square and resized to it.
        lazy: Whether to read an image every time it is asked for, instead of all of them now.

    Returns:
        ``(N, channels, height, width)``, 256 levels.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no image, or one is unreadable, of another size than the first, of
            more than 8 bits per channel, or of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.

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
    expect(mode in ("L", "RGB"), "mode", "'L' or 'RGB'", repr(mode))
    expect(size is None or size > 0, "size", "a positive number of pixels", size)
    folder = Path(folder)
    formats, suffixes = _formats(), Image.registered_extensions()
    paths = sorted(
        path
        for path in folder.iterdir()
        if suffixes.get(path.suffix.lower()) in formats and not path.name.startswith(".")
    )
    expected = "a folder with images in it (its subfolders are not read)"
    expect(len(paths) > 0, str(folder), expected, "none")
    wanted = _image(paths[0], mode, size).shape

    def read(places: Tensor) -> Tensor:
        images = []
        for path in (paths[i] for i in places):
            images.append(_image(path, mode, size))
            expected = f"the size of {paths[0].name} {wanted}, or pass size="
            expect(images[-1].shape == wanted, str(path), expected, images[-1].shape)
        return torch.from_numpy(np.stack(images))

    stored = Stored(len(paths), read)
    return Dataset(folder.name, stored if lazy else stored[:], levels=256)


def _formats() -> list[str]:
    """Formats of images that are read: PostScript is a program, and Ghostscript would run it."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _image(path: Path, mode: str, size: int | None) -> Array:
    """``(channels, height, width)``."""
    try:
        with Image.open(path, formats=_formats()) as file:
            # Pillow would clip these to 8 bits without a word.
            expect(file.mode[0] not in "IF", "image", "8 bits per channel", file.mode)
            # A few bytes may claim to be gigabytes: Pillow warns, and refuses twice as many only.
            pixels, most = file.width * file.height, Image.MAX_IMAGE_PIXELS
            expected = f"at most {most} pixels, which is PIL.Image.MAX_IMAGE_PIXELS"
            expect(most is None or pixels <= most, "image", expected, pixels)
            image = ImageOps.exif_transpose(file).convert(mode)
    # Decoders of damaged files raise errors of every kind.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    image = image if size is None else ImageOps.fit(image, (size, size))
    values: Array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return values
