"""A trained model with its configuration: what the command line trains, saves and loads."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from scoresde import checkpoint, config
from scoresde.bases import PCA
from scoresde.checkpoint import CheckpointError
from scoresde.checks import expect, nearest
from scoresde.config import ConfigError
from scoresde.data import Dataset, load, reader, split
from scoresde.distributed import ALONE, Processes
from scoresde.estimator import ScoreEstimator
from scoresde.solver import Solver
from scoresde.training import History, OnMeasure, Pieces, Training

_MEASURED = {"data_mean", "data_std"}
_SECTIONS = ("data", "sde", "estimator", "solver", "training")


@attrs.define(eq=False)
class Model:
    """An estimator, a solver to use it with, and how both were made.

    Attributes:
        estimator: Knows the score.
        solver: Samples and evaluates.
        settings: The configuration, as read.
        facts: What was learned from the data: ``event_shape``, ``levels``, ``data_mean``,
            ``data_std``.
        history: Of the training, if it has been trained here.

    Example:
        >>> from scoresde.model import Model
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
        imports: bool = False,
    ) -> Model:
        """Untrained, from a configuration (`scoresde.config`) and what is known of the data.

        Args:
            settings: The configuration.
            facts: As in the attribute.
            data: To measure what is not known yet: pieces of events, that can be gone through
                several times.
            imports: Whether names may be import paths.

        Raises:
            ConfigError: If a section is unknown or missing, or an object cannot be built.
            UnknownPlugin: If a name is of nothing that is installed; import paths are names
                only with ``imports``.
            PluginError: If a plugin cannot be imported.
        """
        build = partial(config.build, imports=imports)
        for section in settings:
            if section not in _SECTIONS:
                raise ConfigError(f"{section}: unknown{nearest(section, _SECTIONS)}")
        for section in ("sde", "estimator", "solver"):
            if section not in settings:
                raise ConfigError(f"{section}: expected a table with a name, got none")
        known: dict[str, Any] = {"event_shape": tuple(facts["event_shape"])}
        known["components"] = config.Later(lambda: _components(facts, data))
        sde = settings["sde"]
        if isinstance(sde, Mapping) and "basis" in sde:
            known["basis"] = build(sde["basis"], "sde.basis", known)
            sde = {key: value for key, value in sde.items() if key != "basis"}
        if data is not None and "basis" in known:
            mean, std = known["basis"].moments(data)
            facts = {**facts, "data_mean": mean.tolist(), "data_std": std.tolist()}
        for key in _MEASURED & facts.keys():
            known[key] = torch.tensor(facts[key], dtype=torch.float64)
        # columns have units of their own, and noise is in them unless the file says otherwise
        vectors = len(facts["event_shape"]) == 1 and "data_std" in known
        unit = {"scale": known["data_std"]} if vectors else {}
        known["sde"] = build(sde, "sde", {**known, **unit})
        known["estimator"] = build(settings["estimator"], "estimator", known)
        solver = build(settings["solver"], "solver", known)
        return cls(known["estimator"], solver, dict(settings), facts)

    @classmethod
    def train(
        cls,
        settings: Mapping[str, Any],
        *,
        progress: bool = True,
        folder: str | Path | None = None,
        pictures: str | Path | None = None,
        processes: Processes = ALONE,
        imports: bool = False,
    ) -> Model:
        """Built and trained as a configuration says.

        Section ``data`` has a ``source`` (see `scoresde.data.load`), its options, and
        optionally ``held_out`` (a share, default 0.1) and ``seed``; ``training`` has the
        arguments of `Training` and a ``seed``. With a ``folder`` a run that was interrupted
        goes on, see `Training.fit`. ``imports`` allows import paths as names, as everywhere.

        Args:
            settings: The configuration.
            progress: Whether to show a progress bar.
            folder: Where the run is written while it goes on.
            pictures: A folder for samples on the way, of images; see `scoresde.plots.Pictures`.
            processes: That train together, see `Training.fit`.
            imports: Whether names may be import paths.

        Raises:
            ConfigError, UnknownPlugin, PluginError: See `build`.
            ValueError: If there are to be pictures of what are not images.
        """
        train, held_out = data_of(settings)
        options = dict(settings.get("training", {}))
        seed = options.pop("seed", 0)
        try:
            training = Training(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"training: {error}") from error
        torch.manual_seed(seed)
        facts = {"event_shape": list(train.values.shape[1:]), "levels": train.levels}
        model = cls.build(settings, facts, Pieces(train, seed), imports=imports)
        model.estimator.to(processes.device)
        model.history = training.fit(
            model.estimator,
            train,
            held_out,
            seed=seed,
            progress=progress,
            on_measure=None if pictures is None else model._pictures(pictures, processes),
            folder=folder,
            processes=processes,
        )
        return model

    def expect_images(self, name: str) -> None:
        """Raises ``ValueError`` with an argument's name unless events are images."""
        shape = tuple(self.facts["event_shape"])
        image = len(shape) == 3 and shape[0] in (1, 3)
        expect(image, name, "events that are images, (1 | 3, height, width)", shape)

    def _pictures(self, folder: str | Path, processes: Processes) -> OnMeasure:
        from scoresde.plots import Pictures

        self.expect_images("pictures")
        return Pictures(Path(folder), self.solver, draws=processes.is_main_process)

    def save(self, folder: str | Path) -> None:
        """Writes ``config.json`` and the weights as safetensors, whole or not at all."""
        content = {"settings": self.settings, "facts": self.facts}
        checkpoint.save(folder, self.estimator.state_dict(), content)

    @classmethod
    def load(cls, folder: str | Path, *, imports: bool = False) -> Model:
        """What `save` has written.

        Args:
            folder: Where.
            imports: Whether the names in it may be import paths (`scoresde.plugins.get`). A
                folder from someone else is safe to load without.

        Raises:
            CheckpointError: If the files are damaged or do not fit together.
            UnknownPlugin: If the model uses a plugin that is not installed.
            PluginError: If that cannot be imported.
        """
        state, content = checkpoint.load(folder)
        match content:
            case {
                "settings": dict(settings),
                "facts": {"event_shape": list(), "levels": int() | None} as facts,
            }:
                pass
            case _:
                raise CheckpointError(f"{folder}: expected a model's settings and facts")
        try:
            # four times: a module may replace its parameters while it is built
            with _at_most(4 * sum(value.numel() for value in state.values())):
                model = cls.build(settings, facts, imports=imports)
            model.estimator.load_state_dict(state)
        except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: weights and config do not fit: {error}") from error
        model.estimator.eval()
        return model


