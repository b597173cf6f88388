"""How far generated samples are from real ones, in features of your choice.

A metric takes features, ``(N, d)`` for ``N`` events, and so is as good as they are: `pixels`, a
network's last hidden layer (`EfficientNetLite0`), or whatever else `extract` is given. What is
published as FID is the Frechet distance in the features of one Inception network; in any other it
is called after them. All compare as many real events as generated ones, and beside every value
belongs its *floor*: the same of real events against other real ones (`compare`).

Posteriors are measured against the parameters that observations were simulated with
(`scoresde.metrics.calibration`).
"""

from scoresde.metrics.calibration import (
    LocalTest,
    expected_coverage,
    local_c2st,
    ranks,
    tarp,
    uniformity,
)
from scoresde.metrics.comparison import compare
from scoresde.metrics.distances import KernelDistance, frechet_distance, kernel_distance
from scoresde.metrics.efficientnet import EfficientNetLite0
from scoresde.metrics.features import NAMED, extract, feature_function, pixels
from scoresde.metrics.neighbours import PrecisionAndRecall, precision_and_recall

__all__ = [
    "NAMED",
    "EfficientNetLite0",
    "KernelDistance",
    "LocalTest",
    "PrecisionAndRecall",
    "compare",
    "expected_coverage",
    "extract",
    "feature_function",
    "frechet_distance",
    "kernel_distance",
    "local_c2st",
    "pixels",
    "precision_and_recall",
    "ranks",
    "tarp",
    "uniformity",
]
