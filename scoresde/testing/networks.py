"""Laws of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.testing.measures import (
    DOUBLE,
    assert_holds,
    assert_same,
    assert_saved,
    standard_normal,
)
from scoresde.testing.precision import assert_single_precision


class NetworkLaws(ABC):
    """Laws of networks, ``network(x, noise_level)`` or ``network(x, noise_level, condition)``.

    Attributes:
        event_shape: Of the events that it takes.
        noise_levels: Of an event, of networks for vector time.

    Example:
        >>> from estimators import ResidualMLP
        >>> from scoresde.testing import NetworkLaws
        >>> class TestMine(NetworkLaws):
        ...     def make(self):
        ...         return ResidualMLP(self.event_shape, width=8, depth=1)
        >>> TestMine().test_events_go_in_and_come_out()
    """

    event_shape: Sequence[int] = (3,)
    noise_levels: int = 1

    @abstractmethod
    def make(self) -> nn.Module:
        """The network that is tested, a new one at every call."""

    def condition(self, batch: int) -> Any:
        """Its condition, None without any."""
        return None

    def _inputs(self, batch: int) -> tuple[Any, ...]:
        """Events, noise levels over all there are, and a condition if there is one."""
        noise_level = torch.linspace(-2.0, 2.0, batch * self.noise_levels, dtype=DOUBLE)
        if self.noise_levels > 1:
            noise_level = noise_level.reshape(self.noise_levels, batch).mT
        condition = self.condition(batch)
        conditions = () if condition is None else (condition,)
        return (standard_normal(batch, *self.event_shape), noise_level, *conditions)

    def _network(self) -> nn.Module:
        return self.make().double().eval()

    def test_events_go_in_and_come_out(self) -> None:
        """In their shape and dtype, of an empty batch as well; they are not written on."""
        for dtype in (torch.float32, DOUBLE):
            network = self.make().to(dtype).eval()
            for batch in (1, 4, 0):
                x, *others = (v.to(dtype) if _real(v) else v for v in self._inputs(batch))
                before = x.clone()
                out = network(x, *others)
                shape_and_dtype = (tuple(out.shape), out.dtype)
                law = "predictions have the shape and dtype of events"
                assert_holds(law, shape_and_dtype == (tuple(x.shape), dtype), shape_and_dtype)
                assert_same("events are not written on", x, before, rtol=0, atol=0)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Outputs of single rows are those of the whole batch, in evaluation mode."""
        network, inputs = self._network(), self._inputs(4)
        with torch.no_grad():
            together = network(*inputs)
            alone = torch.cat([network(*(v[i : i + 1] for v in inputs)) for i in range(4)])
        law = "a prediction does not depend on the other samples"
        assert_same(law, alone, together, rtol=1e-6, atol=1e-8)

    def test_single_precision(self) -> None:
        """At all levels, for events of any likely size: what float64 says, and its gradients."""
        x, *others = self._inputs(6)
        far = torch.tensor([0.1, 1.0, 5.0], dtype=DOUBLE).repeat(2)
        scaled = far.reshape(-1, *[1] * len(self.event_shape)) * x

        def find(network: Any, x: Tensor, *others: Any) -> dict[str, Tensor]:
            return {"the prediction": network.eval()(x, *others).flatten(1)}

        assert_single_precision("a network", self._network(), find, scaled, *others)

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all that is learned."""
        inputs = self._inputs(3)
        law = "a state_dict is the whole network"
        assert_saved(law, self._network(), lambda network: network(*inputs).detach())


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
