"""Gradients of batches by a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.pairs import Pairs
from scoresde.estimator import ScoreEstimator
from scoresde.internals.captured import Captured
from scoresde.training.seeds import seeded_globals


def captures(device: torch.device) -> bool:
    """Whether a device has CUDA graphs."""
    return device.type == "cuda"


def expect_capturable(estimator: ScoreEstimator, processes: int) -> None:
    """Raises ``ValueError`` if losses change between updates, or there are several processes."""
    expect(processes == 1, "capture", "one process", processes)
    for part in estimator.modules():
        heard = hasattr(part, "before_update")
        wanted = "an estimator that is the same at every update but for its weights"
        expect(not heard, "capture", wanted, f"a {type(part).__name__} with before_update")


class CapturedGradient:
    """Computes the gradient of a batch by a captured CUDA graph: see `Captured`.

    Args:
        add: Adds the gradient of some events to that at the weights, and returns their loss.
        pairs: The first events; others have their shapes.
        estimator: Has the weights.
        generator: ``add`` draws from it.

    Raises:
        RuntimeError: As of `Captured`.
    """

    def __init__(
        self,
        add: Callable[[Pairs], Tensor],
        pairs: Pairs,
        estimator: ScoreEstimator,
        generator: torch.Generator,
    ) -> None:
        self.weights = [*estimator.parameters()]
        self._places = self._where()

        def anew(inputs: Sequence[Tensor]) -> Tensor:
            for weight in self.weights:
                weight.grad = None
            return add(Pairs(*inputs))

        inputs = [value.clone() for value in pairs if value is not None]
        # what goes before is no update: numbers are drawn again, and statistics gathered again
        state, buffers = generator.get_state(), {v: v.clone() for v in estimator.buffers()}
        with seeded_globals(0, inputs[0].device):
            self._graph = Captured(anew, inputs, [generator], expected="capture: expected a loss")
        generator.set_state(state)
        self._gradients = [weight.grad for weight in self.weights]
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)

    def holds(self) -> bool:
        """Whether the weights have the addresses that were captured."""
        return self._places == self._where()

    def __call__(self, pairs: Pairs) -> Tensor:
        """The loss of other events, whose gradient is left."""
        for weight, gradient in zip(self.weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._graph([value for value in pairs if value is not None])

    def _where(self) -> list[int]:
        return [weight.data_ptr() for weight in self.weights]
