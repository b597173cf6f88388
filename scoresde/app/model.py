"""A trained model with its configuration: what the command line trains, saves and loads."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.app import config, devices
from scoresde.app.conditions import with_options
from scoresde.app.export import Export
from scoresde.app.factories import ConfigError
from scoresde.app.facts import expect_events, facts_of, pretrained_facts, supplied_arguments
from scoresde.app.parts import data_of, given_parts
from scoresde.app.plans import plan_facts, plan_summary, planning_of, replanned_facts, with_plan
from scoresde.app.previews import previews
from scoresde.app.sections import expect_sections, recorded, training_of
from scoresde.bases import PCA, Identity
from scoresde.data import Dataset
from scoresde.data.events import Batches
from scoresde.estimator import ScoreEstimator
from scoresde.internals import limits
from scoresde.internals.allocation import AllocationLimit
from scoresde.internals.default_generator import DefaultGenerator
from scoresde.internals.messages import describe_error
from scoresde.solver import Solver
from scoresde.training import History, checkpoint
from scoresde.training.checkpoint import CheckpointError
from scoresde.training.distributed import SINGLE_PROCESS, Processes

_CONSTANTS = 2**22
"""Numbers that a model may have besides its weights while it is built: 32 MB of tables."""

_SQUARES = 56
"""Bytes for a pair of components while principal ones are found or checked: seven matrices."""

_OF_TEXT = ("delimiter", "decimal", "header", "encoding")


@attrs.define(eq=False)
class Model:
    """An estimator, a solver to use it with, and how both were made.

    Attributes:
        estimator: Knows the score.
        solver: Samples and evaluates.
        settings: The configuration, as read.
        facts: About the data: ``event_shape``, ``bins``, ``columns`` of a table, whether values
            are ``missing``, ``data_mean``, ``data_std``, a ``plan`` (`scoresde.app.plans`), and
            about conditions (`scoresde.app.facts`).
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
        """Untrained, from a configuration (`scoresde.app.config`) and facts about the data.

        Args:
            settings: The configuration.
            facts: As in the attribute.
            data: Pieces of events, for facts that have to be measured; iterated several times.
            device: Where the estimator is to be, see `scoresde.app.devices.device`.
            imports: Whether names may be import paths.

        Raises:
            ConfigError: If a section is unknown or missing, or an object cannot be built.
            UnknownPlugin: If a name is of nothing that is installed; import paths are names
                only with ``imports``.
            PluginError: If a plugin cannot be imported.
        """
        where, build = devices.device("device", device), partial(config.build, imports=imports)
        expect_sections(settings, imports=imports)
        with torch.device("cpu"):  # what others build names no device
            supplied = supplied_arguments(facts)
            supplied["data_components"] = config.Lazy(lambda: _components(facts, data))
            sde, basis = settings.get("sde"), Identity(facts["event_shape"])
            if isinstance(sde, Mapping) and "basis" in sde:
                basis = supplied["basis"] = build(sde["basis"], "sde.basis", supplied)
                sde = {**sde, "basis": basis}
            if data is not None:
                mean, std = basis.moments(data, missing=facts.get("missing", False))
                facts = {**facts, "data_mean": mean.tolist(), "data_std": std.tolist()}
                supplied |= supplied_arguments(facts)
            if (planning := planning_of(settings)) is not None and data is not None:
                own = {**settings, "sde": sde}
                facts = {**facts, "plan": plan_facts(own, planning, supplied, data, imports)}
            full = with_plan(settings if sde is None else {**settings, "sde": sde}, facts)
            if sde is not None:
                supplied["sde"] = build(full["sde"], "sde", supplied)
            estimator = build(full["estimator"], "estimator", supplied)
            solver = build(full["solver"], "solver", supplied)
        return cls(estimator.to(where), solver, dict(settings), facts)

    @classmethod
    def pretrained(
        cls,
        settings: Mapping[str, Any],
        *,
        device: str | torch.device | None = None,
        imports: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Model:
        """A model whose estimator was trained elsewhere, from a configuration: no data are read.

        Args:
            settings: The configuration.
            device: Where the estimator is to be, see `scoresde.app.devices.device`.
            imports: Whether names may be import paths.
            options: Arguments of the estimator, in the place of those in the configuration.

        Raises:
            ConfigError: If the estimator has to be trained first; else see `build`.
        """
        settings = {name: config.to_json(value, name) for name, value in settings.items()}
        expect_sections(settings, imports=imports)
        facts = pretrained_facts(settings["estimator"], imports=imports)
        if facts is None:
            expected = "one that is trained already; scoresde train makes a folder of this one"
            raise ConfigError(f"estimator: expected {expected}")
        settings = with_options(settings, options, imports)
        model = cls.build(settings, facts, device=device, imports=imports)
        model.expect_times()
        model.estimator.eval()
        return model

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

        Section ``data`` has a ``source`` (see `scoresde.data.load`), its options, and optionally
        ``held_out`` (a share, default 0.1) and ``seed``; ``training`` has the arguments of
        `Training`, and ``seed`` and ``save_every`` of `Training.fit`. With a ``folder``, an
        interrupted run is continued, see there.

        Args:
            settings: The configuration.
            progress: Whether to show a progress bar.
            folder: Where the run is written while it goes on.
            pictures: A folder for samples on the way, of images; see `scoresde.app.plots.Pictures`.
            processes: Which train together, see `Training.fit`.
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
        expect_sections(settings, imports=imports)
        training, of_fit = training_of(settings)
        train, held_out = _data(settings, imports)
        with DefaultGenerator(torch.Generator("cpu").manual_seed(of_fit["seed"])):
            batches = Batches(train, of_fit["seed"])
            model = cls.build(settings, facts_of(train), batches, device="cpu", imports=imports)
        model.expect_times()
        telling = progress and processes.is_main_process
        if telling and "plan" in model.facts:
            _tell(model.facts["plan"])
        model.estimator.to(where)
        model.history = training.fit(
            model.estimator,
            train,
            held_out,
            **of_fit,
            progress=progress,
            on_measure=None
            if pictures is None
            else previews(model, pictures, processes, train, held_out),
            folder=folder,
            processes=processes,
            settings=recorded(settings, model.facts, imports=imports),
        )
        model._plan_again(batches, held_out, telling, imports)
        return model

    def _plan_again(
        self, data: Iterable[Tensor], held_out: Dataset, telling: bool, imports: bool
    ) -> None:
        """Steps for what the model has become."""
        if (planning := planning_of(self.settings)) is None:
            return
        request = self.settings, planning, self.facts["plan"]
        facts = replanned_facts(*request, self.estimator, self.solver, data, held_out)
        if telling and facts != self.facts["plan"]:
            _tell(facts)
        self.facts = {**self.facts, "plan": facts}
        self.solver = self.solver_like(imports=imports)

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
        return given_parts(self.settings)

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
        # a plan is for a solver, and for a number of steps
        plan = self.facts if name is None and "steps" not in options else {}
        settings = with_plan(self.settings, plan) if plan else self.settings
        table = settings["solver"]
        table = table if isinstance(table, Mapping) else {"name": table}
        table = {**(table if name is None else {"name": name}), **options}
        supplied = supplied_arguments(self.facts)
        solver: Solver = config.build(table, "solver", supplied, imports=imports)
        return solver

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
        """A model that `save` has written.

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
            expect_sections(settings, imports=imports)  # imports plugins, which have no limit yet
            # four times: a module may replace its parameters while it is built
            limit = AllocationLimit(4 * sum(value.numel() for value in state.values()) + _CONSTANTS)
            weights_memory = limits.AMPLIFICATION * sum(value.nbytes for value in state.values())
            # initial weights are replaced: that they are drawn changes nobody's random numbers
            drawn = DefaultGenerator(torch.Generator("cpu").manual_seed(0))
            with limit, drawn, limits.memory_limit(max(weights_memory, limits.memory())):
                model = cls.build(settings, facts, device="cpu", imports=imports)
            model.estimator.load_state_dict(state)
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: weights and config do not fit: {error}") from error
        model.estimator.to(where).eval()
        return model


def loaded(path: str | Path, **options: Any) -> Model:
    """A model from the folder that it was saved in, or from a file of one that needs no training.

    Args:
        path: Of either.
        options: Of `Model.load` and `Model.pretrained`.

    Raises:
        ConfigError: If the model of a file has to be trained first; see also there.

    Example:
        >>> from scoresde.app.model import loaded
        >>> def samples(path):
        ...     model = loaded(path)
        ...     return model.solver.sample(model.estimator, (4,))
    """
    path = Path(path)
    if path.suffix.lower() == ".toml" and not path.is_dir():
        return Model.pretrained(config.read(path), **options)
    if path.is_dir() and not (path / "config.json").exists() and any(path.glob("*/config.json")):
        expected = "a folder that scoresde train has written"
        hint = f"one that was trained elsewhere has a file: scoresde init pretrained {path}"
        raise FileNotFoundError(f"{path}: expected {expected}, got another ({hint})")
    return Model.load(path, **options)


def _data(settings: Mapping[str, Any], imports: bool) -> tuple[Dataset, Dataset]:
    """Those of the training and those held out."""
    train, held_out = data_of(settings, imports=imports)
    known = pretrained_facts(settings["estimator"], imports=imports)
    if known is not None:
        expect_events(train, known, "which the estimator was trained on")
    return train, held_out


def _tell(plan: Mapping[str, Any]) -> None:
    tqdm.write(plan_summary(plan), file=sys.stderr)


def _components(facts: Mapping[str, Any], data: Iterable[Tensor] | None) -> Tensor:
    """Principal components; when loading, a place for the saved ones."""
    dim = math.prod(facts["event_shape"])
    limits.expect_memory("event_shape", _SQUARES * dim**2)
    if data is not None:
        return PCA.fit(data).components
    return torch.eye(dim)
