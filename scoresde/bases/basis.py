"""The interface of bases: orthonormal coordinates ``z = U x`` of events.

``z = U x`` with ``U U^T = 1``: lengths, Gaussian noise and densities are the same on both sides,
and scores transform as ``score_x = U^T score_z``. Only a basis knows how blocks of coefficients
make up an image or a signal; everything else sees a flat state ``(*batch, n)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.bases.missing_values import known_moments
from scoresde.bases.moments import MomentsByGroup, batches
from scoresde.blocks import Blocks
from scoresde.checks import expect, floating, sizes, trailing_shape
from scoresde.internals.messages import warn
from scoresde.precision import KeepsFloat64, full_precision, precision


class Basis(KeepsFloat64, ABC):
    """An orthonormal change of coordinates between events and flat coefficients.

    Subclasses implement `analyse` and `synthesise`; calling the basis and `inverse` add the
    checks of shape and dtype. Coefficients come in the dtype of the events. Floating-point
    buffers keep their precision: casting a module moves them to its device but does not round
    them, as a rounded basis would no longer be orthonormal.

    Args:
        event_shape: Shape of one event.
        blocks: Layout of the coefficients, coarse first; its size is that of the event.

    Raises:
        ValueError: If the event shape is empty or not positive, or the blocks do not cover it.

    Example:
        >>> import torch
        >>> from scoresde import Basis, Blocks
        >>> class Reversed(Basis):
        ...     def analyse(self, x): return x.flip(-1)
        ...     def synthesise(self, z): return z.flip(-1)
        >>> basis = Reversed((3,), Blocks({"last": 1, "rest": 2}))
        >>> basis(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 2., 1.])
    """

    def __init__(self, event_shape: Sequence[int], blocks: Blocks) -> None:
        super().__init__()
        self.event_shape = checked_shape(event_shape)
        if _channels_last(self.event_shape):
            moved = (self.event_shape[2], *self.event_shape[:2])
            warn(
                f"event_shape: {tuple(event_shape)} looks like an image with its channels last; "
                f"here they come first, {moved}: use numpy.moveaxis(values, -1, 1)"
            )
        expect(
            blocks.dim == self.event_shape.numel(),
            "blocks",
            f"{self.event_shape.numel()} components for event shape {tuple(event_shape)}",
            blocks.dim,
        )
        self.blocks = blocks

    mixes: ClassVar[bool] = False
    """Whether every coefficient is a sum over all numbers of an event, which have one unit then."""

    @property
    def dim(self) -> int:
        """Number of components ``n``."""
        return self.blocks.dim

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """``U x``: ``(*batch, *event_shape)`` to ``(*batch, n)``."""

    @abstractmethod
    def synthesise(self, z: Tensor) -> Tensor:
        """``U^T z``: ``(*batch, n)`` to ``(*batch, *event_shape)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Coefficients of events, checked.

        Args:
            x: ``(*batch, *event_shape)``.

        Returns:
            ``(*batch, n)``.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If its trailing shape is not the event shape.
        """
        floating("x", x)
        trailing_shape("x", x, self.event_shape)
        return self.analyse(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Events of coefficients, checked.

        Args:
            z: ``(*batch, n)``.

        Returns:
            ``(*batch, *event_shape)``.

        Raises:
            TypeError: If ``z`` is not a floating-point tensor.
            ValueError: If its last axis is not ``n``.
        """
        floating("z", z)
        trailing_shape("z", z, torch.Size([self.dim]))
        return self.synthesise(z)

    def flatten(self, x: Tensor) -> Tensor:
        """``(*batch, *event_shape)`` to ``(*batch, n)``, row-major."""
        if len(self.event_shape) == 1:
            return x
        return x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.dim)

    def unflatten(self, z: Tensor) -> Tensor:
        """``(*batch, n)`` to ``(*batch, *event_shape)``, row-major."""
        if len(self.event_shape) == 1:
            return z
        return z.reshape(*z.shape[:-1], *self.event_shape)

    def prefix(self, dim: int) -> Basis:
        """The basis of the first ``dim`` coefficients, whose events have a lower resolution.

        Args:
            dim: How many.

        Raises:
            ValueError: If there is none; most bases have only themselves.
        """
        expect(dim == self.dim, "dim", f"{self.dim}, or a basis of several resolutions", dim)
        return self

    @property
    def groups(self) -> Blocks:
        """Components that are measured together, by name: here those of a block."""
        return self.blocks

    def moments(
        self, data: Tensor | Iterable[Tensor], missing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean of every coefficient, and a scale of every group (`groups`).

        The scale is the standard deviation, for constants a share of their size, small enough that
        a model reproduces them: see `scoresde.bases.moments`.

        Args:
            data: Events, ``(N, *event_shape)``, or pieces of them, one after the other.
            missing: Whether NaN stands for values that are missing: the others are measured.

        Returns:
            ``(n,)`` and ``(blocks,)``, or ``(n,)`` if groups are smaller than blocks; in float64.

        Raises:
            TypeError: If ``data`` is not a floating-point tensor.
            ValueError: If its trailing shape is not the event shape, or it is not finite.

        Example:
            >>> import torch
            >>> from scoresde import Identity
            >>> metres_and_grams = torch.tensor([[1.0, 2000.0], [1.5, 1000.0]])
            >>> Identity((2,)).moments(metres_and_grams)[1].tolist()
            [0.25, 500.0]
        """
        groups = MomentsByGroup(self.groups)

        def analyse(x: Tensor) -> Tensor:
            return self(x.to(precision(x.device)))  # type: ignore[no-any-return]

        if missing:
            return known_moments([data] if isinstance(data, Tensor) else data, analyse, self.groups)
        mean, scale = groups.measured(batches(data), analyse)
        groups.warn()
        coarse = len(groups.blocks) == len(self.blocks)
        return mean, scale if coarse else groups.blocks.expand(scale)

    def extra_repr(self) -> str:
        """Shape and blocks, for ``print(basis)``."""
        return f"event_shape={tuple(self.event_shape)}, blocks={self.blocks.sizes}"


@full_precision
def transformed(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` in full precision, also within `torch.autocast`."""
    return x @ matrix


def _channels_last(shape: torch.Size) -> bool:
    """Whether the last of three axes, and it alone, has as many entries as there are colours."""
    # 8: an image that small is a thumbnail, while channels are rarely so many
    return len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= 8


def checked_shape(event_shape: Sequence[int]) -> torch.Size:
    """An event's shape; raises ``TypeError`` if it is none, ``ValueError`` if it is empty."""
    shape = sizes("event_shape", event_shape)
    expect(
        len(shape) > 0 and min(shape) > 0, "event_shape", "one or more positive sizes", tuple(shape)
    )
    return shape
