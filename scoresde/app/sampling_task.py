"""What ``scoresde sample`` draws: samples of a model, or of some parts given others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.app import config, plots
from scoresde.app.conditions import SampleConditions
from scoresde.app.export import Export
from scoresde.app.given import expect_bins, read_given
from scoresde.app.model import Model
from scoresde.app.parts import data_like
from scoresde.app.restoration import Restoration
from scoresde.bases import Basis, Identity
from scoresde.checks import expect
from scoresde.conditioning import condition
from scoresde.data.events import events
from scoresde.data.parts import part_slices
from scoresde.estimator import ScoreEstimator
from scoresde.internals.limits import expect_memory
from scoresde.internals.messages import nearest
from scoresde.precision import device_of
from scoresde.sdes.fronts import front, in_order, patches


@attrs.frozen(eq=False)
class ObservedParts:
    """Parts of events that are known, and the model of the others.

    Args:
        model: Trained on events with parts.
        parts: Events of the parts that are known, ``(N, *part_shape)`` each.

    Raises:
        ValueError: If parts are unknown, or differ in number; see `scoresde.condition`.

    Example:
        >>> import torch
        >>> from scoresde.app.model import Model
        >>> from scoresde.app.sampling_task import ObservedParts
        >>> left, right = ({"name": "crop", "columns": [k, k + 4]} for k in (0, 4))
        >>> settings = {
        ...     "data": {"source": "digits", "parts": {"y": left, "x": right}},
        ...     "sde": {"name": "diagonal", "schedule": "ve", "basis": "joint"},
        ...     "estimator": {"name": "cmde", "networks": "residual-mlp", "noise": 0.5},
        ...     "solver": {"name": "ddim", "steps": 4, "eta": 1.0},
        ...     "training": {"steps": 2},
        ... }
        >>> model = Model.train(settings, progress=False)
        >>> known = ObservedParts(model, {"y": torch.zeros(3, 1, 8, 4)})
        >>> model.solver.sample(known.estimator(5), (15,)).shape
        torch.Size([15, 1, 8, 4])
    """

    model: Model
    parts: Mapping[str, Tensor]

    def __attrs_post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.parts.items()}
        alike = len(set(counts.values())) == 1
        expect(alike, "--given", "as many events of every part that is given", counts)

    @classmethod
    def read(cls, model: Model, paths: Sequence[str], generator: torch.Generator) -> ObservedParts:
        """From files or folders.

        Args:
            model: See the class.
            paths: ``part=path`` each; a path alone if the model is given a single part.
            generator: Of the dequantisation.

        Raises:
            OSError: If there is no such file.
            ValueError: If the model has no parts, a part is unknown, missing or twice there, or
                events are not as those that the model knows.
        """
        shapes = model.facts.get("parts")
        wanted = "a model of events with parts ([data.parts]), or an --estimator around it"
        expect(shapes is not None, "--given", wanted, paths)
        assert shapes is not None
        named = [_named(path, shapes, model.given) for path in paths]
        for name in model.given:
            hint = "(or --data, whole events)"
            expect(name in dict(named), "--given", f"a file of the part {name!r} {hint}", "none")
        twice = len(dict(named)) < len(named)
        expect(not twice, "--given", "a file for each part", [name for name, _ in named])
        device = next(model.estimator.parameters()).device
        read = {name: _events(model, name, path, generator).to(device) for name, path in named}
        return cls(model, read)

    @classmethod
    def of_whole(
        cls,
        model: Model,
        given_paths: Sequence[str],
        generator: torch.Generator,
        imports: bool = False,
    ) -> ObservedParts:
        """The parts of whole events, made of them as for training.

        Args:
            model: See the class.
            given_paths: See `scoresde.app.parts.data_like`.
            generator: Of the dequantisation.
            imports: Whether degradations may be import paths.

        Raises:
            OSError: If there is nothing.
            ValueError: If the model is given nothing, or events are not as those that it knows.
        """
        expect(
            bool(model.given), "--data", "a model that is given a part of its events", given_paths
        )
        data = data_like(model.settings, given_paths, model.facts, imports=imports)
        shapes, where = model.facts["parts"], ", ".join(given_paths)
        got = {name: [*shape] for name, shape in (data.parts or {}).items()}
        expect(got == shapes, "--data", f"parts {shapes}, as trained on", f"{got} in {where}")
        expect_bins("--data", model, data, where)
        x = events(data, generator).to(device_of(model.estimator))
        return cls(model, _parts(x, shapes, model.given))

    @property
    def size(self) -> int:
        """Number of given events."""
        return len(next(iter(self.parts.values())))

    def estimator(self, count: int = 1) -> ScoreEstimator:
        """The estimator of the other parts, ``count`` times for each given event in turn."""
        repeated = {name: value.repeat_interleave(count, 0) for name, value in self.parts.items()}
        return condition(self.model.estimator, clean=False, **repeated)

    def export(self, count: int) -> Export:
        """Writes samples of the other parts as the data were, in pictures beside what is given."""
        facts = self.model.facts
        whole, slices = self.model.export, part_slices(facts["parts"])
        rest = [name for name in slices if name not in self.parts]
        columns = facts.get("columns")
        if columns is not None:
            columns = [column for name in rest for column in columns[slices[name]]]
        shapes = [tuple(facts["parts"][name]) for name in rest]
        flat = (sum(map(math.prod, shapes)),)
        figure = partial(plots.comparison, self.parts, count=count)
        return attrs.evolve(
            whole, event_shape=shapes[0] if len(rest) == 1 else flat, columns=columns, figure=figure
        )


@attrs.frozen(eq=False)
class SamplingTask:
    """A request for samples.

    Attributes:
        estimator: To sample from.
        count: How many in all.
        condition: Of each, on its device, if there is any.
        export: What writes them.
        message: What to tell the user, if anything.
    """

    estimator: ScoreEstimator
    count: int
    condition: Tensor | None
    export: Export
    message: str | None


def sampling_task(
    model: Model,
    count: int,
    seed: int,
    given: Sequence[str] = (),
    data: Sequence[str] = (),
    estimator: str | None = None,
    labels: Sequence[str] = (),
    condition: str | None = None,
    order: str | None = None,
    overlap: float | None = None,
    imports: bool = False,
) -> SamplingTask:
    """The request of the options of ``scoresde sample``.

    Args:
        model: A trained one.
        count: Samples, of each event that is given.
        seed: Of the dequantisation of those, and of labels that are drawn.
        given: Parts of events, see `ObservedParts.read`.
        data: Whole events instead, see `ObservedParts.of_whole`.
        estimator: One around the model's, see `scoresde.app.restoration.Restoration.read`.
        labels: Classes, see `scoresde.app.conditions.SampleConditions`.
        condition: A file, see there.
        order: Names of blocks that are drawn first, with commas between them; or the shape of
            patches, ``1x8x8``.
        overlap: See `scoresde.sdes.fronts.front`.
        imports: Whether degradations may be import paths.

    Raises:
        ValueError: If the model needs something that is not given; see `ObservedParts.read`.
    """
    known, total, export = None, count, model.export
    if given or data or model.given or estimator is not None:
        generator = torch.Generator("cpu").manual_seed(seed)
        expect(not (given and data), "--data", "none beside --given", list(data))
        known = _known(model, given, data, estimator, generator, imports)
        total, export = count * known.size, known.export(count)
    expect_memory("--count", 4 * total * math.prod(export.event_shape))
    conditions = SampleConditions.of(model.settings, model.facts, labels, condition, count, seed)
    conditions = conditions.repeated(total // count)
    drawn = _along(model.estimator if known is None else known.estimator(count), order, overlap)
    classes, extra = conditions.classes, conditions.extra_columns
    export = attrs.evolve(export, classes=classes, extra_columns=extra)
    rows = conditions.condition
    rows = None if rows is None else rows.to(device_of(model.estimator))
    return SamplingTask(drawn, total, rows, export, conditions.message)


def _known(
    model: Model,
    given: Sequence[str],
    data: Sequence[str],
    estimator: str | None,
    generator: torch.Generator,
    imports: bool,
) -> ObservedParts | Restoration:
    """What samples are given."""
    if estimator is not None:
        return Restoration.read(model, estimator, given, data, generator, imports)
    if data:
        return ObservedParts.of_whole(model, data, generator, imports)
    return ObservedParts.read(model, given, generator)


def _along(estimator: ScoreEstimator, order: str | None, overlap: float | None) -> ScoreEstimator:
    """The estimator on the clock of an order, if one is given."""
    if order is None:
        expect(overlap is None, "--overlap", "an --order beside it", overlap)
        return estimator
    sde, names = estimator.sde, [name.strip() for name in order.split(",")]
    if order not in sde.basis.blocks.sizes and re.fullmatch(r"\d+(x\d+)*", order):
        ranks = patches(sde.basis.event_shape, _patch_shape(order, sde.basis))
    else:
        ranks = in_order(sde.basis.blocks, names)
    return estimator.with_clock(front(ranks, overlap or 0.0, sde.eps / sde.T))


def _patch_shape(text: str, basis: Basis) -> list[int]:
    """Sizes ``1x8x8`` of patches of an event whose components are its numbers."""
    expect(isinstance(basis, Identity), "--order", "blocks, as components are no pixels", text)
    shape, event = [int(size) for size in text.split("x")], "x".join(map(str, basis.event_shape))
    fits = len(shape) == len(basis.event_shape) and min(shape) > 0
    expect(fits, "--order", f"patches of events {event}, with as many sizes", text)
    return shape


def _parts(
    x: Tensor, shapes: Mapping[str, Sequence[int]], names: Sequence[str]
) -> dict[str, Tensor]:
    """Some parts of joint events."""
    slices = part_slices(shapes)
    return {name: x[:, slices[name]].unflatten(1, tuple(shapes[name])) for name in names}


def _named(text: str, shapes: Mapping[str, Any], given: Sequence[str]) -> tuple[str, str]:
    """The part, and the path, of ``part=path``."""
    name, sign, path = text.partition("=")
    if sign and name in shapes:
        return name, path
    if len(given) == 1 and not (sign and not Path(text).exists()):
        return given[0], text
    hint = nearest(name, shapes) if sign else ""
    expected = f"part=path with one of the parts {', '.join(shapes)}{hint}"
    expect(False, "--given", expected, text)
    raise AssertionError


def _events(model: Model, name: str, path: str, generator: torch.Generator) -> Tensor:
    """Events of a part, read as the model's data were."""
    shapes, columns = model.facts["parts"], model.facts.get("columns")
    own = config.section(model.settings, "data").get("parts", {}).get(name)
    options = own if isinstance(own, Mapping) and "source" in own else None
    named = columns and columns[part_slices(shapes)[name]]
    what = f" of {name!r}, as trained on"
    return events(read_given(model, path, shapes[name], what, options, named), generator)
