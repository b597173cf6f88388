"""A trained model with its configuration: what the command line trains, saves and loads."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.app import config, devices
from scoresde.app.conditions import aligned, with_options
from scoresde.app.export import Export
from scoresde.app.factories import ConfigError, call_factory, expect_known
from scoresde.app.facts import facts_of, known_of
from scoresde.app.parts import read_data
from scoresde.bases import PCA, Identity
from scoresde.checks import describe_error, expect, nearest, real, whole
from scoresde.data import Dataset, reader, split
from scoresde.data.events import Batches
from scoresde.estimator import ScoreEstimator
from scoresde.internals import limits
from scoresde.internals.allocation import AllocationLimit
from scoresde.internals.default_generator import DefaultGenerator
from scoresde.solver import Solver
from scoresde.training import History, OnMeasure, Training, checkpoint
from scoresde.training.checkpoint import CheckpointError
from scoresde.training.distributed import SINGLE_PROCESS, Processes
from scoresde.training.settings import expanded

_CONSTANTS = 2**22
"""Numbers that a model may have besides its weights while it is built: 32 MB of tables."""

_SQUARES = 56
"""Bytes for a pair of components while principal ones are found or checked: seven matrices."""

_SECTIONS = ("data", "sde", "estimator", "solver", "training")
_TRAINED = ("sde", "estimator")
_OF_FIT = ("seed", "save_every")
_OF_TEXT = ("delimiter", "decimal", "header", "encoding")

_SEEDS = 2**63 - 1
"""The largest seed: torch's are 64 bits, with a sign."""


