"""Augmentation: changes of an event that leave it one of its kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.pairs import Pairs
from scoresde.noise import Generators, Noise

_IMAGE = 3
"""Axes of an image, ``(channels, height, width)``; a volume has more."""

_VECTOR = 1
"""Axes of labels and vectors at most, beside the first."""


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
