"""Degradations: maps from events to what is left of them, as conditions.

A degradation is a function of events ``(N, *event_shape)``, where integers are the centres of their
bins in ``[-1, 1]``; its values ``(N, *part_shape)`` are put back into bins. Factories of them are
plugins of the group ``degradations``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import frozen
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from scoresde.checks import expect, real, whole

_REACH = 4.0
"""Deviations at which a Gaussian ends, as SciPy's does: there is 6e-5 of it beyond."""

_GREY = (0.299, 0.587, 0.114)
"""Luma of red, green and blue, ITU-R BT.601, as images are read in ``mode="L"``."""


@frozen
class Whole:
    """Events as they are.

    Example:
        >>> import torch
        >>> from scoresde.data import Whole
        >>> Whole()(torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        return x


@frozen
class Downsample:
    """Images at ``1/factor`` of their resolution: means over squares.

    Args:
        factor: By which height and width are divided.

    Raises:
        ValueError: If it is no whole number above 1; on images whose sizes it does not divide.

    Example:
        >>> import torch
        >>> from scoresde.data import Downsample
        >>> Downsample(8)(torch.randn(5, 3, 64, 32)).shape
        torch.Size([5, 3, 8, 4])
    """

    example: ClassVar = {"factor": 2}
    factor: int

    def __attrs_post_init__(self) -> None:
        whole("factor", self.factor, 2)

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        _expect_images(x)
        divisible = x.shape[-1] % self.factor == 0 and x.shape[-2] % self.factor == 0
        expected = f"one that divides height and width, {tuple(x.shape[-2:])}"
        expect(divisible, "factor", expected, self.factor)
        return nn.functional.avg_pool2d(x, self.factor)


@frozen
class Blur:
    """Images out of focus: means by a Gaussian, beyond the edges of which pixels repeat.

    Args:
        width: Deviation of the Gaussian, in pixels.

    Raises:
        ValueError: If it is not positive.

    Example:
        >>> import torch
        >>> from scoresde.data import Blur
        >>> point = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
        >>> Blur()(point.reshape(1, 1, 1, 5)).flatten()
        tensor([0.0540, 0.2420, 0.3989, 0.2420, 0.0540])
    """

    width: float = 1.0

    def __attrs_post_init__(self) -> None:
        _expect_positive("width", self.width)

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        _expect_images(x)
        down, across = (self._matrix(size).to(x) for size in x.shape[-2:])
        return down @ x @ across.mT

    def _matrix(self, size: int) -> Tensor:
        """Weights of pixels of a line, ``(size, size)``."""
        reach = int(_REACH * self.width + 0.5)
        offsets = torch.arange(-reach, reach + 1, device="cpu")
        weights = torch.softmax(-((offsets.double() / self.width) ** 2) / 2, 0)
        places = torch.arange(size, device="cpu").unsqueeze(1) + offsets
        matrix = weights.new_zeros(size, size)
        return matrix.scatter_add_(1, places.clamp(0, size - 1), weights.expand(size, -1))


@frozen
class _Rectangle:
    """Rows and columns of images, from one to the one before another."""

    rows: Sequence[int] | None = None
    columns: Sequence[int] | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("rows", "columns"):
            _expect_range(name, getattr(self, name))


@frozen
class Crop(_Rectangle):
    """A rectangle of images.

    Args:
        rows: First row, and the one after the last; all if None.
        columns: First column, and the one after the last; all if None.

    Raises:
        ValueError: If a range is none; on images that do not have it.

    Example:
        >>> import torch
        >>> from scoresde.data import Crop
        >>> Crop(columns=[0, 4])(torch.randn(5, 1, 8, 8)).shape  # left halves
        torch.Size([5, 1, 8, 4])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        _expect_images(x)
        rows, columns = (
            _slice(name, getattr(self, name), size)
            for name, size in zip(("rows", "columns"), x.shape[-2:], strict=True)
        )
        return x[..., rows, columns]


@frozen
class Mask(_Rectangle):
    """Images with a hidden rectangle, which becomes grey, 0.

    By default the square in the middle with a quarter of the image, as for inpainting in the paper.

    Source:
        Batzolis et al. 2021, *Conditional Image Generation with Score-Based Diffusion Models*
        (arXiv 2111.13606), section 5.

    Args:
        rows: First hidden row, and the one after the last.
        columns: First hidden column, and the one after the last.

    Raises:
        ValueError: If a range is none; on images that do not have it.

    Example:
        >>> import torch
        >>> from scoresde.data import Mask
        >>> Mask()(torch.ones(1, 1, 4, 4)).flatten(0, 2)
        tensor([[1., 1., 1., 1.],
                [1., 0., 0., 1.],
                [1., 0., 0., 1.],
                [1., 1., 1., 1.]])
    """

    references = "batzolis2021"

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        _expect_images(x)
        rows, columns = (
            _slice(name, getattr(self, name) or [size // 4, size - size // 4], size)
            for name, size in zip(("rows", "columns"), x.shape[-2:], strict=True)
        )
        visible = x.clone()
        visible[..., rows, columns] = 0.0
        return visible


@frozen
class Edges:
    """Edges of images, in one channel: -1 where there are none, 1 where they are strong.

    The magnitude of the gradient of the image's luma, smoothed by a Gaussian.

    Args:
        width: Deviation of that Gaussian, in pixels.
        strong: Gradient, in shades of ``[-1, 1]`` per pixel, that becomes 1.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import torch
        >>> from scoresde.data import Edges
        >>> Edges()(torch.ones(1, 3, 8, 8)).unique()
        tensor([-1.])
    """

    width: float = 1.0
    strong: float = 0.5

    def __attrs_post_init__(self) -> None:
        for name in ("width", "strong"):
            _expect_positive(name, getattr(self, name))

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        _expect_images(x)
        luma = torch.tensor(_GREY, dtype=x.dtype) if x.shape[1] == 3 else x.new_ones(1)
        grey = torch.einsum("nchw,c->nhw", x, luma.to(x)).cpu().numpy()

        def along(axis: int) -> Any:
            """The derivative along an axis of what is smoothed along both."""
            smooth = gaussian_filter1d(grey, self.width, 3 - axis, mode="nearest")
            return gaussian_filter1d(smooth, self.width, axis, order=1, mode="nearest")

        edges = torch.from_numpy(np.hypot(along(1), along(2))).to(x).unsqueeze(1)
        return 2 * (edges / self.strong).clamp(max=1) - 1


def _expect_positive(name: str, value: float) -> None:
    real(name, value)
    expect(value > 0, name, "a positive number", value)


def _expect_images(x: Tensor) -> None:
    images = x.ndim == 4 and x.shape[1] in (1, 3)
    expect(images, "event_shape", "that of images, (1 | 3, height, width)", tuple(x.shape[1:]))


def _expect_range(name: str, value: Sequence[int] | None) -> None:
    if value is None:
        return
    good = isinstance(value, Sequence) and len(value) == 2
    good = good and all(isinstance(v, int) for v in value) and 0 <= value[0] < value[1]
    expect(good, name, "two whole numbers, the first and the one after the last", value)


def _slice(name: str, value: Sequence[int] | None, size: int) -> slice:
    if value is None:
        return slice(None)
    expect(value[1] <= size, name, f"at most {size}, the image's", value)
    return slice(*value)
