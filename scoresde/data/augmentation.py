"""Augmentation: changes of an event that leave it one of its kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import expect, whole
from scoresde.data.pairs import Pairs
from scoresde.noise import Generators, Noise

_IMAGE = 3
"""Axes of an image, ``(channels, height, width)``; a volume has more."""

_VECTOR = 1
"""Axes of labels and vectors at most, beside the first."""


def sides(name: str, value: Any) -> tuple[int, int] | None:
    """Height and width, of a side or of both; None of None.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return None
    lengths = list(value) if isinstance(value, (list, tuple)) else [value, value]
    expect(len(lengths) == 2, name, "a side, or height and width", repr(value))
    for side in lengths:
        whole(name, side, 1)
    return int(lengths[0]), int(lengths[1])


def check_crop(
    shape: Sequence[int], size: tuple[int, int], condition: Sequence[int] | None
) -> None:
    """Raises ``ValueError`` unless events have windows, and their conditions the same ones.

    Args:
        shape: Of an event.
        size: Height and width of the windows.
        condition: Shape of the condition of one event, if there is any.
    """
    known = len(shape) == _IMAGE and all(map(int.__le__, size, shape[1:]))
    wanted = f"images (channels, height, width) of {size} or more"
    expect(known, "crop", wanted, f"events {tuple(shape)}")
    axes = 0 if condition is None else len(condition)
    same = axes == _IMAGE and tuple(condition or ())[1:] == tuple(shape)[1:]
    expected = f"conditions that are labels, vectors or maps (channels, {shape[1]}, {shape[2]})"
    expect(axes <= _VECTOR or same, "crop", expected, tuple(condition or ()))


def window_shape(shape: Sequence[int], size: tuple[int, int] | None) -> torch.Size:
    """Of a window of a map ``(channels, height, width)``; what is none stays as it is."""
    whole_shape = size is None or len(shape) < _IMAGE
    return torch.Size(shape if whole_shape else (*shape[:-2], *(size or ())))


def middle(values: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The windows in the middle of maps ``(k, channels, height, width)``; else what is given."""
    if size is None or values.ndim <= _IMAGE:
        return values
    top, left = ((whole - own) // 2 for whole, own in zip(values.shape[-2:], size, strict=True))
    return values[..., top : top + size[0], left : left + size[1]]


def cropped(pairs: Pairs, size: tuple[int, int] | None, generator: Generators) -> Pairs:
    """Windows of events at random places, all equally likely, and the same ones of maps.

    Args:
        pairs: Events as they are stored, on any device, and their conditions.
        size: Height and width; all that is stored if None.
        generator: Decides where.
    """
    if size is None:
        return pairs
    images = pairs.values
    like = torch.empty(len(images), 2, dtype=torch.float32, device=images.device)
    u = Noise.of(generator).uniform(like)
    rows, columns = (
        (u[:, i, None] * (images.shape[2 + i] - size[i] + 1)).long()
        + torch.arange(size[i], device=images.device)
        for i in (0, 1)
    )

    def window(values: Tensor) -> Tensor:
        if values.ndim <= _IMAGE:
            return values
        across = values.take_along_dim(rows[:, None, :, None], 2)
        return across.take_along_dim(columns[:, None, None, :], 3)

    return pairs.map(window)


def check_flip(shapes: Sequence[Sequence[int]], condition: Sequence[int] | None) -> None:
    """Raises ``ValueError`` unless events can be mirrored, and their conditions with them.

    Args:
        shapes: Of the parts of an event; a whole one is the only part.
        condition: Shape of the condition of one event, if there is any.
    """
    known = any(len(shape) >= _IMAGE for shape in shapes)
    got = " and ".join(str(tuple(shape)) for shape in shapes)
    expect(known, "flip", "images (channels, height, width)", f"events {got}")
    axes = 0 if condition is None else len(condition)
    expected = "conditions that are labels, vectors or maps (channels, height, width)"
    expect(axes <= _VECTOR or axes >= _IMAGE, "flip", expected, tuple(condition or ()))


def mirrored(values: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
    """Events whose parts that are images are mirrored, left to right.

    Args:
        values: ``(k, *event_shape)``.
        shapes: Of the parts of an event, which is those flattened one after the other.
    """
    parts = values.flatten(1).split([math.prod(shape) for shape in shapes], 1)
    turned = [
        part.unflatten(1, tuple(shape)).flip(-1).flatten(1) if len(shape) >= _IMAGE else part
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return torch.cat(turned, 1).reshape(values.shape)


def flipped(pairs: Pairs, shapes: Sequence[Sequence[int]], generator: Generators) -> Pairs:
    """Events mirrored at random, half of them, and with them conditions that are maps.

    Args:
        pairs: Events as they are stored, on any device, and their conditions.
        shapes: See `mirrored`.
        generator: Decides which.
    """
    count, device = len(pairs.values), pairs.values.device
    turn = Noise.of(generator).uniform(torch.empty(count, 1, device=device)) < 0.5

    def chosen(turned: Tensor, values: Tensor) -> Tensor:
        return torch.where(turn.reshape(-1, *[1] * (values.ndim - 1)), turned, values)

    values, condition = pairs
    if condition is not None and condition.ndim > _IMAGE:
        condition = chosen(condition.flip(-1), condition)
    return Pairs(chosen(mirrored(values, shapes), values), condition)
