"""Where events are while a device works on them: all on the device, or moved batch by batch.

Integers are dequantised on the device, as they take fewer bytes on the way.
"""

from __future__ import annotations

from functools import partial

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.augmentation import middle
from scoresde.data.dataset import Dataset
from scoresde.data.pairs import Pairs
from scoresde.internals.free_memory import free_memory
from scoresde.precision import precision

_SHARE = 4
"""Data take a quarter of a device's free memory at most: the rest is the network's."""


@attrs.frozen(eq=False)
class PlacedEvents:
    """A data set as it is read by a device.

    Attributes:
        data: The data set.
        device: Which device.
        values: All events, on the device; None if they do not fit or are read from elsewhere.
        condition: Their conditions, there as well.
    """

    data: Dataset
    device: torch.device
    values: Tensor | None
    condition: Tensor | None = None

    @classmethod
    def of(cls, name: str, data: Dataset, device: torch.device) -> PlacedEvents:
        """Brings events to a device if they are in memory and take a quarter of what is free there.

        Args:
            name: What to call them.
            data: The events, on the CPU or on that device.
            device: Which device.

        Raises:
            ValueError: If they are on another device.
        """
        stored = [part for part in (data.values, data.condition) if part is not None]
        values = [to_supported_dtype(part, device) for part in stored if isinstance(part, Tensor)]
        expected = f"events on the CPU or on {device}, where the estimator is"
        for part in values:
            expect(part.device in (torch.device("cpu"), device), name, expected, part.device)
        size = sum(part.nbytes for part in values if part.device != device)
        if len(values) < len(stored) or (size and size > free_memory(device) // _SHARE):
            return cls(data, device, None)
        return cls(data, device, *(part.to(device) for part in values))

    def pairs(self, rows: Tensor) -> Pairs:
        """Events by index ``(k,)``, on the device, with their conditions."""
        return self.stored(rows).map(partial(middle, size=self.data.crop))

    def stored(self, rows: Tensor) -> Pairs:
        """The same, before anything is cut from them."""
        if self.values is None:
            return pairs_to_device(self.data.stored(rows), self.device)
        rows = rows.to(self.device, non_blocking=True)
        return Pairs(self.values, self.condition).map(lambda part: part.index_select(0, rows))


def pairs_to_device(pairs: Pairs, device: torch.device) -> Pairs:
    """Events and conditions on a device, as `to_supported_dtype`."""
    return pairs.map(lambda part: to_supported_dtype(part, device).to(device, non_blocking=True))


def to_supported_dtype(values: Tensor, device: torch.device) -> Tensor:
    """Events in a dtype of the device: float64 becomes float32 where there is none."""
    narrower = values.dtype == torch.float64 and precision(device) != torch.float64
    return values.to(precision(device)) if narrower else values
