"""Events where the device is, if they fit."""

import pytest
import torch

from scoresde.data import Dataset, LazyArray
from scoresde.data.placement import PlacedEvents, to_supported_dtype
from scoresde.internals import limits
from scoresde.testing import DeviceCalls

CPU, META = torch.device("cpu"), torch.device("meta")
INTEGERS = Dataset("levels", torch.arange(40, dtype=torch.uint8).reshape(20, 2) % 5, bins=5)
ROWS = torch.tensor([3, 0, 3])


def test_events_on_a_processor_are_not_copied():
    placed = PlacedEvents.of("data", INTEGERS, CPU)
    assert placed.values is INTEGERS.values
    assert torch.equal(placed.pairs(ROWS).values, INTEGERS.values[ROWS])


def test_integers_stay_integers():
    placed = PlacedEvents.of("data", INTEGERS, META)
    assert placed.values.dtype == torch.uint8
    with DeviceCalls() as calls:
        assert placed.pairs(ROWS).values.dtype == torch.uint8
    assert calls.summary()["queued"] == 1
    assert calls.copies.total() == calls.reads.total() == 0


def test_what_does_not_fit_stays(monkeypatch):
    """A quarter of the memory at most; of devices that do not say how much that is, a bound."""
    with limits.memory_limit(4 * INTEGERS.values.nbytes):
        assert PlacedEvents.of("data", INTEGERS, META).values is not None
    with limits.memory_limit(4 * INTEGERS.values.nbytes - 1):
        placed = PlacedEvents.of("data", INTEGERS, META)
        assert PlacedEvents.of("data", INTEGERS, CPU).values is not None
    assert placed.values is None
    with DeviceCalls() as calls:
        assert placed.pairs(ROWS).values.device == META
    assert calls.summary()["queued"] == 1
    assert calls.copies.total() == 0

    class Module:
        @staticmethod
        def mem_get_info(device):
            return 4 * INTEGERS.values.nbytes - 10, 10**12

        @staticmethod
        def memory_reserved(device):
            return 15

        @staticmethod
        def memory_allocated(device):
            return 5

    monkeypatch.setattr(torch, "meta", Module, raising=False)
    assert PlacedEvents.of("data", INTEGERS, META).values is not None
    bigger = Dataset("levels", torch.cat([INTEGERS.values, INTEGERS.values[:1]]), bins=5)
    assert PlacedEvents.of("data", bigger, META).values is None


def test_what_is_on_a_disk_stays_there():
    read = []
    values = LazyArray(20, lambda rows: read.append(len(rows)) or INTEGERS.values[rows])
    placed = PlacedEvents.of("data", Dataset("stored", values, bins=5), META)
    assert placed.values is None
    read.clear()
    assert placed.pairs(ROWS).values.device == META
    assert read == [3]


@pytest.mark.parametrize("name", ["cpu", "meta", "cuda", "mps"])
def test_numbers_are_as_wide_as_a_device_has_them(name):
    device = torch.device(name)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8):
        narrower = name == "mps" and dtype == torch.float64
        found = to_supported_dtype(torch.ones(2, 3).to(dtype), device)
        assert found.dtype == (torch.float32 if narrower else dtype)


def test_what_is_elsewhere_is_refused():
    here = Dataset("x", torch.zeros(3, 2))
    object.__setattr__(here, "values", torch.zeros(3, 2, device="meta"))
    expected = "held_out: expected events on the CPU or on cpu, where the estimator is, got meta"
    with pytest.raises(ValueError, match=expected):
        PlacedEvents.of("held_out", here, CPU)
