"""Data sets from whatever holds events, and events of them as networks take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from scoresde.checks import expect
from scoresde.data import Dataset, LazyArray, dequantize
from scoresde.data.augmentation import mirrored
from scoresde.data.pairs import Pairs
from scoresde.internals.limits import chunk_size
from scoresde.noise import Generators

_KNOWN = "a tensor, an array, a scoresde.data.Dataset, a map-style torch Dataset or its DataLoader"


def as_dataset(name: str, value: Any) -> Dataset:
    """A data set, from whatever can be gone through in any order.

    Args:
        name: What to call it.
        value: A `scoresde.data.Dataset`, as it is; a tensor or an array of floating-point numbers
            ``(N, *event_shape)``; a map-style `torch.utils.data.Dataset`, or whatever else has a
            length and items, of such events, each alone or in a tuple, alone or with its condition
            (a label, a vector, a map), which stays where it is; or a ``DataLoader`` of one. Batches
            are drawn from the loader's data set: its ``batch_size`` and ``shuffle`` are not used.
            Names of labels are its ``classes``, if it has such.

    Raises:
        TypeError: If it is something else, integers that do not say their number of bins, an
            iterable data set, or a loader with a sampler or a ``collate_fn`` of its own.
        ValueError: If items have more parts, or the numbers are not as `Dataset` expects.

    Example:
        >>> import torch
        >>> from scoresde.data.events import as_dataset
        >>> as_dataset("data", torch.utils.data.TensorDataset(torch.zeros(3, 2)))
        Dataset(name='data', values=(3, 2) of torch.float32, bins=None)

        >>> labelled = torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.arange(3))
        >>> as_dataset("data", labelled).condition
        tensor([0, 1, 2])
    """
    if isinstance(value, torch_data.DataLoader):
        value = _dataset_of_loader(name, value)
    if isinstance(value, Dataset):
        return value
    if isinstance(value, torch_data.TensorDataset):
        pair = _pair(name, value.tensors)
        return Dataset(name, pair.values, condition=pair.condition)
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return Dataset(name, _real(name, value))
    not_indexable = isinstance(
        value, (str, bytes, list, tuple, Mapping, torch_data.IterableDataset)
    )
    if not not_indexable and hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        values = _lazy_array(name, value)
        return Dataset(name, values, condition=values.condition, classes=_classes(value, values))
    kind = type(value).__name__
    hints = {
        "str": "; scoresde.data.load reads files",
        "list": "; torch.tensor or torch.stack makes one",
    }
    raise TypeError(f"{name}: expected {_KNOWN}, got {kind}{hints.get(kind, '')}")


def _dataset_of_loader(name: str, loader: torch_data.DataLoader[Any]) -> Any:
    """The data set of a loader that does nothing else to it."""
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return loader.dataset
    collate, batches = loader.collate_fn, loader.batch_sampler
    standard = (torch_data.RandomSampler, torch_data.SequentialSampler)
    custom: Any = None
    if collate not in (torch_data.default_collate, torch_data.default_convert):
        custom = collate
    if batches is not None and type(batches) is not torch_data.BatchSampler:
        custom = type(batches)
    for sampler in (loader.sampler, getattr(batches, "sampler", loader.sampler)):
        custom = custom if type(sampler) in standard else type(sampler)
    if custom is not None:
        label = getattr(custom, "__qualname__", repr(custom))
        raise TypeError(
            f"{name}: expected a DataLoader that only batches and shuffles, got one with {label}; "
            "give its effect as a scoresde.data.Dataset"
        )
    return loader.dataset


def _lazy_array(name: str, items: Any) -> LazyArray:
    """The items of a map-style data set, read as they are asked for."""

    def read(places: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = [_item(name, items[int(i)]) for i in places]
        columns = zip(*found, strict=True) if found else []
        parts = [_stacked(name, column, places.tolist()) for column in columns]
        return parts[0] if len(parts) == 1 else (parts[0], parts[1])

    return LazyArray(len(items), read)


def _stacked(name: str, found: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    for i, item in zip(places, found, strict=True):
        shape, expected = tuple(item.shape), tuple(found[0].shape)
        expect(shape == expected, name, f"items of one shape {expected}", f"{shape} of item {i}")
    return torch.stack([*found])


def _item(name: str, item: Any) -> list[Tensor]:
    pair = _pair(name, item if isinstance(item, (tuple, list)) else (item,))
    return [part for part in pair if part is not None]


def _pair(name: str, parts: Sequence[Any]) -> Pairs:
    """An event alone, or with its condition."""
    expected = "events, alone or with a condition (other parts joined to them, see scoresde.Joint)"
    expect(len(parts) in (1, 2), name, expected, f"items of {len(parts)} parts")
    return Pairs(_real(name, parts[0]), *(_tensor(f"{name}, condition", v) for v in parts[1:]))


def _classes(items: Any, values: LazyArray) -> tuple[str, ...] | None:
    """Names of the labels, as data sets of torchvision say them."""
    names, told = getattr(items, "classes", None), values.condition
    if told is None or told.dtype != torch.int64 or len(told.shape) > 1:
        return None
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed and names else None


def _real(name: str, value: Any) -> Tensor:
    """Floating-point numbers, as wide as they are."""
    found = _tensor(name, value)
    if not found.is_floating_point():
        hint = "; of integers say the number of bins: scoresde.data.Dataset(name, x, bins=256)"
        got = f"{found.dtype}{'' if found.is_complex() else hint}"
        raise TypeError(f"{name}: expected real floating-point numbers, got {got}")
    return found


def _tensor(name: str, value: Any) -> Tensor:
    """Numbers as they are."""
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
    found: Tensor = value.detach()
    return found


def events(data: Dataset, generator: Generators = None, rows: Tensor | None = None) -> Tensor:
    """Events of a data set as floating-point numbers; integers are dequantised.

    Args:
        data: The data set.
        generator: Of the dequantisation.
        rows: Which events; all if None.

    Example:
        >>> from scoresde.data import load
        >>> from scoresde.data.events import events
        >>> x = events(load("digits"))
        >>> x.shape, bool(x.abs().max() < 1)
        (torch.Size([1797, 1, 8, 8]), True)
    """
    return as_numbers(data.read(slice(None) if rows is None else rows), data.bins, generator)


def as_numbers(values: Tensor, bins: int | None, generator: Generators = None) -> Tensor:
    """Events as they are stored, as floating-point numbers.

    Args:
        values: ``(k, *event_shape)``, on any device.
        bins: Number of bins of integers, which are dequantised; ``None`` for other numbers.
        generator: Of the dequantisation.

    Example:
        >>> import torch
        >>> from scoresde.data.events import as_numbers
        >>> as_numbers(torch.ones(1, 2), None)
        tensor([[1., 1.]])
    """
    return values if bins is None else dequantize(values, bins, generator)


@attrs.frozen(eq=False)
class Batches:
    """All events of a data set in order, in batches, the same at every pass.

    For what is measured of data that need not fit in memory, as `scoresde.PCA.fit` does. Where
    training mirrors events, their mirror images come as well: that is the law which is learned.

    Args:
        data: The data set.
        seed: Of the dequantisation.

    Example:
        >>> from scoresde import PCA
        >>> from scoresde.data import load
        >>> from scoresde.data.events import Batches
        >>> PCA.fit(Batches(load("digits"))).event_shape
        torch.Size([1, 8, 8])
    """

    data: Dataset
    seed: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        size = chunk_size(self.data.values.shape[1:])
        for rows in torch.arange(len(self.data), device="cpu").split(size):
            x = events(self.data, generator, rows)
            yield x
            if self.data.flip:
                yield mirrored(x, self.data.shapes)
