"""Conversion of one image to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from attrs import field, frozen
from PIL import Image, ImageOps, UnidentifiedImageError

from scoresde.checks import choice, expect
from scoresde.data.augmentation import sides
from scoresde.data.conversion import Array
from scoresde.internals import limits

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read, of which Pillow tells depth, frames and transparency."""

_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
"""Pillow's modes of images with transparency."""

_TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 322, 323, 339
"""TIFF 6.0's numbers of the tags that Pillow gives us as they are in the file."""

_SIGNED = 2
"""The sample format of signed integers, which Pillow would read as unsigned ones."""

_PIXEL = 24
"""Bytes of memory for a pixel, at most: of four each as decoded, turned, composited and converted,
of three as array, and what a decoder keeps."""

_REDUCED = 2
"""A JPEG file is decoded at a half, a quarter or an eighth of its size if that is twice what is
asked for, or more: what is lost then, resizing would lose."""


def _size(value: Any) -> tuple[int, int] | None:
    return sides("size", value)


def _colour(background: Any) -> tuple[int, int, int] | None:
    if background is None:
        return None
    shades = [background] * 3 if isinstance(background, int) else background
    good = isinstance(shades, (list, tuple)) and len(shades) == 3
    good = good and all(type(shade) is int and 0 <= shade <= 255 for shade in shades)
    expect(good, "background", "a shade of 0 to 255, or three", repr(background))
    red, green, blue = shades
    return red, green, blue


def _crop(image: Image.Image, size: tuple[int, int], _: Any) -> Image.Image:
    return ImageOps.fit(image, size)


def _stretch(image: Image.Image, size: tuple[int, int], _: Any) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


def _pad(image: Image.Image, size: tuple[int, int], colour: Any) -> Image.Image:
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(1, round(scale * side)) for side in image.size)
    padded = Image.new(image.mode, size, colour)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    padded.paste(resized, ((size[0] - width) // 2, (size[1] - height) // 2))
    return padded


RESIZED: dict[str, Callable[[Image.Image, tuple[int, int], Any], Image.Image]] = {
    "crop": _crop,
    "stretch": _stretch,
    "pad": _pad,
}
"""How an image comes to a size of another shape."""


@frozen
class Picture:
    """Conversion of images to numbers, by the options of `scoresde.data.read_images`."""

    mode: str = "RGB"
    size: tuple[int, int] | None = field(default=None, converter=_size)
    resize: str = "crop"
    background: tuple[int, int, int] | None = field(default=None, converter=_colour)
    first: bool = False

    def __attrs_post_init__(self) -> None:
        choice("mode", self.mode, "L", "RGB")
        choice("resize", self.resize, *RESIZED)

    def read(self, label: str, file: IO[bytes], on_disk: int) -> Array:
        """An image of a file, ``(channels, height, width)``.

        Args:
            label: Of the file, for messages.
            file: Its content.
            on_disk: Bytes that it takes there.
        """
        try:
            with Image.open(file, formats=FORMATS) as image:
                self._expect_size(label, image, on_disk)
                return self.of(label, image)
        except UnidentifiedImageError as error:
            known = f"an image of {', '.join(FORMATS)}"
            raise ValueError(
                f"{label}: expected {known}, got another file, or a damaged one"
            ) from error
        # decoders of damaged files raise errors of every kind
        except Exception as error:
            if str(error).startswith(f"{label}: expected"):
                raise
            raise ValueError(f"{label}: cannot be read as an image: {error}") from error

    def of(self, label: str, image: Image.Image) -> Array:
        """An image that is open, ``(channels, height, width)``.

        Raises:
            ValueError: If anything would be lost.
        """
        self._expect_kind(label, image)
        if self.size is not None:
            least = _REDUCED * max(self.size)
            image.draft(None, (least, least))
        image = self._opaque(label, ImageOps.exif_transpose(image)).convert(self.mode)
        if self.size is not None:
            behind = Image.new("RGB", (1, 1), self.background or (0, 0, 0)).convert(self.mode)
            image = RESIZED[self.resize](image, self.size[::-1], behind.getpixel((0, 0)))
        values: Array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        return values

    def _expect_size(self, label: str, image: Image.Image, on_disk: int) -> None:
        """Raises ValueError for what there is no memory for."""
        pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        expected = f"at most {limit} pixels, which is PIL.Image.MAX_IMAGE_PIXELS"
        expect(limit is None or pixels <= limit, label, expected, pixels)
        tags = _tags(image)
        # a TIFF file says how large its tiles are, whatever the size of the image
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
        resized = 0 if self.size is None else self.size[0] * self.size[1]
        limits.expect_memory(label, _PIXEL * max(pixels, tile, resized), on_disk)

    def _expect_kind(self, label: str, image: Image.Image) -> None:
        """Raises ValueError for what Pillow would drop."""
        animated = getattr(image, "is_animated", False) and not self.first
        expect(not animated, label, "one frame (frames='first' reads the first)", "several")
        layouts = list(_layouts(image))
        got = ", ".join([image.mode, *layouts])
        deep = image.mode[0] in "IF" or any(";16" in layout for layout in layouts)
        as_array = "8 bits per channel (an array of whole numbers with bins=65536 has more)"
        expect(not deep, label, as_array, got)
        signed = _SIGNED in np.atleast_1d(_tags(image).get(_SAMPLE_FORMAT, 1))
        # Pillow reads the first channels, and drops the others
        more = any(layout.startswith(("LX", "RGBX", "RGBaX", "RGBAX")) for layout in layouts)
        expect(not (signed or more), label, "grey or RGB", got)
        known = image.mode in ("1", "L", "P", "RGB", *_ALPHA)
        expect(known, label, "grey or RGB (convert it before)", image.mode)

    def _opaque(self, label: str, image: Image.Image) -> Image.Image:
        """The image in front of the background, if it has transparency."""
        if image.mode not in _ALPHA and "transparency" not in image.info:
            return image
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        least_alpha = image.getchannel("A").getextrema()[0]
        if least_alpha == 255:
            return image
        expected = "no transparency, or background= to be put behind it"
        expect(self.background is not None, label, expected, f"alpha down to {least_alpha}")
        behind = Image.new("RGBA", image.size, (*(self.background or ()), 255))
        return Image.alpha_composite(behind, image)


def _tags(image: Any) -> Any:
    return getattr(image, "tag_v2", {})


def _layouts(image: Any) -> Iterator[str]:
    """Layouts of samples in a file, in Pillow's words; BMP's with 5 bits count as 8."""
    for tile in getattr(image, "tile", ()):
        arguments: Sequence[Any] = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and not argument.startswith("BGR;1"):
                yield argument
            elif image.format == "PPM" and isinstance(argument, int) and argument > 255:
                yield f"{arguments[0]};16, up to {argument}"
