"""Folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scoresde.checks import choice, expect, join_names, whole
from scoresde.data.conversion import Array
from scoresde.data.dataset import Dataset
from scoresde.data.lazy_array import LazyArray
from scoresde.internals import limits

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read, of which Pillow tells depth, frames and transparency."""

SUFFIXES = {
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
}
"""Ends of their names."""

_OTHERS = {
    *(".avif", ".dds", ".dib", ".dng", ".eps", ".exr", ".fits", ".hdr", ".heic", ".heif", ".icns"),
    *(".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".pcx", ".pfm", ".psd", ".qoi", ".sgi", ".svg"),
    *(".tga", ".wmf", ".xbm", ".xpm"),
}
"""Ends of names of images that are not read."""

_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
"""Pillow's modes of images with transparency."""

_TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 322, 323, 339
"""TIFF 6.0's numbers of the tags that Pillow gives us as they are in the file."""

_SIGNED = 2
"""The sample format of signed integers, which Pillow would read as unsigned ones."""

_PIXEL = 24
"""Bytes of memory for a pixel, at most: of four each as decoded, turned, composited and converted,
of three as array, and what a decoder keeps."""


def read_images(
    folder: str | os.PathLike[str],
    *,
    mode: str = "RGB",
    size: int | None = None,
    lazy: bool = False,
    background: int | Sequence[int] | None = None,
    frames: str | None = None,
    subfolders: bool | None = None,
) -> Dataset:
    """Reads the images of a folder, sorted by name.

    They are turned as their EXIF data say. Their numbers are taken as they stand: embedded colour
    profiles are not applied. Refused by name is what would be lost: more than 8 bits per channel,
    more than one frame, transparency, and colours other than grey and RGB, such as CMYK.

    Args:
        folder: Files in it that are no images are ignored, hidden ones too.
        mode: ``"RGB"``, of which grey images fill all three channels, or ``"L"`` for grey, in
            which colours are ``0.299 R + 0.587 G + 0.114 B`` (ITU-R 601-2).
        size: If given, images are cropped to their central square and resized to it.
        lazy: Whether to read an image every time it is asked for, instead of all of them now.
        background: A shade of 0 to 255, or three of them, behind images with transparency:
            ``alpha c + (1 - alpha) background``, of shades as they stand.
        frames: ``"first"`` reads the first one of several.
        subfolders: Whether to read those of subfolders, too; by default there may be none.

    Returns:
        ``(N, channels, height, width)``, 256 bins.

    Raises:
        OSError: If there is no such folder.
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
    choice("mode", mode, "L", "RGB")
    choice("lazy", lazy, False, True)
    choice("frames", frames, None, "first")
    choice("subfolders", subfolders, None, False, True)
    if size is not None:
        whole("size", size, 1)
    folder = Path(folder)
    paths = _paths(folder, subfolders)
    picture = _Picture(mode, size, _colour(background), frames == "first")
    shape = picture.read(paths[0]).shape

    def read(places: Tensor) -> Tensor:
        images = np.empty((len(places), *shape), np.uint8)
        for i, path in enumerate(paths[place] for place in places):
            image = picture.read(path)
            expected = f"the size of {paths[0].name} {shape}, or pass size="
            expect(image.shape == shape, str(path), expected, image.shape)
            images[i] = image
        return torch.from_numpy(images)

    values = LazyArray(len(paths), read)
    if not lazy:
        size_of_all = len(paths) * shape[0] * shape[1] * shape[2]
        limits.afford(str(folder), size_of_all, sum(map(limits.size_on_disk, paths)))
    return Dataset(folder.name, values if lazy else values[:], bins=256)


def _paths(folder: Path, subfolders: bool | None) -> list[Path]:
    """Paths of the images, sorted; raises ``ValueError`` for what would be left out unsaid."""
    paths, below = _images(folder, sorted(folder.iterdir())), []
    if subfolders is not False:
        for root, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if root != str(folder):
                below += _images(Path(root), [Path(root, name) for name in sorted(names)])
    if below and not subfolders:
        got = f"{join_names([str(below[0].relative_to(folder))])} (subfolders=True reads such, too"
        expected = "images in no subfolder"
        expect(False, str(folder), expected, f"{got}, subfolders=False leaves them out)")
    expect(len(paths + below) > 0, str(folder), "a folder with images in it", "none")
    return paths + below


def _images(folder: Path, paths: Sequence[Path]) -> list[Path]:
    visible = [path for path in paths if not path.name.startswith(".")]
    others = [path.name for path in visible if path.suffix.lower() in _OTHERS]
    expect(not others, str(folder), f"images of {', '.join(FORMATS)}", join_names(others))
    return [path for path in visible if path.suffix.lower() in SUFFIXES]


def _colour(background: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if background is None:
        return None
    shades = [background] * 3 if isinstance(background, int) else background
    good = isinstance(shades, (list, tuple)) and len(shades) == 3
    good = good and all(type(shade) is int and 0 <= shade <= 255 for shade in shades)
    expect(good, "background", "a shade of 0 to 255, or three", repr(background))
    return tuple(shades)


@frozen
class _Picture:
    """How an image becomes numbers."""

    mode: str
    size: int | None
    background: tuple[int, ...] | None
    first: bool

    def read(self, path: Path) -> Array:
        """``(channels, height, width)``."""
        with limits.opened(path) as content:
            try:
                with Image.open(content, formats=FORMATS) as file:
                    self._check(path, file)
                    image = self._opaque(path, ImageOps.exif_transpose(file)).convert(self.mode)
            except UnidentifiedImageError as error:
                known = f"an image of {', '.join(FORMATS)}"
                raise ValueError(
                    f"{path}: expected {known}, got another file, or a damaged one"
                ) from error
            # decoders of damaged files raise errors of every kind
            except Exception as error:
                if str(error).startswith(f"{path}: expected"):
                    raise
                raise ValueError(f"{path}: cannot be read as an image: {error}") from error
        image = image if self.size is None else ImageOps.fit(image, (self.size, self.size))
        values: Array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        return values

    def _check(self, path: Path, file: Any) -> None:
        """Raises ValueError for what Pillow would drop without a word, or has no memory for."""
        pixels, limit = file.width * file.height, Image.MAX_IMAGE_PIXELS
        expected = f"at most {limit} pixels, which is PIL.Image.MAX_IMAGE_PIXELS"
        expect(limit is None or pixels <= limit, str(path), expected, pixels)
        tags = getattr(file, "tag_v2", {})
        # a TIFF file says how large its tiles are, whatever the size of the image
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
        resized = 0 if self.size is None else self.size**2
        needed = _PIXEL * max(pixels, tile, resized)
        limits.afford(str(path), needed, limits.size_on_disk(path))
        animated = getattr(file, "is_animated", False) and not self.first
        expect(not animated, str(path), "one frame (frames='first' reads the first)", "several")
        layouts = list(_layouts(file))
        got = ", ".join([file.mode, *layouts])
        deep = file.mode[0] in "IF" or any(";16" in layout for layout in layouts)
        as_array = "8 bits per channel (an array of whole numbers with bins=65536 has more)"
        expect(not deep, str(path), as_array, got)
        signed = _SIGNED in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1))
        # Pillow reads the first channels, and drops the others
        more = any(layout.startswith(("LX", "RGBX", "RGBaX", "RGBAX")) for layout in layouts)
        expect(not (signed or more), str(path), "grey or RGB", got)
        known = file.mode in ("1", "L", "P", "RGB", *_ALPHA)
        expect(known, str(path), "grey or RGB (convert it before)", file.mode)

    def _opaque(self, path: Path, image: Image.Image) -> Image.Image:
        """In front of the background, if anything shows through."""
        if image.mode not in _ALPHA and "transparency" not in image.info:
            return image
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        least_alpha = image.getchannel("A").getextrema()[0]
        if least_alpha == 255:
            return image
        expected = "no transparency, or background= to be put behind it"
        expect(self.background is not None, str(path), expected, f"alpha down to {least_alpha}")
        behind = Image.new("RGBA", image.size, (*(self.background or ()), 255))
        return Image.alpha_composite(behind, image)


def _layouts(file: Any) -> Iterator[str]:
    """Layouts of samples in a file, in Pillow's words; BMP's with 5 bits count as 8."""
    for tile in file.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and not argument.startswith("BGR;1"):
                yield argument
            elif file.format == "PPM" and isinstance(argument, int) and argument > 255:
                yield f"{arguments[0]};16, up to {argument}"