def data_of(settings: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    """The training and held-out parts of a configuration's data.

    Raises:
        ConfigError: If the section is missing or an option is wrong.

    Example:
        >>> from scoresde.model import data_of
        >>> train, held_out = data_of({"data": {"source": "digits", "held_out": 0.2}})
        >>> len(train), len(held_out)
        (1438, 359)
    """
    options = dict(settings.get("data", {}))
    if "source" not in options:
        raise ConfigError("data.source: expected a data set, a file or a folder, got none")
    share, seed = options.pop("held_out", 0.1), options.pop("seed", 0)
    try:
        return split(load(**options), 1 - share, seed)
    except TypeError as error:
        raise ConfigError(f"data: {error}") from error


def data_like(settings: Mapping[str, Any], source: str) -> Dataset:
    """Other data, read with those options of a configuration's data that apply to them.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        ValueError: If the data cannot be read or used.

    Example:
        >>> from scoresde.model import data_like
        >>> data_like({"data": {"source": "digits", "held_out": 0.2}}, "digits").values.shape
        torch.Size([1797, 1, 8, 8])
    """
    read = reader(source)
    allowed = inspect.signature(read).parameters.keys() - {"seed"}  # there, of the split
    options = settings.get("data", {})
    return read(**{key: options[key] for key in allowed & options.keys()})


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raises RuntimeError where modules get more parameters than ``count``.

    They are counted before they are filled, so that a few bytes of configuration cannot ask for
    memory without end.
    """
    total = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal total
        total += parameter.numel()
        if total > count:
            raise RuntimeError(
                f"expected at most {count} parameters, for the weights that were saved, got more "
                f"with the {name} of a {type(module).__name__}"
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _components(facts: Mapping[str, Any], data: Iterable[Tensor] | None) -> Tensor:
    """Principal components; when loading, a place for the saved ones."""
    if data is not None:
        return PCA.fit(data).components
    return torch.eye(math.prod(facts["event_shape"]))
