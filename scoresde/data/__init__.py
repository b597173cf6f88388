"""Data sets: a user's arrays, tables and images, or a built-in one, checked on the way in.

A data set is ``(N, *event_shape)``: floating-point numbers, or integers of ``0..bins-1``. It is
in memory, or stays on the disk and is read as it is needed (``lazy=True``, `LazyArray`).
"""

from typing import TYPE_CHECKING

from scoresde.data.arrays import read_array
from scoresde.data.dataset import Dataset, split
from scoresde.data.lazy_array import LazyArray, concatenated
from scoresde.data.parquet import read_parquet
from scoresde.data.parts import degraded, joined, select_columns
from scoresde.data.quantization import bits_per_dim, dequantize, quantize
from scoresde.data.text import read_csv
from scoresde.internals.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from scoresde.data.builtin import BUILT_IN, digits, patches
    from scoresde.data.degradations import Blur, Crop, Downsample, Edges, Mask, Whole
    from scoresde.data.images import read_images
    from scoresde.data.loading import load, reader
    from scoresde.data.pillow import image_items
else:  # images stand on Pillow and SciPy, which an SDE, an estimator or a solver has no use for
    __getattr__ = lazy_imports(
        __name__,
        {
            "BUILT_IN": "scoresde.data.builtin",
            "digits": "scoresde.data.builtin",
            "patches": "scoresde.data.builtin",
            **dict.fromkeys(
                ("Blur", "Crop", "Downsample", "Edges", "Mask", "Whole"),
                "scoresde.data.degradations",
            ),
            "image_items": "scoresde.data.pillow",
            "read_images": "scoresde.data.images",
            "load": "scoresde.data.loading",
            "reader": "scoresde.data.loading",
        },
    )

__all__ = [
    "BUILT_IN",
    "Blur",
    "Crop",
    "Dataset",
    "Downsample",
    "Edges",
    "LazyArray",
    "Mask",
    "Whole",
    "bits_per_dim",
    "concatenated",
    "degraded",
    "dequantize",
    "digits",
    "image_items",
    "joined",
    "load",
    "patches",
    "quantize",
    "read_array",
    "read_csv",
    "read_images",
    "read_parquet",
    "reader",
    "select_columns",
    "split",
]
