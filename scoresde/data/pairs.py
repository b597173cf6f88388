"""Events with their conditions: labels, vectors, maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import expect, finite


class Pairs(NamedTuple):
    """Some events, and the condition of each, if there are any.

    Attributes:
        values: Events, ``(k, *event_shape)``.
        condition: ``(k, *)``; None if the events stand alone.
    """

    values: Tensor
    condition: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Pairs:
        """The same of both parts."""
        values, condition = self
        return Pairs(function(values), None if condition is None else function(condition))


def labelled(names: Sequence[str]) -> dict[str, Any]:
    """Arguments of a `Dataset` whose events are of classes with names.

    Classes are in the order of their names, whole numbers by size.
    """
    different = set(names)
    whole = all(name.removeprefix("-").isdecimal() for name in different)
    classes = sorted(different, key=int if whole else None)
    indices = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([indices[name] for name in names], device="cpu")
    return {"condition": labels, "classes": tuple(classes)}


def conditions(name: str, values: Tensor, classes: Sequence[str] | None = None) -> Tensor:
    """Conditions, checked: labels as int64, real numbers as they are.

    Args:
        name: What to call them.
        values: Labels ``(k,)``, or integers or real numbers ``(k, *)``.
        classes: Names of the labels ``0, 1, ...``, if they have any.

    Raises:
        TypeError: If they are complex.
        ValueError: If labels are negative or have no name, or numbers are single or not finite.
    """
    if values.is_complex():
        raise TypeError(f"{name}: expected integers or real numbers, got {values.dtype}")
    if values.is_floating_point():
        wanted = "integer labels (N,), or real numbers (N, c) or (N, *shape)"
        expect(values.ndim > 1, name, wanted, f"{values.dtype} of shape {tuple(values.shape)}")
        expect(classes is None, "classes", "None of what are no labels", classes)
        finite(name, values)
        return values
    if values.ndim > 1:
        expect(classes is None, "classes", "None of what are no labels", classes)
        return values.long()
    low, high = (int(v) for v in (values.min(), values.max())) if len(values) else (0, 0)
    most = torch.iinfo(torch.int64).max if classes is None else len(classes) - 1
    wanted = f"labels from 0{'' if classes is None else f' to {most}'}"
    expect(low >= 0 and high <= most, name, wanted, f"{low} to {high}")
    return values.long()
