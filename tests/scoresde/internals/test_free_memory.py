"""Chunks by free memory, of devices that there are none of."""

import pytest
import torch

from scoresde.internals import free_memory as memory
from scoresde.internals import limits

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch):
    """What a device with 6 GiB would say, of which torch holds two, and uses half of that."""
    said = {"mem_get_info": (4 * 2**30, 6 * 2**30)}
    said |= {"memory_reserved": 2 * 2**30, "memory_allocated": 2**30}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


def test_what_torch_holds_and_does_not_use_is_free(cuda):
    assert memory.free_memory(CUDA) == 5 * 2**30


def test_the_processor_has_what_is_allowed():
    assert memory.free_memory(torch.device("cpu")) == limits.memory()
    with limits.memory_limit(12345):
        assert memory.free_memory(torch.device("cpu")) == 12345


class Elsewhere(torch.Tensor):
    device = CUDA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_answers_are_evaluated_together_as_half_of_it_takes(cuda, dtype):
    states = torch.empty(64, 1024, dtype=dtype, device="meta").as_subclass(Elsewhere)
    each = 100 * 64 * 1024 * dtype.itemsize
    assert memory.device_chunk_size(10**6, states) == int(2.5 * 2**30) // each
    assert memory.device_chunk_size(4, states) is None
    with limits.memory_limit(10 * each):
        assert memory.device_chunk_size(100, torch.empty(64, 1024, dtype=dtype, device="meta")) == 5
    with limits.memory_limit(1):
        assert memory.device_chunk_size(100, torch.empty(64, 1024, dtype=dtype, device="meta")) == 1
