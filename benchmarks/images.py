"""Real images, and a network that knows them."""

from __future__ import annotations

import contextlib
import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

FASHION = Path("/usr/share/datasets/fashion-mnist")


def fashion(folder: Path = FASHION) -> dict[str, tuple[Tensor, Tensor]]:
    """Fashion-MNIST, grey and padded to 32x32, as the Debian package ``dataset-fashion-mnist``.

    Args:
        folder: Where the four ``*-ubyte.gz`` files are.

    Returns:
        ``{"train" | "test": (images (N, 1, 32, 32) uint8, labels (N,))}``.

    Raises:
        FileNotFoundError: If they are not there.
    """
    loaded = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        images = _ubyte(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
        labels = _ubyte(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
        loaded[name] = (nn.functional.pad(images, (2, 2, 2, 2)), labels.long())
    return loaded


def _ubyte(path: Path, header: int) -> Tensor:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found; install Debian's dataset-fashion-mnist, or download the four "
            "files of github.com/zalandoresearch/fashion-mnist and give their folder as --data"
        )
    with gzip.open(path) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())


def grey_patches(source: Path, size: int, count: int = 12_000) -> Tensor:
    """Grey patches of the images in a folder or a zip file, in [-1, 1], float64.

    Args:
        source: The folder, or the file.
        size: Side of a patch; images are cut into patches that do not overlap.
        count: How many at most, of the first images by name.

    Raises:
        FileNotFoundError: If there is nothing there.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: not found; give a folder or a zip file of images")
    loaded: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        root: Any = source
        if source.is_file():
            root = zipfile.Path(stack.enter_context(zipfile.ZipFile(source)))
        files = [path for path in _walk(root) if path.name.lower().endswith((".jpg", ".png"))]
        for path in sorted(files, key=str):
            with path.open("rb") as file:
                image = torch.from_numpy(np.array(Image.open(file).convert("L")))
            tiles = image.unfold(0, size, size).unfold(1, size, size).reshape(-1, 1, size, size)
            loaded.append(tiles)
            if sum(map(len, loaded)) >= count:
                break
    return torch.cat(loaded)[:count].double() / 127.5 - 1


def _walk(root: Any) -> Iterator[Any]:
    for path in root.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


class Classifier(nn.Module):
    """A small convolutional classifier, whose last hidden layer measures images.

    Args:
        classes: Number of labels.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] to logits."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def fit(self, images: Tensor, labels: Tensor, epochs: int = 3, seed: int = 0) -> None:
        """Trains on images in [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(self(images[rows]), labels[rows]).backward()
                optimizer.step()
        self.eval()
