"""A check of numbers on a device, for which the host waits once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.checks import finite


def all_finite(values: Mapping[str, Tensor], origin: str = "") -> None:
    """As `scoresde.checks.finite`, of several with one look, at the first that is not.

    Args:
        values: By what they are called; the last is a result.
        origin: Of the result.

    Example:
        >>> import torch
        >>> from scoresde.likelihood.finite import all_finite
        >>> all_finite({"x": torch.zeros(1), "log_prob": torch.zeros(1)}, "from DDIM")
        >>> all_finite({"x": torch.zeros(1), "log_prob": torch.tensor([torch.nan])})
        Traceback (most recent call last):
            ...
        ValueError: log_prob: expected finite numbers, got 1 NaN or infinite of 1, the first at [0]
    """
    good = [torch.isfinite(value).all() for value in values.values()]
    if not bool(torch.stack(good).all()):
        *inputs, (result, value) = values.items()
        for name, each in inputs:
            finite(name, each)
        finite(result, value, origin)
