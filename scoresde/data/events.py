"""Events as training and evaluation take them, from whatever holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from scoresde.checks import expect
from scoresde.data import Dataset, LazyArray, dequantize
from scoresde.noise import Generators

_KNOWN = "a tensor, an array, a scoresde.data.Dataset, a map-style torch Dataset or its DataLoader"


def dataset(name: str, value: Any) -> Dataset:
    """A data set, from whatever can be gone through in any order.

    Args:
        name: What to call it.
        value: A `scoresde.data.Dataset`, as it is; a tensor or an array of floating-point numbers
            ``(N, *event_shape)``; a map-style `torch.utils.data.Dataset`, or whatever else has a
            length and items, of such events, each alone or alone in a tuple, which stays where it
            is; or a ``DataLoader`` of one. Batches are drawn from the loader's data set: its
            ``batch_size`` and ``shuffle`` are not used.

    Raises:
        TypeError: If it is something else, integers that do not say their number of levels, an
            iterable data set, or a loader with a sampler or a ``collate_fn`` of its own.
        ValueError: If items are not events alone, or the numbers are not as `Dataset` expects.

    Example:
        >>> import torch
        >>> from scoresde.data.events import dataset
        >>> dataset("data", torch.utils.data.TensorDataset(torch.zeros(3, 2)))
        Dataset(name='data', values=(3, 2) of torch.float32, levels=None)
    """
    if isinstance(value, torch_data.DataLoader):
        value = _of_loader(name, value)
    if isinstance(value, Dataset):
        return value
    if isinstance(value, torch_data.TensorDataset):
        value = _alone(name, value.tensors)
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return Dataset(name, _real(name, value))
    listed = isinstance(value, (str, bytes, list, tuple, Mapping, torch_data.IterableDataset))
    if not listed and hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        return Dataset(name, _stored(name, value))
    kind = type(value).__name__
    hints = {
        "str": "; scoresde.data.load reads files",
        "list": "; torch.tensor or torch.stack makes one",
    }
    raise TypeError(f"{name}: expected {_KNOWN}, got {kind}{hints.get(kind, '')}")


def _of_loader(name: str, loader: torch_data.DataLoader[Any]) -> Any:
    """The data set of a loader that does nothing else to it."""
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return loader.dataset
    collate, batches = loader.collate_fn, loader.batch_sampler
    plain = (torch_data.RandomSampler, torch_data.SequentialSampler)
    own: Any = None
    if collate not in (torch_data.default_collate, torch_data.default_convert):
        own = collate
    if batches is not None and type(batches) is not torch_data.BatchSampler:
        own = type(batches)
    for sampler in (loader.sampler, getattr(batches, "sampler", loader.sampler)):
        own = own if type(sampler) in plain else type(sampler)
    if own is not None:
        said = getattr(own, "__qualname__", repr(own))
        raise TypeError(
            f"{name}: expected a DataLoader that only batches and shuffles, got one with {said}; "
            "give its effect as a scoresde.data.Dataset"
        )
    return loader.dataset


def _stored(name: str, items: Any) -> LazyArray:
    """The items of a map-style data set, read as they are asked for."""

    def read(places: Tensor) -> Tensor:
        found = [_item(name, items[int(i)]) for i in places]
        for i, item in zip(places.tolist(), found, strict=True):
            shape, wanted = tuple(item.shape), tuple(found[0].shape)
            expect(shape == wanted, name, f"items of one shape {wanted}", f"{shape} of item {i}")
        return torch.stack(found)

    return LazyArray(len(items), read)


def _item(name: str, item: Any) -> Tensor:
    return _real(name, _alone(name, item) if isinstance(item, (tuple, list)) else item)


def _alone(name: str, parts: Sequence[Any]) -> Any:
    expected = "events alone (the other parts joined to them, as of a scoresde.Joint)"
    expect(len(parts) == 1, name, expected, f"items of {len(parts)} parts")
    return parts[0]


def _real(name: str, value: Any) -> Tensor:
    """Floating-point numbers, as wide as they are."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            kind = type(value).__name__
            raise TypeError(f"{name}: expected real numbers, got {kind} of {array.dtype}")
        expected = "NaN where values are missing, in a Dataset(..., missing=True)"
        expect(not np.ma.is_masked(value), name, expected, "a masked array")
        known = "c16" if array.dtype.kind == "c" else "f8" if array.dtype.itemsize > 8 else None
        native = array.astype(known or array.dtype.newbyteorder("="), copy=False)
        value = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    assert isinstance(value, Tensor)
    expect(value.layout is torch.strided, name, "a dense tensor", value.layout)
    if not value.is_floating_point():
        hint = "; of integers say the number of levels: scoresde.data.Dataset(name, x, levels=256)"
        said = f"{value.dtype}{'' if value.is_complex() else hint}"
        raise TypeError(f"{name}: expected real floating-point numbers, got {said}")
    return value.detach()


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
    values = data.read(slice(None) if rows is None else rows)
    return values if data.levels is None else dequantize(values, data.levels, generator)


def some(data: Dataset) -> int:
    """How many events fit into memory for sure: 4096, or fewer large ones.

    Example:
        >>> from scoresde.data import load
        >>> from scoresde.data.events import some
        >>> some(load("digits"))
        4096
    """
    return max(1, min(4096, 2**22 // math.prod(data.values.shape[1:])))


@attrs.frozen(eq=False)
class Batches:
    """All events of a data set in order, some at a time, the same at every pass.

    For what is measured of data that need not fit in memory, as `scoresde.PCA.fit` does.

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
        for rows in torch.arange(len(self.data), device="cpu").split(some(self.data)):
            yield events(self.data, generator, rows)
