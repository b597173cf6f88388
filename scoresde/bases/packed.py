"""Wavelet coefficients as an image of half the size."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.bases.basis import Basis
from scoresde.bases.wavelet import Wavelet


class Packed(Basis):
    """The coefficients of a `Wavelet` pyramid, with its finest level's bands as channels of events.

    An event has the low pass and the details of one level as channels, ``(4 C, H/2, W/2)`` of an
    image and ``(2 C, L/2)`` of signals; its coefficients are those of the pyramid. A network sees
    the same numbers at half the resolution, which is cheaper (Batzolis et al. 2022, section 5).

    Args:
        pyramid: Of one level at least.

    Raises:
        ValueError: If the pyramid has no level.

    Example:
        >>> from scoresde import Haar, Packed
        >>> Packed(Haar((3, 8, 8), levels=2)).event_shape
        torch.Size([12, 4, 4])
    """

    references = "batzolis2022"

    def __init__(self, pyramid: Wavelet) -> None:
        self._channels = pyramid.event_shape[: -len(pyramid.axes)].numel()
        space = pyramid.coarse(1).event_shape[-len(pyramid.axes) :]
        super().__init__((self._channels * 2 ** len(pyramid.axes), *space), pyramid.blocks)
        self.low = pyramid.coarse(1)

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        first = x.ndim - len(self.event_shape)
        low, details = x.tensor_split([self._channels], dim=first)
        low = low.reshape(*x.shape[:first], *self.low.event_shape)
        return torch.cat([self.low.analyse(low), details.flatten(first)], dim=-1)

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        low, details = z.tensor_split([self.low.dim], dim=-1)
        batch, (channels, *space) = z.shape[:-1], self.event_shape
        coarse = self.low.synthesise(low).reshape(*batch, self._channels, *space)
        rest = details.reshape(*batch, channels - self._channels, *space)
        return torch.cat([coarse, rest], -len(space) - 1)
