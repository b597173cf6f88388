"""What turns events into coefficients: orthonormal, or not a basis here.

``z = U x`` with ``U U^T = 1``: lengths, Gaussian noise and densities are the same on both sides,
and scores transform as ``score_x = U^T score_z``. Only a basis knows how blocks of coefficients
make up an image or a signal; everything else sees a flat state ``(*batch, n)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoresde.blocks import Blocks
from scoresde.checks import expect, floating, trailing_shape


class Basis(nn.Module, ABC):
    """An orthonormal change of coordinates between events and flat coefficients.

    Subclasses implement `analyse` and `synthesise`; calling the basis and `inverse` add the
    checks of shape and dtype.

    Args:
        event_shape: Shape of one event.
        blocks: Layout of the coefficients, coarse first; its size is that of the event.
    """

    def __init__(self, event_shape: Sequence[int], blocks: Blocks) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        expect(
            len(self.event_shape) > 0 and min(self.event_shape) > 0,
            "event_shape",
            "one or more positive sizes",
            tuple(event_shape),
        )
        expect(
            blocks.dim == self.event_shape.numel(),
            "blocks",
            f"{self.event_shape.numel()} components for event shape {tuple(event_shape)}",
            blocks.dim,
        )
        self.blocks = blocks

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

    def extra_repr(self) -> str:
        """Shape and blocks, for ``print(basis)``."""
        return f"event_shape={tuple(self.event_shape)}, blocks={self.blocks.sizes}"
