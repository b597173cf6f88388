"""A model of a table with the interface of scikit-learn: fit, sample, score, predict."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.app import config
from scoresde.app.facts import facts_of
from scoresde.app.model import Model
from scoresde.app.sections import training_of
from scoresde.checks import expect, instance, real, whole
from scoresde.conditioning import ConditionalEstimator, Observation
from scoresde.data import Dataset, split
from scoresde.data.conversion import Array
from scoresde.data.events import Batches
from scoresde.estimator import ScoreEstimator
from scoresde.internals.default_generator import DefaultGenerator
from scoresde.likelihood import log_prob
from scoresde.tables.completions import Completions
from scoresde.tables.coordinates import TableCoordinates

_SEEDS = 2**32 - 1
"""The largest seed, as scikit-learn has them."""

_FEWEST = 10
"""Rows: of fewer there is nothing to hold out."""

_DRAWS = 2**16
"""More of them is a slip."""

_ROWS = 2**14
"""Events that are drawn or measured together."""


class TableModel:
    """The distribution of a table's rows: samples, densities, and any columns given any others.

    Every column becomes a standard normal coordinate (`scoresde.tables.column`), and one diffusion
    model is trained on all of them, with any components shown clean, so that it knows every
    conditional. Numbers stay numbers, counts whole, categories categories; rows may have missing
    values.

    It follows scikit-learn's conventions, so that its ``clone``, cross-validation and searches take
    it, and does not need it.

    Args:
        steps: Number of updates.
        width: Of the network.
        kinds: What columns are, by name or place: ``"number"``, ``"count"`` or ``"category"``.
            By default see `scoresde.tables.column.column`.
        held_out: Share of the rows for choosing among averages of the weights.
        settings: Sections ``sde``, ``estimator``, ``solver`` and ``training`` in the place of
            those of ``scoresde/tables/defaults.toml``, as `scoresde.app.config` reads them. For
            missing values the estimator has to learn conditionals, as the default does.
        random_state: A seed, of training, and of samples and densities; drawn if None.
        verbose: Whether to show a progress bar.

    Attributes:
        model_: The trained `scoresde.app.model.Model`, of coordinates.
        coordinates_: From tables to them and back.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if they have some.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables import TableModel
        >>> rng = np.random.default_rng(0)
        >>> size = rng.standard_normal(500)
        >>> table = np.stack([size, 10 + 3 * size + rng.standard_normal(500)], 1)
        >>> model = TableModel(steps=300, width=32, random_state=0).fit(table)
        >>> model.sample(5).shape, model.score_samples(table[:3]).shape
        ((5, 2), (3,))
        >>> filled = model.predict([[1.0, np.nan]])  # 10 + 3 * 1
        >>> bool(abs(filled[0, 1] - 13) < 2)
        True
    """

    def __init__(
        self,
        steps: int = 2000,
        width: int = 128,
        *,
        kinds: Mapping[Hashable, str] | None = None,
        held_out: float = 0.1,
        settings: Mapping[str, Any] | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        # as they are: scikit-learn compares what it has given with what is there
        self.steps, self.width, self.kinds, self.held_out = steps, width, kinds, held_out
        self.settings, self.random_state, self.verbose = settings, random_state, verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learns the distribution of a table's rows.

        Args:
            X: A data frame of pandas, an array ``(N, columns)`` or nested lists, a structured
                array, a tensor, or a `scoresde.data.Dataset`. NaN and None are missing values.
            y: None: what is to be predicted is another column.

        Raises:
            TypeError: If it is something else, or a column has neither numbers nor words.
            ValueError: If there are fewer than ten rows, a row or a column without any value,
                columns are not of their kinds, or an argument of the model cannot be used.
        """
        expect(y is None, "y", "None (put it among the columns of X)", type(y).__name__)
        real("held_out", self.held_out)
        expect(0 < self.held_out < 1, "held_out", "a share between 0 and 1", self.held_out)
        seed, coordinates = self._seed(), TableCoordinates.fit(X, self.kinds)
        events, _ = coordinates.events(X, np.random.default_rng(seed))
        expect(len(events) >= _FEWEST, "X", f"at least {_FEWEST} rows", len(events))
        data = Dataset("X", events.to(torch.get_default_dtype()), missing=True)
        train, held_out = split(data, 1 - self.held_out, seed)
        settings = self._configuration(len(coordinates.columns))
        training, of_fit = training_of(settings)
        with DefaultGenerator(torch.Generator("cpu").manual_seed(seed)):
            model = Model.build(settings, facts_of(train), Batches(train), device="cpu")
        of_fit |= {"seed": seed, "progress": self.verbose}
        model.history = training.fit(model.estimator, train, held_out, **of_fit)
        self.model_, self.coordinates_ = model, coordinates
        self.n_features_in_ = len(coordinates.columns)
        if all(isinstance(name, str) for name in coordinates.form.names):
            self.feature_names_in_ = np.array(coordinates.form.names, object)
        return self

    def sample(
        self,
        n_samples: int = 1,
        *,
        given: Any = None,
        random_state: int | None = None,
    ) -> Any:
        """Rows of the model, in the form of the table that it was fitted on.

        They are complete, also where the table had missing values.

        Args:
            n_samples: How many rows; for every given one, if there are some.
            given: Rows whose missing values are drawn, row after row.
            random_state: A seed in the place of the model's.
        """
        whole("n_samples", n_samples, 1)
        seed, coordinates = self._seed(random_state), self._fitted()
        if given is not None:
            return self._completions(given, n_samples, seed).drawn()
        estimator = self.model_.estimator
        chance = torch.Generator().manual_seed(seed)
        parts = self.model_.solver.batches(estimator, (n_samples,), _ROWS, generator=chance)
        return coordinates.table(torch.cat(list(parts)))

    def score_samples(self, X: Any, *, draws: int = 4) -> Array:
        """Log-density of every row, ``(N,)``, in nats and in the units of the table.

        For numbers it is exact, up to the steps of the probability flow. With counts or categories,
        it is the logarithm of a density of the numbers times a probability of the others, a mean
        over places in their intervals: of a few draws, it is on average below that of many. For a
        row with missing values it is the density of the others, ``p(all) / p(missing | others)``.

        Args:
            X: A table with the columns of the one that the model was fitted on.
            draws: How many, where there are counts or categories.
        """
        whole("draws", draws, 1, _DRAWS)
        coordinates, seed = self._fitted(), self._seed()
        numbers = all(column.kind == "number" for column in coordinates.columns)
        chance, scores = np.random.default_rng(seed), []
        for k in range(1 if numbers else draws):
            events, factors = coordinates.events(X, chance)
            density = torch.zeros(len(events), dtype=torch.float64)
            for rows, mask, estimator in self._patterns(events):
                whole_events = self._tensor(events[rows])
                if not bool(mask.all()):
                    g = torch.Generator().manual_seed(seed + k)
                    whole_events = self.model_.solver.sample(estimator, (len(rows),), generator=g)
                    density[rows] -= self._log_prob(estimator, whole_events)
                density[rows] += self._log_prob(self.model_.estimator, whole_events)
            scores.append(density + factors.sum(1))
        mean: Array = (torch.stack(scores).logsumexp(0) - np.log(len(scores))).numpy()
        return mean

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def predict(
        self,
        X: Any,
        targets: Any = None,
        quantiles: Sequence[float] | None = None,
        *,
        draws: int = 100,
    ) -> Any:
        """Rows with missing values filled: by medians, and by the most probable categories.

        Args:
            X: Rows in which values are missing.
            targets: Names or places of columns that are treated as missing, and may be absent.
            quantiles: From 0 to 1: returns a dictionary with a table for each of them, which holds
                the most probable value of categories without an order.
            draws: From which quantiles are estimated.
        """
        asked = (0.5,) if quantiles is None else quantiles
        expect(isinstance(asked, Iterable), "quantiles", "a list of numbers", repr(asked))
        for quantile in asked:
            real("quantiles", quantile, 0, 1)
        whole("draws", draws, 1, _DRAWS)
        self._fitted()
        completions = self._completions(X, draws, self._seed(), targets)
        tables = {float(q): completions.quantile(float(q)) for q in asked}
        return tables if quantiles is not None else tables[0.5]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Arguments by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in self._arguments()}

    def set_params(self, **params: Any) -> Self:
        """Changes arguments by name; raises ``ValueError`` if one is unknown."""
        known = self._arguments()
        for name, value in params.items():
            expect(name in known, "set_params", f"some of {', '.join(known)}", name)
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The arguments that are not as they are by default."""
        defaults = inspect.signature(type(self)).parameters
        changed = {k: v for k, v in self.get_params().items() if v != defaults[k].default}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    def __sklearn_tags__(self) -> Any:
        """Tags, for scikit-learn alone."""
        from sklearn.utils import InputTags, Tags, TargetTags

        takes = InputTags(allow_nan=True, categorical=True, string=True)
        return Tags(estimator_type=None, target_tags=TargetTags(required=False), input_tags=takes)

    @classmethod
    def _arguments(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _fitted(self) -> TableCoordinates:
        there = hasattr(self, "coordinates_")
        expect(there, type(self).__name__, "one that has been fitted", "one that has not")
        return self.coordinates_

    def _seed(self, seed: int | None = None) -> int:
        seed = self.random_state if seed is None else seed
        if seed is None:
            return int(np.random.default_rng().integers(_SEEDS))
        whole("random_state", seed, 0, _SEEDS)
        return int(seed)

    def _configuration(self, columns: int) -> dict[str, Any]:
        """The configuration of a model with ``columns``, as a file has it."""
        instance("settings", self.settings or {}, Mapping)
        given = dict(self.settings or {})
        expect("data" not in given, "settings", "no section data", "one (fit has the data)")
        settings = config.read(Path(__file__).with_name("defaults.toml"))
        settings["estimator"]["network"] |= {"width": self.width, "noise_levels": columns}
        settings["training"]["steps"] = self.steps
        for name in given:
            settings[name] = config.section(given, name)
        return settings

    def _tensor(self, events: Tensor) -> Tensor:
        """Events in the estimator's dtype; coordinates are in double precision."""
        return events.to(next(self.model_.estimator.parameters()))

    def _log_prob(self, estimator: ScoreEstimator, events: Tensor) -> Tensor:
        rows = torch.arange(len(events)).split(_ROWS // 16)
        parts = []
        with torch.no_grad():
            for part in rows:
                some = estimator.select(part, (len(events),))
                parts.append(log_prob(some, events[part]).value)
        return torch.cat(parts).double()

    def _patterns(self, events: Tensor) -> Iterator[tuple[Tensor, Tensor, ScoreEstimator]]:
        """Rows with the same values missing, which are known ``(columns,)``, and their model."""
        patterns, which = (~events.isnan()).unique(dim=0, return_inverse=True)
        for i, mask in enumerate(patterns):
            rows, estimator = (which == i).nonzero().flatten(), self.model_.estimator
            if bool(mask.any()) and not bool(mask.all()):
                known = Observation(mask, self._tensor(events[rows]))
                estimator = ConditionalEstimator(estimator, known, clean=True)
            yield rows, mask, estimator

    def _completions(self, table: Any, draws: int, seed: int, targets: Any = None) -> Completions:
        coordinates = self._fitted()
        hidden = [] if targets is None else coordinates.form.indices(targets)
        events, _ = coordinates.events(table, np.random.default_rng(seed), hidden)
        chance = torch.Generator().manual_seed(seed)
        drawn = self._tensor(events).expand(draws, -1, -1).clone()
        for rows, mask, estimator in self._patterns(events):
            if bool(mask.all()):
                continue
            for part in torch.arange(len(rows)).split(max(1, _ROWS // draws)):
                some = estimator.select(part.repeat(draws), (len(rows),))
                shape = (draws * len(part),)
                samples = self.model_.solver.sample(some, shape, generator=chance)
                drawn[:, rows[part]] = samples.reshape(draws, len(part), -1)
        cells = coordinates.cells(table, hidden)
        return Completions(coordinates, cells, drawn, getattr(table, "index", None))
