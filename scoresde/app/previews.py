"""Samples during training, drawn by the model's own solver."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from scoresde.app import plots
from scoresde.app.export import Export
from scoresde.conditioning import condition
from scoresde.data import Dataset
from scoresde.data.events import events
from scoresde.data.parts import part_slices
from scoresde.estimator import ScoreEstimator
from scoresde.precision import device_of
from scoresde.solver import Solver
from scoresde.training import OnMeasure
from scoresde.training.distributed import Processes

_COUNT, _ROWS = 64, 8
"""Samples of a picture; where parts of events are given, of so many events in equal numbers."""

_MOST_CLASSES = 16
"""Rows of a picture, a class in each, and samples in a row, at most."""


class Previewed(Protocol):
    """The attributes of a `scoresde.app.model.Model` that previews use."""

    solver: Solver
    facts: dict[str, Any]

    @property
    def export(self) -> Export:
        """Writes its samples."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the parts that it is given."""


def previews(
    model: Previewed, folder: str | Path, processes: Processes, train: Dataset, held_out: Dataset
) -> OnMeasure:
    """Pictures of a model's samples, by its own solver, one at every measurement.

    Of a model that is given parts of events, samples of the others are drawn beside the first
    held-out events. Other events with parts are drawn with their parts side by side. Of labels, the
    first 16 have a row each, with its name.

    Args:
        model: The one that is trained.
        folder: Created if it is missing.
        processes: Of which the first draws.
        train: Conditions of the samples.
        held_out: Parts that are given.

    Raises:
        ValueError: If samples are no images.
    """
    parts, draws = model.facts.get("parts"), processes.is_main_process
    conditions, options = train.pairs(slice(_COUNT)).condition, dict[str, Any]()
    if train.classes is not None and not model.given:
        names = train.classes[:_MOST_CLASSES]
        each = min(_COUNT // len(names), _MOST_CLASSES)
        conditions = torch.arange(len(names), device="cpu").repeat_interleave(each)
        options["names"] = names
    export = model.export
    if parts is not None:
        rest = [tuple(shape) for name, shape in parts.items() if name not in model.given]
        for shape in rest:
            attrs.evolve(export, event_shape=shape).expect_images("pictures")
        export = attrs.evolve(export, event_shape=rest[0])
        if model.given:
            options = _given(parts, model.given, held_out)
        else:
            options = {"figure": partial(_side_by_side, parts)}
    if conditions is not None and not model.given:
        options |= {"condition": conditions, "count": len(conditions)}
    elif conditions is not None:
        rows = torch.arange(options["count"], device="cpu") % len(conditions)
        options["condition"] = conditions[rows]
    Path(folder).mkdir(parents=True, exist_ok=True)
    export.writer(Path(folder, "0.png"), "pictures")
    return plots.Pictures(Path(folder), model.solver, draws=draws, **options)


def _given(parts: dict[str, Any], given: tuple[str, ...], data: Dataset) -> dict[str, Any]:
    """Arguments of pictures of samples beside given parts of the first events."""
    rows, slices = min(_ROWS, len(data)), part_slices(parts)
    x = events(data, torch.Generator("cpu").manual_seed(0), torch.arange(rows, device="cpu"))
    known = {name: x[:, slices[name]].unflatten(1, tuple(parts[name])) for name in given}
    each = _COUNT // rows
    repeated = {name: value.repeat_interleave(each, 0) for name, value in known.items()}

    def sampled(estimator: ScoreEstimator) -> ScoreEstimator:
        where = device_of(estimator)
        observed = {name: value.to(where) for name, value in repeated.items()}
        return condition(estimator, clean=False, **observed)

    figure = partial(plots.comparison, known, count=each)
    return {"sampled": sampled, "count": rows * each, "figure": figure}


def _side_by_side(parts: dict[str, Any], x: Tensor) -> Any:
    slices = part_slices(parts)
    split = {name: x[:, slices[name]].unflatten(1, tuple(parts[name])) for name in parts}
    return plots.image_grid(split)
