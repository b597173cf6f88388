"""The identity of a training run, which a resumed one must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from scoresde.data import Dataset
from scoresde.estimator import ScoreEstimator
from scoresde.training.fingerprint import Fingerprint, Plain, content, differences, fingerprint

_STEPS = "training.steps"
"""The one setting that may grow: a run is extended."""

_SHOWN = 3
"""So many differences are said: the first is mostly the cause of the others."""

_ESTIMATOR = "estimator"

_SECTIONS = ("sde", "estimator", "plan")
"""Those of a configuration that say what is trained; data are judged by their content."""


class RunMismatch(ValueError):
    """A run that is to be resumed is another one; the message names what differs."""


@attrs.define
class RunIdentity:
    """Estimator, data and settings of a run, as plain values by name.

    Attributes:
        entries: Fingerprints from before the first update.
        moved: Names of entries that training itself changes.
        settings: The configuration that estimator and data were built from, by key, if there is
            one.
    """

    entries: Fingerprint
    moved: set[str] = attrs.field(factory=set)
    settings: Fingerprint | None = None

    @classmethod
    def of(
        cls,
        training: Fingerprint,
        estimator: ScoreEstimator,
        data: Dataset,
        held_out: Dataset | None = None,
        on_step: object = None,
        settings: Mapping[str, Any] | None = None,
    ) -> RunIdentity:
        """A run's, before its first update; see `scoresde.training.Training.fit`."""
        entries = {**training, **content("data", data), **content("held_out", held_out)}
        if attrs.has(type(on_step)):  # with values: other callables have none
            entries |= fingerprint("on_step", on_step)
        known = None if settings is None else dict(_keys("", settings))
        return cls({**entries, **fingerprint(_ESTIMATOR, estimator)}, settings=known)

    def note_changes(self, estimator: ScoreEstimator) -> None:
        """Records which entries training has changed: these may differ."""
        now = fingerprint(_ESTIMATOR, estimator)
        names = {name for name in self.entries if name.startswith(_ESTIMATOR)} | now.keys()
        self.moved |= {name for name in names if self.entries.get(name, now) != now.get(name, now)}

    def differences(self, other: RunIdentity) -> list[str]:
        """Sentences about what differs in another run; keys of the configuration first."""
        changes = differences(self.entries, other.entries, {*self.moved, _STEPS})
        steps, wanted = (identity.entries.get(_STEPS, 0) for identity in (other, self))
        if int(steps or 0) < int(wanted or 0):
            changes.insert(0, f"{_STEPS}: expected {wanted} or more, got {steps}")
        data = any(change.startswith(("data", "held_out")) for change in changes)
        sections = (*_SECTIONS, *(["data"] if data else []))
        keys: list[str] = []
        if self.settings is not None and other.settings is not None:
            keys = differences(self.settings, other.settings)
        keys = [key for key in keys if key.startswith(sections)]
        # what an entry of a configuration or its data make of the estimator goes without saying
        caused = bool(keys) or (data and self.settings is not None)
        return keys + [
            change for change in changes if not (caused and change.startswith(_ESTIMATOR))
        ]

    def check_same(self, other: RunIdentity, folder: object) -> None:
        """Raises `RunMismatch` that names what differs in another one, if anything does."""
        changes = self.differences(other)
        if changes:
            more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            text = "; ".join(changes[:_SHOWN]) + more
            raise RunMismatch(f"folder: the run in {folder} is another one: {text}")

    def digests(self) -> dict[str, int]:
        """A number for every entry that several processes must share."""
        parts: dict[str, Fingerprint] = {"on_step": {}}
        for name, value in self.entries.items():
            section = name.partition(".")[0]
            parts.setdefault(name if section == "training" else section, {})[name] = value
        hashed = {k: hashlib.sha256(json.dumps(v).encode()).digest() for k, v in parts.items()}
        return {name: int.from_bytes(digest[:7], "big") for name, digest in sorted(hashed.items())}


def _keys(key: str, value: Any) -> Iterator[tuple[str, Plain]]:
    """A configuration's entries, by where they stand; a name alone is a table with that name."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            known = isinstance(part, str) and name in _NAMED
            yield from _keys(f"{key}.{name}" if key else name, {"name": part} if known else part)
    else:
        yield key, value if isinstance(value, (str, int, float)) else repr(value)


_NAMED = ("sde", "schedule", "basis", "estimator", "network")
