"""Checks for finite numbers with one synchronisation of the device, and warnings of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import finite
from scoresde.internals.messages import warn

_ERROR_LIMIT = 0.5
"""Nats over the root of the number of components, as `scoresde.Quadrature` has tolerances."""


def all_finite(values: Mapping[str, Tensor], origin: str = "", *also: Tensor) -> bool:
    """As `scoresde.checks.finite`, for several tensors with one synchronisation.

    Args:
        values: Named tensors, the last of which is a result.
        origin: Of the result.
        also: Conditions that are read at the same time.

    Returns:
        Whether all conditions hold.
    """
    good = [torch.isfinite(value).all() for value in values.values()]
    fine = bool(torch.stack([*good, *(truth.all() for truth in also)]).all())
    if not fine:
        *inputs, (result, value) = values.items()
        for name, each in inputs:
            finite(name, each)
        finite(result, value, origin)
    return fine


def error_limit(dim: int) -> float:
    """Errors of log-densities of ``dim`` components, in nats, above which a warning is due."""
    return float(_ERROR_LIMIT * dim**0.5)


def warn_of_errors(errors: Tensor, limit: float, method: Any) -> None:
    """Warns that log-densities may be wrong, and says what can be done.

    Args:
        errors: In nats, some above the limit.
        limit: Of `error_limit`.
        method: What they were found by.
    """
    count, total, worst = int((errors > limit).sum()), errors.numel(), float(errors.max())
    warn(
        f"log_prob: expected errors below {limit:.2g} nats, got up to {worst:.3g}, of {count} of "
        f"{total} events, by {method!r}: take more steps or smaller tolerances "
        "(of all methods scoresde.Quadrature needs fewest)"
    )
