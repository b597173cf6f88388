"""How far generated samples are from real ones, in features of your choice.

A metric takes features, ``(N, d)`` for ``N`` events, and so is as good as they are: `pixels`, a
network's last hidden layer (`EfficientNetLite0`), or whatever else `extract` is given. What is
published as FID is the Frechet distance in the features of one Inception network; in any other it
is called after them. All compare as many real events as generated ones, and beside every value
belongs its *floor*: the same of real events against other real ones (`compare`).
"""

from scoresde.metrics.comparison import compare
from scoresde.metrics.distances import KernelDistance, frechet_distance, kernel_distance
from scoresde.metrics.efficientnet import EfficientNetLite0
from scoresde.metrics.features import NAMED, extract, named, pixels
from scoresde.metrics.neighbours import PrecisionAndRecall, precision_and_recall

__all__ = [
    "NAMED",
    "EfficientNetLite0",
    "KernelDistance",
    "PrecisionAndRecall",
    "compare",
    "extract",
    "frechet_distance",
    "kernel_distance",
    "named",
    "pixels",
    "precision_and_recall",
]
