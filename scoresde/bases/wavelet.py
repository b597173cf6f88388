"""Wavelet pyramids: an image at a low resolution, and the details of every doubling of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pywt
import torch
from torch import Tensor

from scoresde.bases.basis import Basis, checked_shape, transformed
from scoresde.bases.dct import dct_matrix
from scoresde.bases.spatial import spatial_axes
from scoresde.blocks import Blocks
from scoresde.checks import choice, expect, instance, whole
from scoresde.internals import limits


class Wavelet(Basis):
    """Orthonormal wavelets over the last axes of an event, which are periodic.

    One level halves the resolution. Along an axis of ``N`` points, with a filter ``h`` of length
    ``L`` and its mirror ``g_j = (-1)^j h_{L-1-j}``,

        low_k = sum_j h_j x_{2k+j-c},    detail_k = sum_j g_j x_{2k+j-c},    k = 0 .. N/2 - 1,

    indices modulo ``N``; ``c`` puts the middle of ``h`` between ``2k`` and ``2k + 1``, so that
    ``low`` is not shifted. The next level does the same to ``low``. Blocks, coarse first: ``a{K}``
    (the last low pass), ``d{K}``, ..., ``d1`` (details, orientation before channel before
    position). Any prefix ``a{K}, d{K}, ..., d{k+1}`` is the pyramid of the event low-passed ``k``
    times, a complete image of lower resolution: see `coarse`. In 2-D its range doubles with every
    level.

    Smooth filters leave no edges in samples; where bands diffuse at different times,
    `scoresde.Haar` (``"db1"``) leaves squares.

    Args:
        event_shape: Shape of one event; axes before the spatial ones are channels.
        levels: Number of halvings ``K``; with 0 the event itself is the one block ``a0``.
        wavelet: Name of an orthogonal wavelet: ``"db1"``, ``"db4"``, ``"sym4"``, ``"coif2"``, ...
            as `PyWavelets <https://pywavelets.readthedocs.io>`_ has them.
        spatial: Number of spatial axes, the last ones: 1 for signals ``(L,)`` or ``(C, L)``, 2
            for images ``(H, W)`` or ``(C, H, W)``, 3 for volumes and films. By default 1 if the
            event has one axis, else 2.
        colour: Whether a DCT along the channels comes first: from red, green and blue to brightness
            and two differences, which have a hundredth of the power in natural images. Channels and
            orientations of a band are then measured by themselves (see `moments`), while they
            diffuse with their block.

    Raises:
        ValueError: If a spatial size is not divisible by ``2**levels``, the event has fewer axes
            than ``spatial``, not one of channels where there is ``colour``, or the wavelet is
            unknown or not orthogonal.

    Source:
        Mallat 1989, *A Theory for Multiresolution Signal Decomposition*; Daubechies 1988; as
        multi-scale diffusion, Batzolis et al. 2022 (arXiv 2207.09786), section 5.

    Example:
        >>> import torch
        >>> from scoresde import Wavelet
        >>> basis = Wavelet((3, 16, 16), 2, "db4")
        >>> basis.blocks
        Blocks({'a2': 48, 'd2': 144, 'd1': 576})
        >>> basis(torch.ones(3, 16, 16))[[0, -1]].round(decimals=4)  # no detail; 2 a level
        tensor([4., 0.])
    """

    mixes = True
    references = "mallat1989 daubechies1988 batzolis2022"
    example: ClassVar = {"levels": 2, "wavelet": "db2"}

    def __init__(
        self,
        event_shape: Sequence[int],
        levels: int,
        wavelet: str = "db4",
        spatial: int | None = None,
        colour: bool = False,
    ) -> None:
        shape = checked_shape(event_shape)
        axes = range(-spatial_axes(shape, spatial), 0)
        sizes, channels = shape[-len(axes) :], shape[: -len(axes)]
        choice("colour", colour, False, True)
        expected = f"(channels, *space) with {len(axes)} spatial axes, for colour"
        expect(len(channels) == 1 or not colour, "event_shape", expected, tuple(shape))
        whole("levels", levels, 0)
        expect(
            # a power with thousands of digits is never computed
            all(levels < size.bit_length() and size % 2**levels == 0 for size in sizes),
            "levels",
            f"spatial sizes divisible by 2**{levels}",
            tuple(sizes),
        )
        taps = filter_of(wavelet)
        low = [shape.numel() >> len(axes) * k for k in range(levels + 1)]
        details = {f"d{k}": low[k - 1] - low[k] for k in range(levels, 0, -1)}
        super().__init__(shape, Blocks({f"a{levels}": low[levels], **details}))
        self.levels, self.wavelet, self.axes, self.colour = levels, wavelet, axes, colour
        if colour:
            self.register_buffer("turn", dct_matrix(*channels), persistent=False)
        self._paired = len(taps) == 2 and levels > 0
        if self._paired:
            # sums and differences of pairs are sqrt(2) too long along each axis, level by level
            lengths = torch.tensor(
                [2.0 ** (len(axes) * k / 2) for k in self._halvings], dtype=torch.float64
            )
            self.register_buffer("unit", self.blocks.expand(1 / lengths), persistent=False)
            signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
            self.register_buffer("signs", signs, persistent=False)
            return
        # matrices in float64, of coarser levels a third as many again, and what they are made of
        limits.expect_memory("event_shape", 16 * sum(size**2 for size in sizes if levels))
        for size in {size >> k for size in sizes for k in range(levels)}:
            self.register_buffer(f"matrix{size}", filter_matrix(taps, size), persistent=False)

    unit: Tensor
    signs: Tensor
    turn: Tensor

    @property
    def groups(self) -> Blocks:
        """The bands; with ``colour`` every channel and orientation of one."""
        if not self.colour:
            return self.blocks
        parts: dict[str, int] = {}
        for (band, size), level in zip(self.blocks.sizes.items(), self._halvings, strict=True):
            each = self.shape(level)[1:].numel()
            parts |= {f"{band}.{i}": each for i in range(size // each)}
        return Blocks(parts)

    @property
    def _halvings(self) -> list[int]:
        """Number of halvings behind every block."""
        return [self.levels, *range(self.levels, 0, -1)]

    def shape(self, level: int) -> torch.Size:
        """Event shape after ``level`` halvings."""
        channels, sizes = self.event_shape[: -len(self.axes)], self.event_shape[-len(self.axes) :]
        return torch.Size([*channels, *(size >> level for size in sizes)])

    def coarse(self, level: int) -> Wavelet:
        """The basis of the event low-passed ``level`` times.

        Its coefficients are the first ones of this basis: with ``low = basis.coarse(k)``,
        ``low.inverse(basis(x)[..., : low.dim])`` is ``x`` at ``2**-k`` of its resolution.

        Raises:
            ValueError: If this basis has not that many levels.
        """
        self.expect_level(level)
        rest = self.levels - level
        return Wavelet(self.shape(level), rest, self.wavelet, len(self.axes), self.colour)

    def prefix(self, dim: int) -> Wavelet:
        """The basis of the low pass with ``dim`` coefficients: see `coarse`.

        Raises:
            ValueError: If no low pass has as many.
        """
        coarse = {self.shape(level).numel(): level for level in range(self.levels + 1)}
        expect(dim in coarse, "dim", f"one of {', '.join(map(str, coarse))}", dim)
        return self.coarse(coarse[dim])

    def expect_level(self, level: int) -> None:
        """Raises ``ValueError`` unless there are so many levels."""
        expect(0 <= level <= self.levels, "level", f"0 to {self.levels}", level)

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        first, pieces = x.ndim - len(self.event_shape), []
        low, signs = self._turned(x, self.cast("turn", x).mT) if self.colour else x, self._signs(x)
        for _ in range(self.levels):
            # along every axis low and detail become entries of a new axis, before the channels
            for i, axis in enumerate(self.axes):
                low = self._split(low, axis, first + i, signs)
            low = low.flatten(first, first + len(self.axes) - 1)
            pieces.append(low.narrow(first, 1, low.shape[first] - 1).flatten(first))
            low = low.select(first, 0)
        if not pieces:
            return low.flatten(first)
        coefficients = torch.cat([low.flatten(first), *reversed(pieces)], -1)
        return coefficients.mul_(self.cast("unit", x)) if self._paired else coefficients

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        orientations = 2 ** len(self.axes) - 1
        z, signs = z * self.cast("unit", z) if self._paired else z, self._signs(z)
        low: Tensor
        low, *details = z.split([*self.blocks.sizes.values()], -1)
        low = low.reshape(*z.shape[:-1], *self.shape(self.levels))
        for piece, level in zip(details, range(self.levels, 0, -1), strict=True):
            bands = piece.reshape(*z.shape[:-1], orientations, *self.shape(level))
            parts = [low, *bands.unbind(z.ndim - 1)]
            for axis in reversed(self.axes):
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [self._merge(low, detail, axis, signs) for low, detail in pairs]
            (low,) = parts
        return self._turned(low, self.cast("turn", low)) if self.colour else low

    def _turned(self, x: Tensor, turn: Tensor) -> Tensor:
        """Along the axis of channels."""
        axis = -len(self.axes) - 1
        turned: Tensor = transformed(x.movedim(axis, -1), turn).movedim(-1, axis)
        return turned

    def _signs(self, like: Tensor) -> Tensor | None:
        """Signs of a sum and a difference."""
        return self.cast("signs", like) if self._paired else None

    def _split(self, x: Tensor, axis: int, place: int, signs: Tensor | None) -> Tensor:
        """Low pass and detail along an axis, one after the other along a new one at ``place``."""
        if signs is not None:
            p, q = torch.unflatten(x, axis, (-1, 2)).unbind(axis)
            return _sum_and_difference(p, q, signs, place)
        matrix = self.cast(f"matrix{x.shape[axis]}", x)
        halves: Tensor = transformed(x.movedim(axis, -1), matrix.mT).unflatten(-1, (2, -1))
        return halves.movedim((-2, -1), (place, axis))

    def _merge(self, low: Tensor, detail: Tensor, axis: int, signs: Tensor | None) -> Tensor:
        """The numbers with given low pass and detail along an axis."""
        if signs is not None:
            return _sum_and_difference(low, detail, signs, axis).flatten(axis - 1, axis)
        matrix = self.cast(f"matrix{2 * low.shape[axis]}", low)
        halves = torch.cat([low, detail], axis).movedim(axis, -1)
        x: Tensor = transformed(halves, matrix).movedim(-1, axis)
        return x

    def extra_repr(self) -> str:
        """Shape, blocks and wavelet, for ``print(basis)``."""
        colour = ", colour=True" if self.colour else ""
        return f"{super().extra_repr()}, wavelet={self.wavelet!r}{colour}"


def _sum_and_difference(p: Tensor, q: Tensor, signs: Tensor, axis: int) -> Tensor:
    """Along a new axis, in one operation."""
    p, q = p.unsqueeze(axis), q.unsqueeze(axis)
    behind = -axis - 1 if axis < 0 else p.ndim - axis - 1
    return torch.addcmul(p, q, signs.reshape(2, *[1] * behind))


_ROUNDING = 1e-9
"""By how much tabulated filters may fail to be orthonormal: one that is so in theory, but has no
finite length ("dmey"), fails by more."""


def filter_of(wavelet: str) -> Tensor:
    """The low pass of an orthogonal wavelet, ``(L,)`` in float64, of length 1 and sum ``sqrt(2)``.

    Raises:
        TypeError: If the name is no string.
        ValueError: If it is unknown, or the wavelet is not orthogonal.
    """
    instance("wavelet", wavelet, str)
    known = "an orthogonal one: db1 to db38, sym2 to sym20, coif1 to coif17"
    expect(wavelet in pywt.wavelist(kind="discrete"), "wavelet", known, wavelet)
    taps = torch.tensor(pywt.Wavelet(wavelet).rec_lo, dtype=torch.float64, device="cpu")
    # against itself, moved by an even number of places
    product = torch.stack([taps[k:] @ taps[: len(taps) - k] for k in range(0, len(taps), 2)])
    product[0] -= 1
    expect(bool(product.abs().max() < _ROUNDING), "wavelet", known, wavelet)
    return taps


def filter_matrix(taps: Tensor, size: int) -> Tensor:
    """Low passes and details of ``size`` periodic points, ``(size, size)``, one per row."""
    length = len(taps)
    j, k = torch.arange(length, device="cpu"), torch.arange(size // 2, device="cpu")
    middle = float((taps * j).sum() / taps.sum())
    columns = (2 * k.unsqueeze(-1) + j - round(middle - 0.5)) % size
    mirror = taps.flip(0) * (-1) ** j
    halves = [
        torch.zeros(size // 2, size, dtype=torch.float64, device="cpu").scatter_add_(
            1, columns, row.expand(len(k), -1)
        )
        for row in (taps, mirror)
    ]
    matrix = torch.cat(halves)
    # tables are rounded, some in the 12th digit: Newton's step to the nearest orthonormal matrix
    return 1.5 * matrix - 0.5 * (matrix @ matrix.mT @ matrix)
