"""Distances between the distributions of two sets of features."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect, finite, numbers
from scoresde.precision import full_precision, precision

_ROWS = 1024
"""Of a matrix of pairs that is there at a time: 80 MB of 10,000 others."""


def checked_features(name: str, features: Tensor, least: int, like: Tensor | None = None) -> Tensor:
    """Features in the widest type of their device.

    Args:
        name: Of the argument.
        features: ``(N, d)``.
        least: How many there have to be.
        like: Others, of which they have the number ``d`` and the device.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If they are of another shape or on another device, too few, or not finite.
    """
    features = numbers(name, features).detach()
    features = features.to(precision(features.device))
    matrix = features.ndim == 2 and features.shape[1] > 0
    expect(matrix, name, "features of shape (N, d)", tuple(features.shape))
    expect(len(features) >= least, name, f"at least {least} events", len(features))
    if like is not None:
        expected, got = like.shape[1], features.shape[1]
        expect(got == expected, name, f"{expected} features of an event, as of the others", got)
        there = f"a tensor on {like.device}, as the others"
        expect(features.device == like.device, name, there, features.device)
    finite(name, features)
    return features


@full_precision
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

        |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),

    the square of the 2-Wasserstein distance. With centred features over ``sqrt(N - 1)`` as rows of
    ``A`` and ``B``, ``C_a = A^T A``, and the trace of the root is the sum of singular values of
    ``A B^T``, which is exact for fewer events than features, too. The distance falls with the
    number of events: compare at equal numbers.

    Args:
        a: ``(N, d)``.
        b: ``(M, d)``, on the same device.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, or there are fewer than 2 events.

    Example:
        >>> import torch
        >>> from scoresde.metrics import frechet_distance
        >>> a = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 3.0]])
        >>> round(frechet_distance(a, a + 2), 6)
        8.0
    """
    a = checked_features("a", a, 2)
    b = checked_features("b", b, 2, a)
    means = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (_factor(v) for v in (a, b))
    cross = torch.linalg.svdvals(a @ b.mT).sum()
    value = means + a.square().sum() + b.square().sum() - 2 * cross
    return max(0.0, float(value))  # rounding may have its sign


def _factor(features: Tensor) -> Tensor:
    """``F`` of the covariance ``F^T F``, with no more rows than columns."""
    centred: Tensor = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(centred) <= centred.shape[1]:
        return centred
    factor: Tensor = torch.linalg.qr(centred, mode="r").R
    return factor


@attrs.frozen
class KernelDistance:
    """A kernel distance and its standard error.

    Attributes:
        value: Of the square; unbiased, so that it may be negative where distributions are alike.
        standard_error: Over draws of both sets, by the jackknife.

    Example:
        >>> from scoresde.metrics import KernelDistance
        >>> KernelDistance(0.25, 0.01).value
        0.25
    """

    value: float
    standard_error: float


@full_precision
def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Squared maximum mean discrepancy under a cubic kernel, unbiased (Binkowski et al. 2018).

        E k(a, a') + E k(b, b') - 2 E k(a, b),        k(x, y) = (x . y / d + 1)^3,

    over pairs of different events: their "kernel inception distance", KID, where features are
    those of that network. Its mean does not depend on how many events there are.

    Args:
        a: ``(N, d)``.
        b: ``(M, d)``, on the same device.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, or there are fewer than 3 events.

    Example:
        >>> import torch
        >>> from scoresde.metrics import kernel_distance
        >>> a = torch.tensor([[0.0], [1.0], [2.0]])
        >>> kernel_distance(a, a + 3).value > 10 * kernel_distance(a, a + 1).value
        True
    """
    a = checked_features("a", a, 3)
    b = checked_features("b", b, 3, a)
    n, m = len(a), len(b)
    within = [_kernel_sums(v, v)[0] - _kernel(v, v, paired=True) for v in (a, b)]
    from_a, from_b = _kernel_sums(a, b)
    both = from_a.sum() / (n * m)
    means = [within[0].sum() / (n * (n - 1)), within[1].sum() / (m * (m - 1))]
    left_out = (
        _without_one(within[0], from_a, m) + means[1],
        _without_one(within[1], from_b, n) + means[0],
    )
    variance = sum(float(v.var(unbiased=False)) * (len(v) - 1) for v in left_out)
    return KernelDistance(float(means[0] + means[1] - 2 * both), variance**0.5)


def _without_one(within: Tensor, across: Tensor, others: int) -> Tensor:
    """The estimate without each event of a set in turn, but for the pairs of the other set."""
    n = len(within)
    inner: Tensor = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    outer: Tensor = (across.sum() - across) / ((n - 1) * others)
    return inner - 2 * outer


def _kernel(x: Tensor, y: Tensor, paired: bool = False) -> Tensor:
    products: Tensor = (x * y).sum(-1) if paired else x @ y.mT
    kernel: Tensor = (products / x.shape[-1] + 1) ** 3
    return kernel


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For every ``x`` over all ``y``, and the other way."""
    over_y, over_x = [], y.new_zeros(len(y))
    for rows in x.split(_ROWS):
        kernel = _kernel(rows, y)
        over_y.append(kernel.sum(1))
        over_x += kernel.sum(0)
    return torch.cat(over_y), over_x
