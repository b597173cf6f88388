"""Data sets from whatever holds events, and events of them as networks take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils import data as torch_data

from scoresde.checks import expect
from scoresde.data import Dataset, LazyArray, dequantize
from scoresde.data.augmentation import cropped, mirrored
from scoresde.data.items import PARTS, Items, as_tensor, real_numbers, stacked
from scoresde.internals.limits import chunk_size
from scoresde.noise import Generators

_KNOWN = "a tensor, an array, a scoresde.data.Dataset, a map-style torch Dataset or its DataLoader"


def as_dataset(name: str, value: Any) -> Dataset:
    """A data set, from anything with random access to events.

    Args:
        name: What to call it.
        value: A `scoresde.data.Dataset`; a tensor or an array of floating-point numbers
            ``(N, *event_shape)``; a map-style `torch.utils.data.Dataset`, or anything with a length
            and items; or a ``DataLoader`` of one, whose ``batch_size`` and ``shuffle`` are not
            used. An item is an event, alone, in a tuple with or without its condition (a label, a
            vector, a map), or in a mapping of an array's column and at most one other, as of
            Hugging Face's ``datasets``; items stay where they are. Images of Pillow have 256 bins
            (`scoresde.data.image_items`). Names of labels are the data set's ``classes``, or
            ``features``.

    Raises:
        TypeError: If it is something else, integers that do not say their number of bins, an
            iterable data set, or a loader with a sampler or a ``collate_fn`` of its own.
        ValueError: If items have more parts, or the numbers are not as `Dataset` expects.

    Example:
        >>> import torch
        >>> from scoresde.data.events import as_dataset
        >>> as_dataset("data", torch.utils.data.TensorDataset(torch.zeros(3, 2)))
        Dataset(name='data', values=(3, 2) of torch.float32, bins=None)
    """
    if isinstance(value, torch_data.DataLoader):
        value = _dataset_of_loader(name, value)
    if isinstance(value, Dataset):
        return value
    if isinstance(value, torch_data.TensorDataset):
        expect(len(value.tensors) in (1, 2), name, PARTS, f"items of {len(value.tensors)} parts")
        values, *conditions = _item(name, value.tensors)
        return Dataset(name, values, condition=conditions[0] if conditions else None)
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return Dataset(name, real_numbers(name, value))
    not_indexable = isinstance(
        value, (str, bytes, list, tuple, Mapping, torch_data.IterableDataset)
    )
    if not not_indexable and hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        items = Items.of(name, value)
        if items.of_images:
            from scoresde.data.pillow import image_items

            return image_items(value, name=name, lazy=True)
        stored = _lazy_array(name, items)
        classes = items.classes(stored.condition)
        return Dataset(name, stored, condition=stored.condition, classes=classes)
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


def _lazy_array(name: str, items: Items) -> LazyArray:
    """Items, read as they are asked for."""

    def read(indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows = [_item(name, items.parts(int(i))) for i in indices]
        columns = zip(*rows, strict=True) if rows else []
        parts = [stacked(name, column, indices.tolist()) for column in columns]
        return parts[0] if len(parts) == 1 else (parts[0], parts[1])

    return LazyArray(len(items), read)


def _item(name: str, parts: Sequence[Any]) -> list[Tensor]:
    return [
        real_numbers(name, parts[0]),
        *(as_tensor(f"{name}, condition", v) for v in parts[1:]),
    ]


def events(data: Dataset, generator: Generators = None, rows: Tensor | None = None) -> Tensor:
    """Events of a data set as floating-point numbers; integers are dequantised.

    Args:
        data: The data set.
        generator: Of the dequantisation.
        rows: Which events; all if None.
    """
    return as_numbers(data.read(slice(None) if rows is None else rows), data.bins, generator)


def as_numbers(values: Tensor, bins: int | None, generator: Generators = None) -> Tensor:
    """Events as they are stored, as floating-point numbers.

    Args:
        values: ``(k, *event_shape)``, on any device.
        bins: Number of bins of integers, which are dequantised; ``None`` for other numbers.
        generator: Of the dequantisation.
    """
    return values if bins is None else dequantize(values, bins, generator)


@attrs.frozen(eq=False)
class Batches:
    """All events of a data set in order, in batches, the same at every pass.

    For moments of data that need not fit in memory, as of `scoresde.PCA.fit`. They are of the
    distribution that is learned: where training mirrors events, their mirror images come as well,
    and where it cuts windows from images, one at a random place in each.

    Args:
        data: The data set.
        seed: Of the dequantisation, and of the windows.

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
            own = cropped(self.data.stored(rows), self.data.crop, generator)
            x = as_numbers(own.values, self.data.bins, generator)
            yield x
            if self.data.flip:
                yield mirrored(x, self.data.shapes)
