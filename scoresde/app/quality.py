"""Quality of a model's samples: how far they are from held-out events, beside other real ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde import plugins
from scoresde.checks import expect, whole
from scoresde.conditioning import split_events
from scoresde.data import Dataset, quantize
from scoresde.data.events import as_dataset, as_numbers
from scoresde.estimator import ScoreEstimator
from scoresde.internals.limits import chunk_size
from scoresde.metrics import compare, extract, feature_function
from scoresde.metrics.comparison import Comparison
from scoresde.metrics.features import Features
from scoresde.precision import device_of
from scoresde.solver import Solver

_Asked = tuple[ScoreEstimator, int, Tensor | None]

_FEWEST = 4
"""Events that all metrics take."""


def features_of(name: str, *, imports: bool = False) -> Features:
    """Features by name, or from an import path.

    Args:
        name: One of `scoresde.metrics.features.NAMED`, or ``"package.module:attribute"``: a
            function of events, or a class of such that needs no arguments.
        imports: Whether import paths are allowed.

    Raises:
        ImportError: If a library is missing.
        PluginError: If the import fails.
        TypeError: If nothing that can be called is there.
        UnknownPlugin: If it is an import path and none is allowed.
        ValueError: If there are none of that name.

    Example:
        >>> from scoresde.app.quality import features_of
        >>> features_of("scoresde.metrics:pixels", imports=True).__name__
        'pixels'
    """
    if ":" not in name:
        return feature_function(name)
    own = plugins.by_path("features", name, imports=imports)
    made: Any = own() if isinstance(own, type) else own
    if not callable(made):
        raise TypeError(f"features: expected a function of events, got {made!r} at {name}")
    features: Features = made
    return features


def evaluate_samples(
    estimator: ScoreEstimator,
    data: Any,
    others: Any,
    solver: Solver,
    features: Features,
    *,
    given: Sequence[str] = (),
    count: int | None = None,
    repeats: int = 1,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Metrics of samples against real events, and of other real events in their place: the floor.

    All sets are of one size. Samples of a model of integers are rounded to them; conditions are
    those of the real events.

    Args:
        estimator: Knows the score.
        data: Real events, held out: what `scoresde.data.events.as_dataset` takes.
        others: Others like them, for the floor.
        solver: Samples.
        features: What is compared, see `scoresde.metrics.extract`.
        given: Parts of events with parts: the others are compared, sampled given these.
        count: How many events, the first ones; as many as there are of both if None.
        repeats: How often to sample: metrics are means, with standard errors if there are several.
        batch_size: Of events whose features are computed at a time.
        generator: Of the samples.
        progress: Whether to show progress bars.

    Returns:
        ``data``, ``count``, ``repeats``; ``frechet``, ``kernel``, ``precision`` and ``recall``
        (`scoresde.metrics.compare`), each with ``_stderr`` over the repetitions, NaN of one, and
        ``_floor``.

    Raises:
        ValueError: If there are fewer events than ``count``, or than 4, or features do not fit.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.app.quality import evaluate_samples
        >>> from scoresde.metrics import pixels
        >>> from solvers import DDIM
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> real, others = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> report = evaluate_samples(model, real, others, DDIM(20), pixels)
        >>> report["count"], report["frechet"] < 0.2
        (200, True)
    """
    whole("repeats", repeats, 1)
    data, others = as_dataset("data", data), as_dataset("others", others)
    count = _count(count, min(len(data), len(others)))
    where, size = device_of(estimator), chunk_size(data.values.shape[1:])
    batches = torch.arange(count, device="cpu").split(size)

    def seen(x: Tensor) -> Tensor:
        """Features of events as pictures would show them."""
        shown = x if data.bins is None else _shades(quantize(x, data.bins), data.bins)
        return extract(features, shown, batch_size=batch_size, device=where, progress=progress)

    def read(source: Dataset) -> tuple[list[_Asked], Tensor]:
        """Requests for samples like every batch, and features of the batches."""
        requests, parts = [], []
        for rows in batches:
            values, conditions = source.pairs(rows)
            x = as_numbers(values, source.bins, generator).to(where)
            model, x = split_events(estimator, given, x)
            requests.append((model, len(x), None if conditions is None else conditions.to(where)))
            parts.append(seen(x))
        return requests, torch.cat(parts)

    (requests, real), (_, other) = read(data), read(others)
    options: dict[str, Any] = {"generator": generator, "progress": progress}
    results = []
    for _ in range(repeats):
        drawn = (solver.sample(m, (n,), condition=c, **options) for m, n, c in requests)
        results.append(compare(real, torch.cat([*map(seen, drawn)])))
    return {"data": data.name, "count": count, "repeats": repeats, **_summary(results, real, other)}


def _count(count: int | None, most: int) -> int:
    count = most if count is None else count
    whole("count", count, _FEWEST)
    expect(count <= most, "count", f"at most {most}, of which there are other real events", count)
    return count


def _shades(values: Tensor, bins: int) -> Tensor:
    """Integers as a picture shows them: the lowest bin is black, the highest white."""
    return 2 * values.to(torch.get_default_dtype()) / (bins - 1) - 1


def _summary(results: Sequence[Comparison], real: Tensor, other: Tensor) -> dict[str, float]:
    summary, floor = dict[str, float](), compare(real, other)
    for metric in ("frechet", "kernel", "precision", "recall"):
        values = [float(getattr(each, metric)) for each in results]
        summary[metric] = statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        summary[f"{metric}_stderr"] = deviation / len(values) ** 0.5
        summary[f"{metric}_floor"] = getattr(floor, metric)
    return summary
