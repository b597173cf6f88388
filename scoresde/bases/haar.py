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
        # sums and differences of pairs are sqrt(2) too long along each of the axes
        self._unit: float = 2 ** (-len(axes) / 2)

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
        first = x.ndim - len(self.event_shape)
        low = x
        bands: list[Tensor] = []
        for _ in range(self.levels):
            low, *details = self._split(low)
            bands[:0] = details
        return torch.cat([band.flatten(first) for band in (low, *bands)], dim=-1)

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        parts = 2 ** len(self.axes)
        finer = [self.shape(k) for k in range(self.levels, 0, -1) for _ in range(parts - 1)]
        shapes = [self.shape(self.levels), *finer]
        pieces: Sequence[Tensor] = z.split([shape.numel() for shape in shapes], dim=-1)
        low, *details = (
            piece.reshape(*z.shape[:-1], *shape)
            for piece, shape in zip(pieces, shapes, strict=True)
        )
        for k in range(0, len(details), parts - 1):
            low = self._merge([low, *details[k : k + parts - 1]])
        return low

    def _split(self, x: Tensor) -> list[Tensor]:
        """The low pass and the details of one level."""
        parts = [x]
        for axis in self.axes:
            pairs = [torch.unflatten(p, axis, (-1, 2)).unbind(axis) for p in parts]
            parts = [part for p, q in pairs for part in (p + q, p - q)]
        return [part * self._unit for part in parts]

    def _merge(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `_split`."""
        for axis in reversed(self.axes):
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [torch.stack([s + d, s - d], axis).flatten(axis - 1, axis) for s, d in pairs]
        return parts[0] * self._unit