@attrs.define(eq=False)
class Model:
    """An estimator, a solver to use it with, and how both were made.

    Attributes:
        estimator: Knows the score.
        solver: Samples and evaluates.
        settings: The configuration, as read.
        facts: What was learned from the data: ``event_shape``, ``bins``, ``columns`` of a
            table, whether values are ``missing``, ``data_mean``, ``data_std``, and of conditions
            (`scoresde.app.facts`).
        history: Of the training, if it has been trained here.

    Example:
        >>> from scoresde.app.model import Model
        >>> model = Model.train(
        ...     {
        ...         "data": {"source": "digits"},
        ...         "sde": {"name": "diagonal", "schedule": "cosine", "basis": "identity"},
        ...         "estimator": {"name": "denoising", "network": "residual-mlp"},
        ...         "solver": {"name": "ddim", "steps": 4},
        ...         "training": {"steps": 2},
        ...     },
        ...     progress=False,
        ... )
        >>> model.solver.sample(model.estimator, (3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    estimator: ScoreEstimator
    solver: Solver
    settings: dict[str, Any]
    facts: dict[str, Any]
    history: History | None = None

    @classmethod
    def build(
        cls,
        settings: Mapping[str, Any],
        facts: dict[str, Any],
        data: Iterable[Tensor] | None = None,
        *,
        device: str | torch.device | None = None,
        imports: bool = False,
    ) -> Model:
        """Untrained, from a configuration (`scoresde.app.config`) and what is known of the data.

        Args:
            settings: The configuration.
            facts: As in the attribute.
            data: To measure what is not known yet: pieces of events, that can be gone through
                several times.
            device: Where the estimator is to be, see `scoresde.app.devices.device`.
            imports: Whether names may be import paths.

        Raises:
            ConfigError: If a section is unknown or missing, or an object cannot be built.
            UnknownPlugin: If a name is of nothing that is installed; import paths are names
                only with ``imports``.
            PluginError: If a plugin cannot be imported.
        """
        where, build = devices.device("device", device), partial(config.build, imports=imports)
        _expect_sections(settings)
        with torch.device("cpu"):  # what others build names no device
            known = known_of(facts)
            known["data_components"] = config.Lazy(lambda: _components(facts, data))
            sde, basis = settings["sde"], Identity(facts["event_shape"])
            if isinstance(sde, Mapping) and "basis" in sde:
                basis = known["basis"] = build(sde["basis"], "sde.basis", known)
                sde = {**sde, "basis": basis}
            if data is not None:
                mean, std = basis.moments(data, missing=facts.get("missing", False))
                facts = {**facts, "data_mean": mean.tolist(), "data_std": std.tolist()}
                known |= known_of(facts)
            known["sde"] = build(sde, "sde", known)
            estimator = build(settings["estimator"], "estimator", known)
            solver = build(settings["solver"], "solver", known)
        return cls(estimator.to(where), solver, dict(settings), facts)

    @classmethod
    def train(
        cls,
        settings: Mapping[str, Any],
        *,
        progress: bool = True,
        folder: str | Path | None = None,
        pictures: str | Path | None = None,
        processes: Processes = SINGLE_PROCESS,
        device: str | torch.device | None = None,
        imports: bool = False,
    ) -> Model:
        """Built and trained as a configuration says.

        Section ``data`` has a ``source`` (see `scoresde.data.load`), its options, and
        optionally ``held_out`` (a share, default 0.1) and ``seed``; ``training`` has the
        arguments of `Training`, and ``seed`` and ``save_every`` of `Training.fit`. With a
        ``folder`` a run that was interrupted goes on, see there.

        Args:
            settings: The configuration.
            progress: Whether to show a progress bar.
            folder: Where the run is written while it goes on.
            pictures: A folder for samples on the way, of images; see `scoresde.app.plots.Pictures`.
            processes: That train together, see `Training.fit`.
            device: Where to train, see `scoresde.app.devices.device`; None of several processes is
                where each of them computes.
            imports: Whether names may be import paths.

        Raises:
            ConfigError, UnknownPlugin, PluginError: See `build`.
            ValueError: If there are to be pictures of what are not images.
        """
        alone = processes is SINGLE_PROCESS or device is not None
        where = devices.device("device", device) if alone else processes.device
        settings = {name: config.to_json(value, name) for name, value in settings.items()}
        _expect_sections(settings)
        training, of_fit = training_of(settings)
        train, held_out = data_of(settings, imports=imports)
        with DefaultGenerator(torch.Generator("cpu").manual_seed(of_fit["seed"])):
            batches = Batches(train, of_fit["seed"])
            model = cls.build(settings, facts_of(train), batches, device="cpu", imports=imports)
        model.expect_times()
        recorded = {
            name: config.with_defaults(settings[name], name, imports=imports) for name in _TRAINED
        }
        recorded["data"] = config.section(settings, "data")
        model.estimator.to(where)
        model.history = training.fit(
            model.estimator,
            train,
            held_out,
            **of_fit,
            progress=progress,
            on_measure=None if pictures is None else model._pictures(pictures, processes, train),
            folder=folder,
            processes=processes,
            settings=recorded,
        )
        return model

    @property
    def export(self) -> Export:
        """Writes samples as the data were, in the units and names of a table."""
        options = config.section(self.settings, "data")
        text_options = {name: options[name] for name in _OF_TEXT if name in options}
        facts: dict[str, Any] = {n: self.facts.get(n) for n in ("event_shape", "bins", "columns")}
        return Export(**facts, **text_options)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the parts that its estimator is to be given; none of most."""
        table = config.with_defaults(self.settings["estimator"], "estimator", imports=True)
        given = table.get("given", ())
        return (given,) if isinstance(given, str) else tuple(given)

    def expect_times(self) -> None:
        """Raises `ConfigError` if the solver cannot walk the SDE: said before it is trained."""
        noise = self.solver.eta if self.solver.weak_order is None else 0.0
        if noise:
            raise ConfigError(f"solver: eta: expected 0 of what integrates ODEs alone, got {noise}")
        try:
            self.solver.times(self.estimator.sde)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"solver: {describe_error(error)}") from error

    def solver_like(
        self, name: str | None = None, *, imports: bool = False, **options: Any
    ) -> Solver:
        """The solver, or another one by its name, with other options.

        Args:
            name: Of a plugin; the model's own if None, with its options where none are given.
            imports: Whether the name may be an import path.
            options: Arguments of the solver.

        Raises:
            ConfigError, UnknownPlugin, PluginError: See `build`.
        """
        table = self.settings["solver"]
        table = table if isinstance(table, Mapping) else {"name": table}
        table = {**(table if name is None else {"name": name}), **options}
        solver: Solver = config.build(table, "solver", known_of(self.facts), imports=imports)
        return solver

    def _pictures(self, folder: str | Path, processes: Processes, data: Dataset) -> OnMeasure:
        from scoresde.app.plots import Pictures

        Path(folder).mkdir(parents=True, exist_ok=True)
        self.export.writer(Path(folder, "0.png"), "pictures")
        told, options = data.pairs(slice(64)).condition, dict[str, Any]()
        if told is not None:
            told = told if told.ndim > 1 else told.sort().values
            options = {"condition": told, "count": len(told)}
        draws = processes.is_main_process
        return Pictures(Path(folder), self.solver, draws=draws, **options)

    def save(self, folder: str | Path) -> None:
        """Writes ``config.json`` and the weights as safetensors, whole or not at all."""
        content = {"settings": self.settings, "facts": self.facts}
        checkpoint.save(folder, self.estimator.state_dict(), content)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        imports: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Model:
        """What `save` has written.

        Args:
            folder: Where.
            device: Where the estimator is to be, wherever it was; see
                `scoresde.app.devices.device`.
            imports: Whether the names in it may be import paths (`scoresde.plugins.get`). A
                folder from someone else is safe to load without.
            options: Arguments of the estimator, in the place of those it was trained with.

        Raises:
            CheckpointError: If the files are damaged or do not fit together.
            UnknownPlugin: If the model uses a plugin that is not installed.
            PluginError: If that cannot be imported.
        """
        where = devices.device("device", device)
        state, content = checkpoint.load(folder)
        match content:
            case {
                "settings": dict(settings),
                "facts": {"event_shape": list(), "bins": int() | None} as facts,
            }:
                pass
            case _:
                raise CheckpointError(f"{folder}: expected a model's settings and facts")
        settings = with_options(settings, options, imports)
        try:
            # four times: a module may replace its parameters while it is built
            limit = AllocationLimit(4 * sum(value.numel() for value in state.values()) + _CONSTANTS)
            weights_memory = limits.AMPLIFICATION * sum(value.nbytes for value in state.values())
            # initial weights are replaced: that they are drawn changes nobody's random numbers
            drawn = DefaultGenerator(torch.Generator("cpu").manual_seed(0))
            with limit, drawn, limits.allow(max(weights_memory, limits.memory())):
                model = cls.build(settings, facts, device="cpu", imports=imports)
            model.estimator.load_state_dict(state)
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: weights and config do not fit: {error}") from error
        model.estimator.to(where).eval()
        return model


