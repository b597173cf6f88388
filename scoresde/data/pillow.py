"""Images of a torch or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import choice, expect
from scoresde.data.dataset import Dataset
from scoresde.data.items import Items, as_tensor, stacked
from scoresde.data.lazy_array import LazyArray
from scoresde.data.picture import Picture
from scoresde.internals import limits

_GREY = ("1", "L", "LA", "La")
"""Pillow's modes of images without colours."""


def image_items(
    items: Any,
    *,
    name: str = "images",
    mode: str | None = None,
    size: int | Sequence[int] | None = None,
    resize: str = "crop",
    background: int | Sequence[int] | None = None,
    lazy: bool = False,
    flip: bool = False,
    crop: int | Sequence[int] | None = None,
) -> Dataset:
    """Reads the images of Pillow that a data set holds, with labels or other conditions.

    Args:
        items: A map-style torch ``Dataset``, as of torchvision, a Hugging Face ``datasets.Dataset``
            or anything else with length and items: images, alone or in a tuple with a condition, or
            in a mapping with a column of images and at most one other (see ``select_columns`` of
            ``datasets``).
        name: What to call it.
        mode: ``"RGB"`` or ``"L"``; as the first image is if None.
        size: See `scoresde.data.read_images`, and so with ``resize`` and ``background``.
        resize: What becomes of images of another shape.
        background: Behind what is transparent, and around what is padded.
        lazy: Whether to read an item every time it is asked for, instead of all of them now.
        flip: Whether training mirrors images, see `Dataset`.
        crop: Size of the windows in them that are the events, see there.

    Returns:
        ``(N, channels, height, width)``, 256 bins; names of labels are the data set's ``classes``,
        or ``features``.

    Raises:
        ValueError: If there are no images, or one is of another size than the first, of a kind that
            is refused, or in colours where the first is grey.

    Example:
        >>> from PIL import Image
        >>> from scoresde.data import image_items
        >>> items = [(Image.new("L", (20, 30)), 1), (Image.new("L", (40, 10)), 0)]
        >>> data = image_items(items, size=8)
        >>> data.values.shape, data.condition
        (torch.Size([2, 1, 8, 8]), tensor([1, 0]))
    """
    choice("lazy", lazy, False, True)
    known = Items.of(name, items)
    expect(known.of_images, name, "images of Pillow", type(known.parts(0)[0]).__name__)
    grey = known.parts(0)[0].mode in _GREY
    picture = Picture(mode or ("L" if grey else "RGB"), size, resize, background)

    def read_one(index: int) -> list[Tensor]:
        label, (image, *rest) = f"{name}, item {index}", known.parts(index)
        colour = mode is None and grey and image.mode not in _GREY
        expect(not colour, label, "a grey image, as the first (mode='RGB' takes all)", image.mode)
        values = torch.from_numpy(picture.of(label, image).copy())
        return [values, *(as_tensor(f"{name}, condition", value) for value in rest)]

    def read(indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pictures = [read_one(index) for index in indices.tolist()]
        of = f"{name} (image_items(..., size=64) resizes)" if size is None else name
        parts = [stacked(of, part, indices.tolist()) for part in zip(*pictures, strict=True)]
        return parts[0] if len(parts) == 1 else (parts[0], parts[1])

    values = LazyArray(len(known), read)
    options: dict[str, Any] = {"bins": 256, "flip": flip, "crop": crop}
    options["classes"] = known.classes(values.condition)
    if lazy:
        return Dataset(name, values, condition=values.condition, **options)
    limits.expect_memory(name, values.shape.numel())
    pairs = values.pairs(slice(None))
    return Dataset(name, pairs.values, condition=pairs.condition, **options)
