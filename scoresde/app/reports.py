"""Reports of ``scoresde evaluate``: densities of data, or quality of samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scoresde.app.evaluation import evaluate
from scoresde.app.export import is_image
from scoresde.app.facts import expect_events
from scoresde.app.model import Model
from scoresde.app.parts import data_like, data_of
from scoresde.app.quality import evaluate_samples, features_of
from scoresde.checks import expect
from scoresde.data import Dataset, split
from scoresde.internals.limits import expect_memory
from scoresde.likelihood import ExactTrace, Hutchinson
from scoresde.precision import device_of
from scoresde.solver import Solver


def density_report(
    model: Model,
    solver: Solver,
    source: str | Sequence[str] | None,
    *,
    count: int | None,
    hutchinson: int | None,
    seed: int,
    imports: bool = False,
) -> dict[str, Any]:
    """Log-densities of data under a model, see `scoresde.app.evaluation.evaluate`.

    Args:
        model: A trained one.
        solver: Integrates.
        source: Of other data, see `scoresde.app.parts.data_like`; the model's held-out part if
            None.
        count: How many events, all if None.
        hutchinson: Probes; the exact trace if None.
        seed: Of dequantisation and probes.
        imports: Whether import paths are allowed.

    Raises:
        ValueError: If the data are not like those of the training.
    """
    events = (
        data_of(model.settings, imports=imports)[1]
        if source is None
        else _read(model, source, imports)
    )
    _expect_alike(model, events)
    trace = ExactTrace() if hutchinson is None else Hutchinson(hutchinson)
    expect_memory("--hutchinson", 4 * (hutchinson or 0) * math.prod(model.facts["event_shape"]))
    generator = torch.Generator("cpu").manual_seed(seed)
    options: dict[str, Any] = {"given": model.given, "count": count, "generator": generator}
    return evaluate(model.estimator, events, solver, trace, **options, progress=True)


def sample_report(
    model: Model,
    solver: Solver,
    source: str | Sequence[str] | None,
    *,
    count: int | None,
    features: str | None,
    repeats: int | None,
    seed: int,
    imports: bool = False,
) -> dict[str, Any]:
    """Distances of samples from real events, see `scoresde.app.quality.evaluate_samples`.

    The floor is of the training's events against those held out, or of the halves of other data.

    Args:
        model: A trained one.
        solver: Samples.
        source: Of other data; the model's own if None.
        count: How many events; as many as there are if None.
        features: Their name, or an import path; by default EfficientNet-Lite0's of images, and of
            other events the numbers themselves.
        repeats: How often to sample, once if None.
        seed: Of the samples.
        imports: Whether import paths are allowed.

    Raises:
        ImportError: If a library is missing.
        ValueError: If the data are not like those of the training, or there are too few.
    """
    if source is None:
        others, events = data_of(model.settings, imports=imports)
    else:
        events, others = split(_read(model, source, imports), 0.5)
    _expect_alike(model, events)
    parts: dict[str, Any] = model.facts.get("parts") or {"": model.facts["event_shape"]}
    shapes = [shape for name, shape in parts.items() if name not in model.given]
    default = "efficientnet-lite0" if len(shapes) == 1 and is_image(shapes[0]) else "pixels"
    function, where = features_of(features or default, imports=imports), device_of(model.estimator)
    if isinstance(function, nn.Module):
        function.to(where)
    generator = torch.Generator(where).manual_seed(seed)
    options: dict[str, Any] = {"given": model.given, "count": count, "generator": generator}
    options |= {"repeats": repeats or 1, "progress": True}
    report = evaluate_samples(model.estimator, events, others, solver, function, **options)
    return {"features": features or default, **report}


def _read(model: Model, source: str | Sequence[str], imports: bool) -> Dataset:
    return data_like(model.settings, source, model.facts, imports=imports)


def _expect_alike(model: Model, events: Dataset) -> None:
    """Raises ``ValueError`` for events of another kind than the model was trained on."""
    bins = model.facts["bins"], events.bins
    expected, got = (f"{n} bins" if n else "real numbers" for n in bins)
    expect(expected == got, "data", f"{expected}, as trained on", got)
    expect_events(events, model.facts, "as trained on")


def as_json(report: Mapping[str, Any]) -> str:
    """A report as JSON, with null for numbers that are not finite."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in report.items()
    }
    return json.dumps(finite, indent=2, allow_nan=False)


def as_lines(report: Mapping[str, Any]) -> str:
    """A line for every entry that is known, with numbers to six digits."""
    known = {key: value for key, value in report.items() if value == value}  # NaN is not itself
    real = {key: f"{value:.6g}" for key, value in known.items() if isinstance(value, float)}
    return "\n".join(f"{key}: {value}" for key, value in {**known, **real}.items())
