"""Functions of tensors on a CUDA device whose kernels are captured once, and replayed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


class Captured:
    """A function of tensors on a CUDA device as one CUDA graph: see `torch.cuda.CUDAGraph`.

    It runs twice before it is captured, as libraries initialise themselves at first. Tensors other
    than its inputs are read and written at the addresses that they had then.

    Args:
        function: Stays on the device: reads no value on the host, and copies none from there.
        inputs: Examples, of the shapes of those to come.
        generators: Of the device, which it draws from; a call draws as the function would.
        expected: How error messages begin.

    Raises:
        RuntimeError: If it does not stay there, draws random numbers of the host, or has a graph of
            its own.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Tensor]], Tensor],
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
        *,
        expected: str,
    ) -> None:
        self.function, self.inputs = function, list(inputs)
        self.graph, self.device = torch.cuda.CUDAGraph(), inputs[0].device
        for generator in generators:
            self.graph.register_generator_state(generator)
        # casts that autocast remembers would be of the weights as they are now
        casts = torch.is_autocast_enabled("cuda")
        autocast = torch.autocast("cuda", enabled=casts, cache_enabled=False)
        with torch.cuda.device(self.device), autocast:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), expect_no_host_numbers(expected):
                for _ in range(2):
                    function(self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            try:
                # what other threads do on the device, loading data for instance, is theirs
                with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                    self.output = function(self.inputs)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{expected} that stays on the device, got one that looks at values, copies "
                    "them from the host or has a graph of its own (as of networks compiled with "
                    f"mode='reduce-overhead'): {error}"
                ) from error
            self.over = torch.cuda.Event()
            self.over.record()

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value of the function."""
        with torch.cuda.device(self.device):
            # another thread's stream may still be at the memory that is written to here
            torch.cuda.current_stream().wait_event(self.over)
            for mine, new in zip(self.inputs, inputs, strict=True):
                mine.copy_(new)
            self.graph.replay()
            output = self.output.clone()
            self.over.record()
        return output


@contextmanager
def expect_no_host_numbers(expected: str) -> Iterator[None]:
    """Raises ``RuntimeError`` if random numbers of the host are drawn inside.

    A captured function draws them once, and would use the same at every replay: for instance to
    leave layers out at random.

    Args:
        expected: As of `Captured`.
    """
    before = _host_generators()
    yield
    drawn = [name for name, state in _host_generators().items() if state != before[name]]
    if drawn:
        wanted = f"{expected} that draws from generators of the device"
        raise RuntimeError(f"{wanted}, got one that draws from {' and '.join(drawn)}")


def _host_generators() -> dict[str, object]:
    kind, keys, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 (that is what is looked at)
    return {
        "Python's": random.getstate(),
        "numpy's": (kind, np.asarray(keys).tobytes(), place),
        "torch's of the CPU": bytes(torch.default_generator.get_state().numpy()),
    }
