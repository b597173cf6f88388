"""Restoration of what an operator, and noise, have left of events, by a model of events alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.app import config, plots
from scoresde.app.export import Export
from scoresde.app.factories import ConfigError
from scoresde.app.facts import supplied_arguments
from scoresde.app.given import expect_bins, read_given
from scoresde.app.model import Model
from scoresde.app.parts import data_like
from scoresde.checks import expect
from scoresde.data import Dataset
from scoresde.data.quantization import bin_centres
from scoresde.estimator import ScoreEstimator
from scoresde.precision import device_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_KEY = "--estimator"


@attrs.frozen(eq=False)
class Restoration:
    """What is left of events, and the estimator that knows how.

    Attributes:
        model: Of whole events.
        table: Of an estimator around the model's, with arguments ``operator``, ``y`` and ``noise``,
            as of a configuration's section.
        y: What is left, ``(N, *shape)``.
        imports: Whether names in the table may be import paths.

    Example:
        >>> import torch
        >>> from scoresde.app.model import Model
        >>> from scoresde.app.restoration import Restoration
        >>> settings = {
        ...     "data": {"source": "digits"},
        ...     "sde": {"name": "diagonal", "schedule": "cosine", "basis": "identity"},
        ...     "estimator": {"name": "denoising", "network": "residual-mlp"},
        ...     "solver": {"name": "ddim", "steps": 4},
        ...     "training": {"steps": 2},
        ... }
        >>> model = Model.train(settings, progress=False)
        >>> table = {"name": "guided", "operator": "mask", "noise": 0.1}
        >>> known = Restoration(model, table, torch.zeros(3, 1, 8, 8))
        >>> model.solver.sample(known.estimator(2), (6,)).shape
        torch.Size([6, 1, 8, 8])
    """

    model: Model
    table: Mapping[str, Any]
    y: Tensor
    imports: bool = False

    @classmethod
    def read(
        cls,
        model: Model,
        text: str,
        given: Sequence[str],
        data: Sequence[str],
        generator: torch.Generator,
        imports: bool = False,
    ) -> Restoration:
        """From files or folders.

        Args:
            model: See the class.
            text: The table, ``{ name = "...", operator = "mask", noise = 0.1 }``, or a TOML file
                that holds its entries.
            given: The path of what is left; or else
            data: that of whole events, of which that is made.
            generator: Of the noise of the latter.
            imports: See the class.

        Raises:
            ConfigError: If the table is none, or something in it is wrong.
            OSError: If there is no such file.
            ValueError: If events are not as those that the model knows.
        """
        whole_events = model.facts.get("parts") is None
        expect(whole_events, _KEY, "a model of whole events (--given is enough)", "one of parts")
        expect(len(given) + len(data) == 1, _KEY, "one --given, or --data, beside it", "none")
        table = _table(text)
        operator = _operator(table, imports)
        table = {**table, "operator": operator}
        if given:
            event = torch.zeros(1, *model.facts["event_shape"], device="cpu")
            left = operator(event).shape[1:]
            y = _numbers(read_given(model, given[0], left, ", as the operator leaves"))
        else:
            section = config.section(model.settings, "data")
            alone = {k: v for k, v in section.items() if k not in ("labels", "condition")}
            # images of classes, whose labels are asked for otherwise, or of none
            settings = {**model.settings, "data": {**alone, "subfolders": True}}
            events = data_like(settings, data, model.facts, imports=imports)
            expect_bins("--data", model, events, data[0])
            y = operator(_numbers(events))
            std = table.get("noise", 0.0)
            if isinstance(std, (int, float)):
                y = y + std * torch.randn(y.shape, generator=generator, device="cpu")
        return cls(model, table, y, imports)

    @property
    def size(self) -> int:
        """Number of events that are restored."""
        return len(self.y)

    def estimator(self, count: int = 1) -> ScoreEstimator:
        """The estimator of events given what is left, ``count`` times for each in turn."""
        where = device_of(self.model.estimator)
        y = self.y.to(where).repeat_interleave(count, 0)
        table = {**self.table, "estimator": self.model.estimator, "y": y}
        supplied = supplied_arguments(self.model.facts)
        built: ScoreEstimator = config.build(table, "estimator", supplied, imports=self.imports)
        return built.to(where).eval()

    def export(self, count: int) -> Export:
        """Writes samples as the data were, in pictures beside what is left."""
        figure = partial(plots.comparison, {"y": self.y}, count=count)
        return attrs.evolve(self.model.export, figure=figure)


def _table(text: str) -> dict[str, Any]:
    """A table as it stands in a file, or a file of it."""
    if text.lower().endswith(".toml"):
        return config.read(text)
    try:
        table = tomllib.loads(f"table = {text}")["table"]
    except ValueError as error:
        wanted = 'a table, { name = "..." }, or a .toml file'
        raise ConfigError(f"{_KEY}: expected {wanted}, got {text!r}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{_KEY}: expected a table with a name, got {table!r}")
    return table


def _operator(table: Mapping[str, Any], imports: bool) -> Callable[[Tensor], Tensor]:
    if "operator" not in table:
        raise ConfigError(f"{_KEY}: expected a table with an operator, got {sorted(table)}")
    operator: Callable[[Tensor], Tensor] = config.build(
        table["operator"], "estimator.operator", {}, imports=imports
    )
    return operator


def _numbers(data: Dataset) -> Tensor:
    """Events as an operator sees them: integers are the centres of their bins."""
    values = data.read(slice(None))
    return values if data.bins is None else bin_centres(values, data.bins)
