"""Section ``plan`` of a configuration: when blocks are dropped and where steps are, from the data.

    [plan]
    cost = 4.0             # evaluations at full resolution, or evaluations = 12, or error = 1e-3

It stands for entries of other sections, which are left out there: ``drop``, ``speeds``, ``delays``
and ``scale`` of ``sde``, and ``steps`` and ``grid`` of ``solver``. If the SDE has a ``drop`` of its
own, on whatever clocks, only steps are planned. Where parts of events are given, the part that is
sampled is planned, and the given ones are there from the first time on. A model remembers its plan.

Steps are planned again after training if the schedule is learned, or with ``learned``; stages are
kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.app import config
from scoresde.app.factories import ConfigError, call_factory
from scoresde.app.parts import given_parts
from scoresde.bases import Basis, Joint
from scoresde.checks import choice, expect, positive, real, validator, whole
from scoresde.data import Dataset
from scoresde.data.events import as_numbers
from scoresde.estimator import ScoreEstimator
from scoresde.internals.limits import expect_memory
from scoresde.internals.messages import describe_error, join_names
from scoresde.planning import DenoisingErrors, Plan, kurtosis, plan, replan, spectra
from scoresde.precision import device_of
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.solver import Solver

_OF_SDE, _OF_SOLVER = ("drop", "speeds", "delays", "scale"), ("steps", "grid")
"""Entries that a plan sets."""

_FEWEST, _MOST, _NUMBERS = 200, 1000, 2**24
"""Events that are looked at: of large ones fewer, and some hundreds will do."""

_LARGEST = 1e9
"""Largest budget: more would take too long."""

_BYTES = 24
"""Bytes for a number of those: as it is, as a coefficient, and around its mean."""


def _positive() -> Any:
    checks = [validator(real, 0, _LARGEST), validator(positive)]
    return attrs.field(default=None, validator=attrs.validators.optional(checks))


@attrs.frozen(kw_only=True)
class Planning:
    """Section ``plan``: arguments of `scoresde.planning.plan`.

    Args:
        error: Wanted ``W2^2 / trace`` between samples and data.
        cost: Allowed evaluations of the networks, in units of one at full resolution.
        evaluations: Allowed number of steps in all.
        kurtosis: Whether steps are placed for tails as heavy as the data's.
        events: How many of the training's events are used; some hundreds if None.
        learned: Whether steps are planned again for the errors of the trained networks on held-out
            events, see `scoresde.planning.DenoisingErrors`.
        delays: Whether bands may be delayed as well.

    Example:
        >>> from scoresde.app.plans import Planning
        >>> Planning(cost=3.0).budget
        {'cost': 3.0}
    """

    error: float | None = _positive()
    cost: float | None = _positive()
    evaluations: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 1))
    )
    kurtosis: bool = attrs.field(default=True, validator=validator(choice, False, True))
    events: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 2))
    )
    learned: bool = attrs.field(default=False, validator=validator(choice, False, True))
    delays: bool = attrs.field(default=False, validator=validator(choice, False, True))

    @property
    def budget(self) -> dict[str, float]:
        """Error, cost and evaluations, as far as they are given."""
        values = {name: getattr(self, name) for name in ("error", "cost", "evaluations")}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def of_the_training(self) -> dict[str, Any]:
        """The settings on which stages depend, and so the training."""
        return attrs.asdict(self, filter=lambda field, _: field.name != "learned")


def planning_of(settings: Mapping[str, Any]) -> Planning | None:
    """The plan that a configuration asks for, if any.

    Raises:
        ConfigError: If a setting is unknown, or an entry that a plan sets is in another section as
            well.
    """
    if "plan" not in settings:
        return None
    planning: Planning = call_factory(Planning, config.section(settings, "plan"), "plan")
    if not planning.budget:
        raise ConfigError("plan: expected a cost, evaluations or an error, got none")
    for name, entries in (("solver", _OF_SOLVER), ("sde", _OF_SDE)):
        table = settings.get(name)
        table = table if isinstance(table, Mapping) else {}
        for entry in entries:
            if entry in table and not (name == "sde" and "drop" in table):
                raise ConfigError(f"{name}.{entry}: expected none, as [plan] finds it, got one")
    return planning


def with_plan(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what was planned in the place of section ``plan``.

    Args:
        settings: The configuration.
        facts: Of the model, with a ``plan``.

    Raises:
        ConfigError: If nothing has been planned yet.
    """
    full = {name: table for name, table in settings.items() if name != "plan"}
    if "plan" not in settings:
        return full
    match facts.get("plan"):
        case {"sde": dict(sde), "solver": dict(solver)}:
            pass
        case other:
            raise ConfigError(f"plan: expected one that was made of data, got {other!r}")
    for name, own, entries in (("sde", sde, _OF_SDE), ("solver", solver, _OF_SOLVER)):
        table = settings[name]
        table = table if isinstance(table, Mapping) else {"name": table}
        full[name] = {**table, **{entry: own[entry] for entry in entries if entry in own}}
    return full


