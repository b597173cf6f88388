"""Built-in sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from scoresde.checks import choice, whole
from scoresde.data.dataset import Dataset


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        message = "built-in data need scikit-learn: pip install 'scoresde[data]'"
        raise ImportError(message) from error
    return datasets


def digits(*, labels: bool = False) -> Dataset:
    """Handwritten digits of scikit-learn: ``(1797, 1, 8, 8)``, 17 bins.

    Args:
        labels: Whether each is conditioned on which digit it is.

    Example:
        >>> from scoresde.data import digits
        >>> digits().values.shape
        torch.Size([1797, 1, 8, 8])
        >>> digits(labels=True).condition[:4]
        tensor([0, 1, 2, 3])
    """
    choice("labels", labels, False, True)
    loaded = _sklearn_datasets().load_digits()
    options: dict[str, Any] = {}
    if labels:
        options = {"condition": torch.from_numpy(loaded.target)}
        options["classes"] = tuple(map(str, range(10)))
    values = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    return Dataset("digits", values, bins=17, **options)


def patches(
    size: int = 32,
    *,
    stride: int | None = None,
    seed: int = 0,
    flip: bool = False,
    crop: int | Sequence[int] | None = None,
) -> Dataset:
    """Grey patches of the two photographs of scikit-learn, in random order.

    Args:
        size: Width and height of a patch.
        stride: Distance between neighbours. By default ``size``: patches are disjoint, so that a
            `scoresde.data.split` shares no pixels. Smaller strides give more patches, which
            overlap.
        seed: Seed of the order, and of where the grid of patches starts.
        flip: Whether training mirrors them left to right, see `Dataset`.
        crop: Size of the windows in them that are the events, see there.

    Returns:
        ``(N, 1, size, size)``, 256 bins.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If a patch is larger than the smaller photograph, or ``stride`` not positive.

    Example:
        >>> from scoresde.data import patches
        >>> patches(size=64).values.shape
        torch.Size([108, 1, 64, 64])
    """
    photographs = _sklearn_datasets().load_sample_images().images
    images = [np.asarray(Image.fromarray(rgb).convert("L")) for rgb in photographs]
    smallest = min(min(image.shape) for image in images)
    whole("size", size, 1, smallest)
    stride = size if stride is None else stride
    whole("stride", stride, 1)
    whole("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    tiles = []
    for image in images:
        offsets = torch.tensor(image.shape, device="cpu") - size + 1
        start = torch.rand(2, generator=generator, device="cpu") * offsets.clamp(max=stride)
        top, left = start.int().tolist()
        grid = (
            torch.tensor(image, device="cpu")[top:, left:]
            .unfold(0, size, stride)
            .unfold(1, size, stride)
        )
        tiles.append(grid.reshape(-1, 1, size, size))
    values = torch.cat(tiles)
    order = torch.randperm(len(values), generator=generator, device="cpu")
    return Dataset("patches", values[order], bins=256, flip=flip, crop=crop)


BUILT_IN: dict[str, Callable[..., Dataset]] = {"digits": digits, "patches": patches}