def training_of(settings: Mapping[str, Any]) -> tuple[Training, dict[str, Any]]:
    """The loop that a configuration asks for, and what it says of one run of it.

    Example:
        >>> from scoresde.app.model import training_of
        >>> training, of_fit = training_of({"training": {"steps": 5, "seed": 3}})
        >>> training.steps, of_fit
        (5, {'seed': 3})
    """
    given = settings.get("training")
    options = expanded(given if isinstance(given, str) else config.section(settings, "training"))
    expect_known(Training, options, "training", _OF_FIT)
    of_fit = {name: options.pop(name) for name in _OF_FIT if name in options}
    training: Training = call_factory(Training, options, "training")
    whole("training.seed", of_fit.setdefault("seed", 0), 0, _SEEDS)
    whole("training.save_every", of_fit.get("save_every", 1), 1)
    return training, of_fit


def data_of(settings: Mapping[str, Any], *, imports: bool = False) -> tuple[Dataset, Dataset]:
    """The training and held-out shares of a configuration's data.

    Args:
        settings: The configuration.
        imports: Whether names may be import paths.

    Raises:
        ConfigError: If the section is missing or an option is wrong.

    Example:
        >>> from scoresde.app.model import data_of
        >>> train, held_out = data_of({"data": {"source": "digits", "held_out": 0.2}})
        >>> len(train), len(held_out)
        (1438, 359)
    """
    options = config.section(settings, "data")
    share, seed = options.get("held_out", 0.1), options.get("seed", 0)
    real("data.held_out", share)
    expect(0 < share < 1, "data.held_out", "a share between 0 and 1", share)
    whole("data.seed", seed, 0, _SEEDS)
    return split(read_data(options, imports=imports), 1 - share, seed)


def data_like(
    settings: Mapping[str, Any],
    source: str,
    facts: Mapping[str, Any] | None = None,
    *,
    imports: bool = False,
) -> Dataset:
    """Other data, read with those options of a configuration's data that apply to them.

    Args:
        settings: The configuration.
        source: A built-in set, a file or a folder.
        facts: Of the model that was trained: columns are those it knows, wherever they stand
            in the file, and bins of an array as many.
        imports: Whether names may be import paths.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        ValueError: If the data cannot be read or used.

    Example:
        >>> from scoresde.app.model import data_like
        >>> data_like({"data": {"source": "digits", "held_out": 0.2}}, "digits").values.shape
        torch.Size([1797, 1, 8, 8])
    """
    read = reader(source)
    allowed = inspect.signature(read).parameters.keys() - {"seed"}  # there, of the split
    known = {name: (facts or {}).get(name) for name in ("bins", "columns")}
    options = {name: value for name, value in known.items() if value is not None}
    options |= config.section(settings, "data")
    taken = {key: options[key] for key in (allowed | {"parts"}) & options.keys()}
    return aligned(read_data({**taken, "source": source}, imports=imports), facts or {})


def _expect_sections(settings: Mapping[str, Any]) -> None:
    for section in settings:
        if section not in _SECTIONS:
            raise ConfigError(f"{section}: unknown{nearest(section, _SECTIONS)}")
    for section in ("sde", "estimator", "solver"):
        if section not in settings:
            raise ConfigError(f"{section}: expected a table with a name, got none")


def _components(facts: Mapping[str, Any], data: Iterable[Tensor] | None) -> Tensor:
    """Principal components; when loading, a place for the saved ones."""
    dim = math.prod(facts["event_shape"])
    limits.afford("event_shape", _SQUARES * dim**2)
    if data is not None:
        return PCA.fit(data).components
    return torch.eye(dim)
