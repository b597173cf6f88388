"""Sections of a configuration: which there are, and the settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.app import config
from scoresde.app.factories import ConfigError, call_factory, expect_known
from scoresde.app.facts import pretrained_facts
from scoresde.app.parts import SEEDS
from scoresde.app.plans import planning_of
from scoresde.checks import whole
from scoresde.internals.messages import nearest
from scoresde.training import Training
from scoresde.training.settings import expanded

_SECTIONS = ("data", "sde", "estimator", "solver", "plan", "training")
_TRAINED = ("sde", "estimator")
_OF_FIT = ("seed", "save_every")


def expect_sections(settings: Mapping[str, Any], *, imports: bool = False) -> None:
    """Raises `ConfigError` if a section is missing or unknown."""
    for section in settings:
        if section not in _SECTIONS:
            raise ConfigError(f"{section}: unknown{nearest(section, _SECTIONS)}")
    for section in ("estimator", "solver", "sde"):
        trained = section == "sde" and (
            pretrained_facts(settings["estimator"], imports=imports) is not None
        )
        if trained and section in settings:
            raise ConfigError("sde: expected none, as the estimator has its own, got one")
        if section not in settings and not trained:
            raise ConfigError(f"{section}: expected a table with a name, got none")


def training_of(settings: Mapping[str, Any]) -> tuple[Training, dict[str, Any]]:
    """A configuration's training loop, and the arguments of `Training.fit`.

    Raises:
        ConfigError: If a setting is unknown or wrong.
    """
    given = settings.get("training")
    options = expanded(given if isinstance(given, str) else config.section(settings, "training"))
    expect_known(Training, options, "training", (*_OF_FIT, "preset"))
    of_fit = {name: options.pop(name) for name in _OF_FIT if name in options}
    training: Training = call_factory(Training, options, "training")
    whole("training.seed", of_fit.setdefault("seed", 0), 0, SEEDS)
    whole("training.save_every", of_fit.get("save_every", 1), 1)
    return training, of_fit


def recorded(
    settings: Mapping[str, Any], facts: Mapping[str, Any], *, imports: bool = False
) -> dict[str, Any]:
    """What identifies a run of a configuration: tables that mean the same are equal.

    Args:
        settings: The configuration.
        facts: Of the model.
        imports: Whether names may be import paths.
    """
    recorded = {
        name: config.with_defaults(settings[name], name, imports=imports)
        for name in _TRAINED
        if name in settings
    }
    recorded["data"] = config.section(settings, "data")
    planning = planning_of(settings)
    # other steps of one SDE are no other training
    if planning is not None and facts["plan"]["sde"]:
        recorded["plan"] = planning.of_the_training
    return recorded