def plan_facts(
    settings: Mapping[str, Any],
    planning: Planning,
    supplied: Mapping[str, Any],
    data: Iterable[Tensor],
    imports: bool = False,
) -> dict[str, Any]:
    """A plan for data, as a model remembers it.

    Args:
        settings: The configuration.
        planning: What it asks for.
        supplied: See `scoresde.app.config.build`, with the SDE's ``basis``.
        data: Events, in pieces; the first are looked at.
        imports: Whether names may be import paths.

    Returns:
        Entries of ``sde`` and ``solver``, and what else a `scoresde.planning.Plan` says:
        ``stages``, the steps of each, ``cost``, ``error`` and ``prior_loss``.

    Raises:
        ConfigError: If there is no plan like that.
    """

    def build(name: str, table: Any) -> Any:
        return config.build(table, name, supplied, imports=imports)

    basis, table = supplied.get("basis"), settings.get("sde")
    if basis is None or not isinstance(table, Mapping) or "schedule" not in table:
        raise ConfigError("plan: expected an sde with a schedule and a basis, got another")
    solver = build("solver", settings["solver"])
    try:
        count, own, x = _sampled(settings, basis, _events(data, planning, basis.dim))
        bands, options = spectra(own, x), _options(planning, own, x)
        for name, said_so in (("sde.drop", "drop" in table), ("plan.learned", planning.learned)):
            if said_so and count:
                raise ConfigError(f"{name}: expected none beside parts that are given, got one")
        if "drop" in table:
            wanted = "none asked for of an sde that says its drop"
            expect(not planning.delays, "delays", wanted, True)
            sde: DiagonalSDE = build("sde", {**table, "basis": basis})
            return {"sde": {}, **_facts(replan(sde, bands, solver, **options))}
        options["delays"] = planning.delays
        found = plan(own, build("sde.schedule", table["schedule"]), bands, solver, **options)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"plan: {describe_error(error)}") from error
    last, before = found.sde.T, _units(basis, supplied["data_std"])[:count] if count else []
    scales = {
        "drop": [*[last] * count, *found.sde.drop],
        "speeds": [*[1.0] * count, *found.sde.clock.speeds.tolist()],
        "scale": [*before, *found.sde.scale.tolist()],
    }
    if found.sde.clock.delays is not None:
        scales["delays"] = [*[0.0] * count, *found.sde.clock.delays.tolist()]
    return {"sde": scales, **_facts(found)}


