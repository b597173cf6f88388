"""Moments of simulations: centres, scales and ranges of their numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.bases.moments import MomentsByGroup
from scoresde.blocks import Blocks
from scoresde.checks import expect
from scoresde.internals.limits import chunk_size
from scoresde.internals.messages import join_names, warn

_CLIP = 5.0
"""Deviations of the bulk of observations at which outliers are clipped: beyond what normal numbers
reach, and so near that one in a thousand has no say in a regression."""

_FEW = 0.01
"""The share of observations that may be clipped: more of them are a long tail, which says something
(for `ranks`, or a logarithm)."""

_LONG = 12.0
"""Kurtosis of a long tail: normal numbers have 3, exponential ones 9, log-normal ones 12 where a
deviation is a factor of 1.8."""

_SIMULATIONS = 20
"""How many there are for each observed number where that is given a second coordinate."""

_BULK = (0.15866, 0.5, 0.84134)
"""Quantiles that are a deviation from the mean of normal numbers, and the median."""


def observation_moments(x: Tensor, ranks: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, scales and clipping ranges of observed numbers ``(N, n)``, in float64.

    Warns of numbers with outliers, unless there are ranks, which outliers do not affect.
    """
    groups = MomentsByGroup(Blocks({f"observation[{i}]": 1 for i in range(x.shape[1])}))
    mean, scale = groups.measured(x.split(chunk_size(x.shape[1:])))
    groups.warn(outliers=not ranks)
    constant = groups.names(groups.constant)
    if constant:
        names = join_names(map(repr, constant), 3)
        warn(f"{names}: the same in all simulations, which says nothing; left out")
    middle, bulk, rarely_clipped = _bulk_of(x)
    outlying = groups.outlying & rarely_clipped
    scale = (scale * (len(x) / (len(x) - 1)) ** 0.5).masked_fill(groups.constant, torch.inf)
    mean, scale = (torch.where(outlying, a, b) for a, b in ((middle, mean), (bulk, scale)))
    return mean, scale, torch.full_like(mean, torch.inf).masked_fill(outlying, _CLIP)


def _bulk_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where most of the numbers ``(N, n)`` are, how wide, and whether few are far from there."""
    ordered = x.double().sort(0).values
    lower, middle, upper = (ordered[round(q * (len(x) - 1))] for q in _BULK)
    bulk = (upper - lower) / 2
    few = ((ordered - middle).abs() > _CLIP * bulk).double().mean(0) < _FEW
    return middle, bulk, few & (bulk > 0)


def has_long_tails(x: Tensor) -> bool:
    """Whether a number of observations ``(N, n)`` has long tails: a kurtosis of more than 12.

    Clipped outliers do not count. False where there are few simulations of many numbers, as normal
    scores would be as many predictors again.
    """
    if len(x) < _SIMULATIONS * x.shape[1]:
        return False
    middle, bulk, few = _bulk_of(x)
    clip = torch.where(few, _CLIP * bulk, torch.inf)
    centred = (x.double() - middle).clamp(-clip, clip)
    centred = centred - centred.mean(0)
    variance = centred.square().mean(0)
    kurtosis = centred.pow(4).mean(0) / variance.square()
    return bool((kurtosis > _LONG).any())  # NaN of those that are all the same


def parameter_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of parameters ``(N, m)``, in float64.

    Raises:
        ValueError: If one is the same in all simulations.
    """
    groups = MomentsByGroup(Blocks({f"parameter[{i}]": 1 for i in range(x.shape[1])}))
    mean, std = groups.measured(x.split(chunk_size(x.shape[1:])))
    groups.warn()
    constant = groups.names(groups.constant)
    got = f"the same {join_names(map(repr, constant), 3)} in all simulations"
    expect(not constant, "parameters", "numbers that vary", got)
    return mean, std**2 * (len(x) / (len(x) - 1))


def item_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of numbers in ``(N, n, features)``, without what is missing.

    Deviations are infinite for numbers that never vary.
    """
    expect(values.ndim == 3, "observations", "shape (N, n, features)", tuple(values.shape))
    each = values.double().flatten(0, 1)
    each = each[each.isfinite().all(-1)]
    expect(len(each) > 0, "observations", "items that are there", "none")
    mean, std = each.mean(0), each.std(0, correction=0)
    # a deviation of no more than float64's rounding of the mean, added up, is none
    std = std.masked_fill(std <= 1e-12 * mean.abs(), torch.inf)
    return tuple(v.to(values).expand(values.shape[1:]).clone() for v in (mean, std))  # type: ignore


def whitening(predictors: Tensor) -> Tensor:
    """A matrix that whitens standardised predictors ``(N, n)``, in units of the farthest."""
    n = predictors.shape[1]
    unit = torch.eye(n, dtype=predictors.dtype, device=predictors.device)
    # those that repeat each other, or say nothing, have no inverse: what is new in a number is
    # counted from a thousandth of its deviation on
    covariance = predictors.mT @ predictors / len(predictors) + 1e-6 * unit
    root = torch.linalg.inv(torch.linalg.cholesky(covariance)).mT
    farthest: float = (predictors @ root).norm(dim=-1).amax().item()
    return torch.div(root, max(farthest, 1e-12))
