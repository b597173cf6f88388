"""Items of data sets of other libraries: their events and conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.lazy_array import LazyArray
from scoresde.internals.messages import join_names

PARTS = "events, alone or with a condition (other parts joined to them, see scoresde.Joint)"
"""What an item may have."""


@attrs.frozen(eq=False)
class Items:
    """Items of a torch ``Dataset``, a Hugging Face one, or anything else with length and items.

    An item is an event, alone or in a tuple with its condition, or a mapping of columns: one of
    them is the event, an image or an array, and at most one other the condition.

    Attributes:
        name: What to call it.
        source: What has the items.
        columns: Of the event and of the condition, where items have columns.
    """

    name: str
    source: Any
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, source: Any) -> Items:
        """Looks at the first item.

        Raises:
            ValueError: If there is none, or it is not clear which column is the event.
        """
        expect(len(source) > 0, name, "at least one event", "none")
        first = source[0]
        return cls(name, source, _columns(name, first) if isinstance(first, Mapping) else ())

    def __len__(self) -> int:
        return len(self.source)

    def parts(self, index: int) -> tuple[Any, ...]:
        """An item's event, and its condition if it has one, as they are.

        Raises:
            ValueError: If it has more parts.
        """
        item = self.source[index]
        if self.columns:
            return tuple(item[column] for column in self.columns)
        parts = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        expect(len(parts) in (1, 2), self.name, PARTS, f"items of {len(parts)} parts")
        return parts

    @property
    def of_images(self) -> bool:
        """Whether events are images of Pillow."""
        return _is_image(self.parts(0)[0])

    def classes(self, condition: LazyArray | Tensor | None) -> tuple[str, ...] | None:
        """Names of labels, as data sets of torchvision and Hugging Face say them."""
        if condition is None or condition.dtype != torch.int64 or len(condition.shape) > 1:
            return None
        names = getattr(self.source, "classes", None)
        if self.columns:
            features = getattr(self.source, "features", {})
            names = getattr(features.get(self.columns[1]), "names", None)
        listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        return tuple(names) if listed and names else None


def _is_image(value: Any) -> bool:
    return hasattr(value, "getbands")  # without importing Pillow for those that have none


def _columns(name: str, first: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the columns of the event and of the condition."""
    images = [column for column, value in first.items() if _is_image(value)]
    arrays = [column for column, value in first.items() if _axes(value) > 0]
    events = images or arrays
    expected = "items with one image or array, and at most one condition beside it"
    got = f"columns {join_names(map(str, first))} (select_columns([...]) leaves some out)"
    expect(len(events) == 1 and len(first) <= 2, name, expected, got)
    return (*events, *(column for column in first if column not in events))


def _axes(value: Any) -> int:
    if _is_image(value) or isinstance(value, (str, bytes)):
        return 0
    return value.ndim if isinstance(value, Tensor) else np.ndim(value)


def stacked(name: str, items: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Items as one tensor.

    Raises:
        ValueError: If they differ in shape; the message names the item.
    """
    for i, item in zip(indices, items, strict=True):
        shape, expected = tuple(item.shape), tuple(items[0].shape)
        expect(shape == expected, name, f"items of one shape {expected}", f"{shape} of item {i}")
    return torch.stack([*items])


def real_numbers(name: str, value: Any) -> Tensor:
    """Floating-point numbers, as wide as they are.

    Raises:
        TypeError: If they are others.
        ValueError: If they are masked or sparse.
    """
    numbers = as_tensor(name, value)
    if not numbers.is_floating_point():
        hint = "; of integers say the number of bins: scoresde.data.Dataset(name, x, bins=256)"
        got = f"{numbers.dtype}{'' if numbers.is_complex() else hint}"
        raise TypeError(f"{name}: expected real floating-point numbers, got {got}")
    return numbers


def as_tensor(name: str, value: Any) -> Tensor:
    """Numbers as they are.

    Raises:
        TypeError: If they are none.
        ValueError: If they are masked or sparse.
    """
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            kind = type(value).__name__
            raise TypeError(f"{name}: expected real numbers, got {kind} of {array.dtype}")
        expected = "NaN where values are missing, in a Dataset(..., missing=True)"
        expect(not np.ma.is_masked(value), name, expected, "a masked array")
        widest = "c16" if array.dtype.kind == "c" else "f8" if array.dtype.itemsize > 8 else None
        native = array.astype(widest or array.dtype.newbyteorder("="), copy=False)
        value = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    assert isinstance(value, Tensor)
    expect(value.layout is torch.strided, name, "a dense tensor", value.layout)
    numbers: Tensor = value.detach()
    return numbers
