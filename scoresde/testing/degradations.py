"""Laws of degradations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.testing.measures import DOUBLE, assert_holds, assert_same


class DegradationLaws(ABC):
    """Laws of what makes parts of events, see `scoresde.data.degradations`.

    Attributes:
        event_shape: Of the events that it takes; images of three channels by default.

    Example:
        >>> from scoresde.data import Downsample
        >>> from scoresde.testing import DegradationLaws
        >>> class TestMine(DegradationLaws):
        ...     def make(self):
        ...         return Downsample(2)
        >>> TestMine().test_parts_are_as_many_as_events()
    """

    event_shape: Sequence[int] = (3, 8, 8)

    @abstractmethod
    def make(self) -> Callable[[Tensor], Tensor]:
        """The degradation that is tested, a new one at every call."""

    def _events(self, batch: int = 5) -> Tensor:
        """Within the range of images, and at its ends."""
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.rand(batch, *self.event_shape, generator=generator, dtype=DOUBLE) * 2 - 1
        x[:1], x[1:2] = -1.0, 1.0
        return x

    def test_parts_are_as_many_as_events(self) -> None:
        """Of one shape and in the dtype of the events, which are not written on."""
        shapes = set()
        for dtype in (torch.float32, DOUBLE):
            for batch in (1, 5):
                x = self._events(batch).to(dtype)
                before = x.clone()
                y = self.make()(x)
                got = (*y.shape[:1], y.dtype)
                assert_holds("a part for every event, in its dtype", got == (batch, dtype), got)
                assert_same("events are not written on", x, before, rtol=0, atol=0)
                shapes.add(tuple(y.shape[1:]))
        assert_holds("parts have one shape", len(shapes) == 1 and () not in shapes, shapes)

    def test_a_part_does_not_depend_on_its_batch(self) -> None:
        """Parts of single rows are those of the whole batch."""
        degradation, x = self.make(), self._events()
        alone = torch.cat([degradation(x[i : i + 1]) for i in range(len(x))])
        assert_same("a part does not depend on other events", alone, degradation(x))

    def test_the_same_again(self) -> None:
        """Events that are read twice have one condition: nothing is drawn at random."""
        degradation, x = self.make(), self._events()
        first = degradation(x)
        for again in (degradation(x), self.make()(x)):
            assert_same("a part is a function of its event", again, first, rtol=0, atol=0)

    def test_parts_stay_in_range(self) -> None:
        """From -1 to 1, as events are that were integers: they go back into bins."""
        y = self.make()(self._events())
        bounded = bool((y.abs() <= 1 + 1e-12).all())
        assert_holds("parts of images are from -1 to 1", bounded, (float(y.min()), float(y.max())))

    def test_single_precision(self) -> None:
        """What float64 says, to the digits of float32."""
        x = self._events()
        y, small = self.make()(x), self.make()(x.float())
        assert_same("float32 is accurate", small.double(), y, rtol=1e-4, atol=1e-5)
