"""The Haar pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from scoresde.bases.wavelet import Wavelet


class Haar(Wavelet):
    """The shortest of `Wavelet` pyramids, ``"db1"``: sums and differences of neighbours.

    One level maps every pair of neighbours ``(p, q)`` along an axis to its low pass and its
    detail; over two axes that is the orthonormal 2x2 block with entries +-1/2:

        (p + q) / sqrt(2),  (p - q) / sqrt(2)               signals
        low = (p + q + r + s) / 2   of the block [[p, q], [r, s]]
        details = (p - q + r - s) / 2,  (p + q - r - s) / 2,  (p - q - r + s) / 2

    Args:
        event_shape: See `Wavelet`.
        levels: Number of halvings.
        spatial: Number of spatial axes.

    Raises:
        ValueError: As `Wavelet`.

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
        super().__init__(event_shape, levels, "db1", spatial)

    def coarse(self, level: int) -> Haar:
        """See `Wavelet.coarse`."""
        self.expect_level(level)
        return Haar(self.shape(level), self.levels - level, len(self.axes))
