"""The Haar pyramid: an image, and what every halving of its resolution takes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.bases.basis import Basis, checked_shape
from scoresde.bases.spatial import spatial_axes
from scoresde.blocks import Blocks
from scoresde.checks import expect, whole


class Haar(Basis):
    """Orthonormal Haar wavelets over the last axes of an event.

    One level maps every pair of neighbours ``(p, q)`` along an axis to its low pass and its
    detail; over two axes that is the orthonormal 2x2 block with entries +-1/2:

        (p + q) / sqrt(2),  (p - q) / sqrt(2)               signals
        low = (p + q + r + s) / 2   of the block [[p, q], [r, s]]
        details = (p - q + r - s) / 2,  (p + q - r - s) / 2,  (p - q - r + s) / 2

    The next level does the same to ``low``. Blocks, coarse first: ``a{K}`` (the last low pass),
    ``d{K}``, ..., ``d1`` (details, orientation before channel before position). Any prefix
    ``a{K}, d{K}, ..., d{k+1}`` is the pyramid of the event low-passed ``k`` times, a complete
    image of lower resolution: see `coarse`. In 2-D its range doubles with every level.

    Args:
        event_shape: Shape of one event; axes before the spatial ones are channels.
        levels: Number of halvings ``K``; with 0 the event itself is the one block ``a0``.
        spatial: Number of spatial axes, the last ones: 1 for signals ``(L,)`` or ``(C, L)``, 2
            for images ``(H, W)`` or ``(C, H, W)``. By default 1 if the event has one axis,
            else 2.

    Raises:
        ValueError: If a spatial size is not divisible by ``2**levels``, or the event has fewer
            axes than ``spatial``.

    Source:
        Mallat 1989, *A Theory for Multiresolution Signal Decomposition*; as multi-scale
        diffusion, Batzolis et al. 2022 (arXiv 2207.09786), section 5.

    Example:
        >>> import torch
        >>> from scoresde import Haar
        >>> haar = Haar((2, 4), levels=1)
        >>> haar.blocks
        Blocks({'a1': 2, 'd1': 6})
        >>> haar(torch.tensor([[1.0, 2.0, 5.0, 5.0], [3.0, 4.0, 5.0, 5.0]]))
        tensor([ 5., 10., -1.,  0., -2.,  0.,  0.,  0.])
    """

    references = "mallat1989 batzolis2022"
    example: ClassVar = {"levels": 2}

    def __init__(self, event_shape: Sequence[int], levels: int, spatial: int | None = None) -> None:
        shape = checked_shape(event_shape)
        axes = range(-spatial_axes(shape, spatial), 0)
        sizes = shape[-len(axes) :]
        whole("levels", levels, 0)
        expect(
            # a power with thousands of digits is never computed
            all(levels < size.bit_length() and size % 2**levels == 0 for size in sizes),
            "levels",
            f"spatial sizes divisible by 2**{levels}",
            tuple(sizes),
        )
        low = [shape.numel() >> len(axes) * k for k in range(levels + 1)]
        details = {f"d{k}": low[k - 1] - low[k] for k in range(levels, 0, -1)}
        super().__init__(shape, Blocks({f"a{levels}": low[levels], **details}))
        self.levels = levels
        self.axes = axes
        # sums and differences of pairs are sqrt(2) too long along each of the axes, level by level
        halvings = [levels, *range(levels, 0, -1)]
        lengths = torch.tensor([2.0 ** (len(axes) * k / 2) for k in halvings], dtype=torch.float64)
        self.register_buffer("unit", self.blocks.expand(1 / lengths), persistent=False)
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        self.register_buffer("signs", signs, persistent=False)

    unit: Tensor
    signs: Tensor

    def shape(self, level: int) -> torch.Size:
        """Event shape after ``level`` halvings."""
        channels, sizes = self.event_shape[: -len(self.axes)], self.event_shape[-len(self.axes) :]
        return torch.Size([*channels, *(size >> level for size in sizes)])

    def coarse(self, level: int) -> Haar:
        """The basis of the event low-passed ``level`` times.

        Its coefficients are the first ones of this basis: with ``low = basis.coarse(k)``,
        ``low.inverse(basis(x)[..., : low.dim])`` is ``x`` at ``2**-k`` of its resolution.

        Raises:
            ValueError: If this basis has not that many levels.
        """
        expect(0 <= level <= self.levels, "level", f"0 to {self.levels}", level)
        return Haar(self.shape(level), self.levels - level, len(self.axes))

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        first, signs = x.ndim - len(self.event_shape), self.signs.to(x)
        low, pieces = x, []
        for _ in range(self.levels):
            # pairs along every axis become sum and difference, along a new axis before channels
            for i, axis in enumerate(self.axes):
                p, q = torch.unflatten(low, axis, (-1, 2)).unbind(axis)
                low = self._paired(p, q, signs, first + i)
            low = low.flatten(first, first + len(self.axes) - 1)
            pieces.append(low.narrow(first, 1, low.shape[first] - 1).flatten(first))
            low = low.select(first, 0)
        coefficients = torch.cat([low.flatten(first), *reversed(pieces)], -1)
        return coefficients.mul_(self.unit.to(x))

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        signs, orientations = self.signs.to(z), 2 ** len(self.axes) - 1
        low: Tensor
        low, *details = (z * self.unit.to(z)).split([*self.blocks.sizes.values()], -1)
        low = low.reshape(*z.shape[:-1], *self.shape(self.levels))
        for piece, level in zip(details, range(self.levels, 0, -1), strict=True):
            bands = piece.reshape(*z.shape[:-1], orientations, *self.shape(level))
            parts = [low, *bands.unbind(z.ndim - 1)]
            for axis in reversed(self.axes):
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [self._paired(s, d, signs, axis).flatten(axis - 1, axis) for s, d in pairs]
            (low,) = parts
        return low

    @staticmethod
    def _paired(p: Tensor, q: Tensor, signs: Tensor, axis: int) -> Tensor:
        """Sum and difference along a new axis, in one operation."""
        p, q = p.unsqueeze(axis), q.unsqueeze(axis)
        behind = -axis - 1 if axis < 0 else p.ndim - axis - 1
        return torch.addcmul(p, q, signs.reshape(2, *[1] * behind))
