"""The discrete cosine transform: coefficients by frequency."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.bases.basis import Basis, checked_shape, transformed
from scoresde.bases.spatial import spatial_axes
from scoresde.blocks import Blocks
from scoresde.checks import expect, whole
from scoresde.internals import limits


class DCT(Basis):
    """Orthonormal DCT-II over the last axes of an event, low frequencies first.

    Along an axis of ``N`` points

        X_k = c_k sqrt(2 / N) sum_m cos(pi (2m + 1) k / (2N)) x_m,  c_0 = 1/sqrt(2), else c_k = 1

    These cosines diagonalise the Laplacian with reflecting ends: heat dissipation multiplies a
    component by ``exp(-f^2 t)``, where ``f^2`` sums ``(pi k / N)^2`` over the axes. Components
    come by increasing ``f``, in row-major order where frequencies are equal.

    Args:
        event_shape: Shape of one event; axes before the spatial ones are channels.
        spatial: Number of spatial axes, the last ones; by default 1 if the event has one axis,
            else 2.
        bands: Number of blocks of increasing frequency, about equal in size; components of the
            same frequency (channels, the two axes of a square) share a block. One block is named
            ``all``, several ``band1``, ``band2``, ...

    Attributes:
        frequencies: ``f`` of every component, ``(n,)``.

    Raises:
        ValueError: If there are more bands than different frequencies, the event has fewer
            axes than ``spatial``, or the matrices, ``N^2`` numbers for an axis, take more memory
            than `scoresde.internals.limits` allows.

    Source:
        Ahmed, Natarajan and Rao 1974, *Discrete Cosine Transform*; in diffusion, Rissanen et al.
        2023 (arXiv 2206.13397), Hoogeboom and Salimans 2023 (arXiv 2209.05557).

    Example:
        >>> import torch
        >>> from scoresde import DCT
        >>> dct = DCT((4,), bands=2)
        >>> dct.blocks
        Blocks({'band1': 2, 'band2': 2})
        >>> dct(torch.ones(4))[0], dct.frequencies[1] == torch.pi / 4  # sqrt(4), one half wave
        (tensor(2.), tensor(True))
    """

    mixes = True
    references = "ahmed1974 rissanen2023 hoogeboom2023"

    frequencies: Tensor
    order: Tensor
    rank: Tensor

    def __init__(
        self, event_shape: Sequence[int], spatial: int | None = None, bands: int = 1
    ) -> None:
        shape = checked_shape(event_shape)
        whole("bands", bands, 0)
        axes = range(-spatial_axes(shape, spatial), 0)
        sizes = [shape[axis] ** 2 for axis in axes]
        # a matrix for every axis, two of one while it is made; a few numbers for every component
        limits.expect_memory("event_shape", 8 * (sum(sizes) + max(sizes)) + 128 * shape.numel())
        # In units of pi / common, squares are integers and equal frequencies are found equal.
        common = math.lcm(*(shape[axis] for axis in axes))
        square = torch.zeros(shape, dtype=torch.int64, device="cpu")
        for axis in axes:
            k = torch.arange(shape[axis], device="cpu") * (common // shape[axis])
            square = square + (k**2).reshape(-1, *[1] * (-axis - 1))
        ordered, order = square.flatten().sort(stable=True)
        sizes = _band_sizes(ordered, bands)
        names = ["all"] if bands == 1 else [f"band{i + 1}" for i in range(bands)]
        super().__init__(shape, Blocks(dict(zip(names, sizes, strict=True))))
        self.axes = axes
        frequencies = ordered.double().sqrt() * (math.pi / common)
        made = {"frequencies": frequencies, "order": order, "rank": order.argsort()}
        made |= {f"matrix{-axis}": dct_matrix(shape[axis]) for axis in axes}
        for name, value in made.items():
            self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        for axis in self.axes:
            matrix = self.cast(f"matrix{-axis}", x)
            x = transformed(x.movedim(axis, -1), matrix.mT).movedim(-1, axis)
        return self.flatten(x)[..., self.order]

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.unflatten(z[..., self.rank])
        for axis in self.axes:
            matrix = self.cast(f"matrix{-axis}", x)
            x = transformed(x.movedim(axis, -1), matrix).movedim(-1, axis)
        return x


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II of ``size`` points, frequencies along rows, in float64."""
    m = torch.arange(size, device="cpu")
    k = m[:, None]
    # The angle is reduced while it is an integer, so that large sizes lose no digits.
    angle = ((2 * m + 1) * k).remainder_(4 * size).double()
    matrix = angle.mul_(math.pi / (2 * size)).cos_().mul_(math.sqrt(2 / size))
    matrix[0] /= math.sqrt(2)
    return matrix


def _band_sizes(ordered: Tensor, bands: int) -> list[int]:
    """Sizes of bands of about equal size that end where the frequency changes."""
    _, counts = ordered.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    expect(1 <= bands <= len(ends), "bands", f"1 to {len(ends)} (different frequencies)", bands)
    cuts, last = [0], -1
    for i in range(1, bands):
        nearest = int((ends * bands - i * len(ordered)).abs().argmin())
        last = min(max(nearest, last + 1), len(ends) - 1 - (bands - i))
        cuts.append(int(ends[last]))
    cuts.append(len(ordered))
    return [b - a for a, b in itertools.pairwise(cuts)]