def replanned_facts(
    settings: Mapping[str, Any],
    planning: Planning,
    facts: Mapping[str, Any],
    estimator: ScoreEstimator,
    solver: Solver,
    data: Iterable[Tensor],
    held_out: Dataset,
) -> dict[str, Any]:
    """A plan with other steps, for a trained estimator, where that matters.

    Args:
        settings: The configuration.
        planning: What it asks for.
        facts: What `plan_facts` has made.
        estimator: The trained one.
        solver: That walks the plan.
        data: As of `plan_facts`.
        held_out: Events, with their conditions, of which networks miss something.

    Raises:
        ConfigError: If there is no plan like that.
    """
    sde = copy.deepcopy(estimator.sde).cpu()
    assert isinstance(sde, DiagonalSDE)
    if not (planning.learned or any(True for _ in sde.schedule.parameters())):
        return dict(facts)
    try:
        count, own, x = _sampled(settings, sde.basis, _events(data, planning, sde.basis.dim))
        bands, options = spectra(own, x), _options(planning, own, x)
        if facts["sde"]:
            kept = {name: values[count:] for name, values in facts["sde"].items()}
            sde = DiagonalSDE(sde.schedule, own, **kept)
        if planning.learned:
            options["learned"] = _missed(estimator, held_out, _count(planning, own.dim))
        return {**facts, **_facts(replan(sde, bands, solver, **options))}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"plan: {describe_error(error)}") from error


def _missed(estimator: ScoreEstimator, data: Dataset, count: int) -> DenoisingErrors:
    where, (values, conditions) = device_of(estimator), data.pairs(slice(count))
    x = as_numbers(values, data.bins, torch.Generator(values.device).manual_seed(0)).to(where)
    noise = torch.Generator(where).manual_seed(0)
    condition = None if conditions is None else conditions.to(where)
    return DenoisingErrors.of(estimator, x, generator=noise, condition=condition)


def _options(planning: Planning, basis: Basis, x: Tensor) -> dict[str, Any]:
    return {**planning.budget, "kurtosis": kurtosis(basis, x) if planning.kurtosis else None}


def _sampled(settings: Mapping[str, Any], basis: Basis, x: Tensor) -> tuple[int, Basis, Tensor]:
    """The part of the events that is planned: the last one, where parts are given.

    Returns:
        How many blocks are before it, its basis, and its events.
    """
    if not isinstance(basis, Joint) or not (given := given_parts(settings)):
        return 0, basis, x
    rest = [name for name in basis.parts if name not in given]
    one = "one part that is not given, the last of them"
    expect(rest == [*basis.parts][-1:], "parts", one, join_names(rest))
    (name,) = rest
    own, start = basis.parts[name], basis.slices[name].start
    assert isinstance(own, Basis)
    count = sum(block.stop <= start for block in basis.blocks.slices.values())
    return count, own, basis.split(x)[name]


def _units(basis: Basis, std: Tensor) -> list[float]:
    """Deviations of all blocks, to four digits."""
    each = basis.blocks.expand(std.double() ** 2).expand(basis.dim)
    return [float(f"{v:.4g}") for v in basis.blocks.mean(each).sqrt().tolist()]


def _count(planning: Planning, dim: int) -> int:
    return planning.events or min(_MOST, max(_FEWEST, _NUMBERS // dim))


def _events(data: Iterable[Tensor], planning: Planning, dim: int) -> Tensor:
    count = _count(planning, dim)
    expect_memory("events", _BYTES * count * dim)
    parts: list[Tensor] = []
    for part in data:
        parts.append(part[: count - sum(map(len, parts))])
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)


def _facts(found: Plan) -> dict[str, Any]:
    return {
        "solver": {"steps": sum(found.steps), "grid": found.times.tolist()},
        "stages": list(found.steps),
        **{name: getattr(found, name) for name in ("cost", "error", "prior_loss")},
    }


def plan_summary(facts: Mapping[str, Any]) -> str:
    """A line about a plan, for users."""
    steps = "+".join(map(str, facts["stages"]))
    return (
        f"planned: {steps} steps, coarse first, of cost {facts['cost']:.3g} "
        f"and error {facts['error']:.2g}"
    )
