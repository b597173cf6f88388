"""What a model remembers of its data, and what its parts are supplied with of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.app import config
from scoresde.app.factories import ConfigError
from scoresde.checks import expect
from scoresde.data import Dataset

_IMAGE = 3
"""Axes of an image, ``(channels, height, width)``."""

_FAR = 4.0
"""Deviations from the mean at which vectors and maps stand for none: hardly any of the data are
that far, in all of their components, and networks still learn from numbers of this size."""


def facts_of(data: Dataset) -> dict[str, Any]:
    """Facts about data that a model remembers, as JSON.

    Beside what a `Dataset` says of its events these are ``classes`` by name and ``class_counts``,
    or ``condition_shape``, ``condition_mean`` and ``condition_std`` of conditions in memory.
    """
    facts = {
        "event_shape": list(data.event_shape),
        "bins": data.bins,
        "columns": None if data.columns is None else list(data.columns),
        "missing": data.missing,
        "parts": None if data.parts is None else {k: list(v) for k, v in data.parts.items()},
    }
    conditions = data.condition
    if not isinstance(conditions, Tensor):
        return facts
    if data.classes is not None:
        counts = torch.bincount(conditions, minlength=len(data.classes)).tolist()
        return {**facts, "classes": list(data.classes), "class_counts": counts}
    # maps have one scale, as images do
    axes = 0 if conditions.ndim == 2 else tuple(range(conditions.ndim))
    mean, std = conditions.double().mean(axes), conditions.double().std(axes, correction=0)
    moments = {"condition_mean": mean.tolist(), "condition_std": std.tolist()}
    return {**facts, "condition_shape": list(data.condition_shape or ()), **moments}


def expect_events(data: Dataset, facts: Mapping[str, Any], known: str) -> None:
    """Raises ``ValueError`` for events of another shape than those of a model.

    Args:
        data: The events.
        facts: Of the model.
        known: Where it knows them from, for the message.
    """
    shape, got = tuple(facts["event_shape"]), tuple(data.event_shape)
    hint = f" (size = {[*shape[1:]]} resizes them)" if len(shape) == len(got) == _IMAGE else ""
    kind = "images" if hint else "events"
    expect(got == shape, "data", f"{kind} {shape}, {known}{hint}", got)


def supplied_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Values for arguments that are supplied, by the names of `scoresde.app.config.SUPPLIED`."""
    supplied: dict[str, Any] = {"event_shape": tuple(facts["event_shape"]), **_of_conditions(facts)}
    if facts.get("parts") is not None:
        supplied["parts"] = {name: tuple(shape) for name, shape in facts["parts"].items()}
    for key in ("data_mean", "data_std"):
        if key in facts:
            supplied[key] = torch.tensor(facts[key], dtype=torch.float64, device="cpu")
    return supplied


def pretrained_facts(
    table: Any, key: str = "estimator", *, imports: bool = False
) -> dict[str, Any] | None:
    """Facts about the data of an estimator that was trained elsewhere.

    Its factory has an attribute ``facts``, a function of the same arguments.

    Args:
        table: Of a configuration.
        key: Where it stands there.
        imports: Whether names may be import paths.

    Returns:
        As of `facts_of`; None of an estimator that is to be trained.

    Raises:
        ConfigError: If they cannot be found out.
    """
    factory, entries = config.arguments_of(table, key, imports=imports)
    facts = getattr(factory, "facts", None)
    if facts is None:
        inner = entries.get("estimator")
        return inner and pretrained_facts(inner, f"{key}.estimator", imports=imports)
    try:
        return {"columns": None, "missing": False, "parts": None, **facts(**entries)}
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _of_conditions(facts: Mapping[str, Any]) -> dict[str, Any]:
    if facts.get("classes"):
        count = len(facts["classes"])
        return {"classes": count, "null_condition": count}
    if not facts.get("condition_shape"):
        return {}
    shape = facts["condition_shape"]
    mean, std = (
        torch.tensor(facts[f"condition_{name}"], dtype=torch.float64, device="cpu")
        for name in ("mean", "std")
    )
    std = torch.where(std > 0, std, 1.0)
    null = (mean - _FAR * std).expand(shape).float()
    if len(shape) > 1:
        return {"condition_channels": shape[0], "null_condition": null}
    scales = {"condition_mean": mean, "condition_std": std}
    return {"condition_dim": shape[0], "null_condition": null, **scales}
