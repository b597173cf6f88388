"""Laws of bases."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from scoresde.bases import Basis
from scoresde.testing.measures import (
    DOUBLE,
    assert_holds,
    assert_no_waiting,
    assert_same,
    standard_normal,
)
from scoresde.testing.precision import assert_single_precision


class BasisLaws(ABC):
    """Laws of a `scoresde.Basis`.

    Example:
        >>> from scoresde import Identity
        >>> from scoresde.testing import BasisLaws
        >>> class TestMine(BasisLaws):
        ...     def make(self):
        ...         return Identity((3,))
        >>> TestMine().test_events_come_back()
    """

    @abstractmethod
    def make(self) -> Basis:
        """The basis that is tested, a new one at every call."""

    def _events(self, *batch: int, seed: int = 0) -> tuple[Basis, Tensor]:
        basis = self.make().double()
        return basis, standard_normal(*batch, *basis.event_shape, seed=seed)

    def test_events_come_back(self) -> None:
        """``inverse(basis(x)) = x``, for any batch, an empty one as well."""
        for batch in ((), (3,), (2, 3), (0,)):
            basis, x = self._events(*batch)
            z = basis(x)
            assert_holds(
                "coefficients are (*batch, n)", z.shape == (*batch, basis.dim), tuple(z.shape)
            )
            assert_same("a basis is invertible", basis.inverse(z), x)

    def test_it_is_orthonormal(self) -> None:
        """Scalar products stay, and the transpose is the inverse."""
        basis, x = self._events(4)
        z = basis(x)
        assert_same("a basis is orthonormal", z @ z.mT, x.flatten(1) @ x.flatten(1).mT)
        v = standard_normal(4, basis.dim, seed=1)
        (transposed,) = torch.func.vjp(basis.analyse, x)[1](v)
        assert_same(
            "the transpose of an orthonormal basis is its inverse", transposed, basis.inverse(v)
        )

    def test_it_is_linear(self) -> None:
        """``basis(a x + y) = a basis(x) + basis(y)``."""
        basis, x = self._events(2)
        y = self._events(2, seed=1)[1]
        assert_same("a basis is linear", basis(3 * x + y), 3 * basis(x) + basis(y))

    def test_a_transform_waits_for_no_device(self) -> None:
        """Of events that are there, and back."""
        basis, x = self._events(3)
        basis.to("meta")
        for dtype in (torch.float32, DOUBLE):
            events = x.to("meta", dtype)
            assert_no_waiting("a transform", lambda: basis.inverse(basis(events)))  # noqa: B023

    def test_blocks_share_out_the_components(self) -> None:
        """Their sizes add up to the number of components of an event."""
        basis = self.make()
        total = (sum(basis.blocks.sizes.values()), math.prod(basis.event_shape))
        assert_holds("blocks share out all components", total == (basis.dim, basis.dim), total)

    def test_single_precision(self) -> None:
        """float32 in, float32 out, right to its digits, near and far, and so are gradients."""
        basis, x = self._events(3)
        z, small = basis(x), self.make()(x.float())
        assert_holds(
            "coefficients have the dtype of events", small.dtype == torch.float32, small.dtype
        )
        assert_same("float32 is accurate", small.double(), z, rtol=1e-4, atol=1e-4)

        def find(basis: Any, x: Tensor) -> dict[str, Tensor]:
            z = basis(x)
            return {"coefficients": z, "events": basis.inverse(z).flatten(1)}

        far = torch.tensor([1.0, 1e3, 1e6], dtype=DOUBLE)
        scaled = far.reshape(-1, *[1] * len(basis.event_shape)) * x
        assert_single_precision("a basis", basis, find, scaled, size=far.unsqueeze(-1))
