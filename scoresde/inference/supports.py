"""Supports of priors: what parameters are possible, and maps to them from the real line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Transform,
    biject_to,
    constraints,
    identity_transform,
)

from scoresde.checks import expect


def expect_prior(prior: Distribution) -> None:
    """Raises ``ValueError`` unless parameters are numbers, each with a range of its own."""
    expect(prior.batch_shape == (), "prior", "no batch shape (Independent)", prior.batch_shape)
    shape = prior.event_shape
    wanted = "events of one axis or more (Independent(prior.expand((1,)), 1))"
    expect(len(shape) > 0, "prior", wanted, f"one number, {prior}")
    discrete: bool = _support(prior).is_discrete
    expect(not discrete, "prior", "continuous parameters", f"discrete ones, {_support(prior)}")
    from_unconstrained(prior)


def _support(prior: Distribution) -> Any:
    # that of a mixture is its components' in a wrapping that nothing maps to
    return getattr(prior, "component_distribution", prior).support


def bounds(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of parameters that have both; infinite ones of others."""
    support: Any = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    ends = (getattr(support, f"{name}_bound", None) for name in ("lower", "upper"))
    low, high = (torch.tensor(v, device="cpu") if isinstance(v, float | int) else v for v in ends)
    if low is None or high is None:
        return torch.tensor(-torch.inf, device="cpu"), torch.tensor(torch.inf, device="cpu")
    return low, high


def from_unconstrained(prior: Distribution) -> Transform:
    """The map from the real line to parameters; the identity for those between two bounds."""
    if bounds(prior)[0].isfinite().all():
        return identity_transform
    support, shape = _support(prior), prior.event_shape
    try:
        transform: Transform = biject_to(support)
        apart = transform.inverse_shape(shape) == shape
    except NotImplementedError:  # torch knows no map
        apart = False
    wanted = "parameters that are real, positive or between bounds, each by itself"
    expect(apart, "prior", wanted, support)
    return transform
