"""Real images."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
