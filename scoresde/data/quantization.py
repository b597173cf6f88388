"""Quantisation: integers as real numbers in bins, and back.

An integer ``v`` of ``0..bins-1`` becomes a number in its bin by *uniform dequantisation*,
``y = v + u`` with ``u`` uniform on ``[0, 1)``, scaled to ``x = 2 y / bins - 1`` in ``[-1, 1]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import expect, floating, whole
from scoresde.noise import Generators, Noise


def check_bins(bins: int) -> None:
    """Raises ``ValueError`` unless ``bins`` is a whole number in ``2..65536``."""
    whole("bins", bins, 2)
    expect(bins <= 2**16, "bins", f"2 to {2**16}", bins)


def dequantize(values: Tensor, bins: int, generator: Generators = None) -> Tensor:
    """Spreads each integer over its bin: ``x = 2 (v + u) / bins - 1``, ``u`` uniform on [0, 1).

    Source:
        Theis et al. 2016 (arXiv 1511.01844), section 3.1.

    Args:
        values: ``(*)``, integers of ``0..bins-1``.
        bins: Number of bins.
        generator: Source of ``u``.

    Returns:
        ``(*)`` in ``[-1, 1]``, of the default dtype, which `quantize` takes back exactly.

    Raises:
        ValueError: If ``bins`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import dequantize, quantize
        >>> values = torch.tensor([0, 1, 255])
        >>> x = dequantize(values, 256, torch.Generator().manual_seed(0))
        >>> quantize(x, 256)
        tensor([  0,   1, 255])
    """
    check_bins(bins)
    u = Noise.of(generator).uniform(torch.empty(values.shape, device=values.device))
    # Rounding must not carry x over the edge of its bin: float32 cannot tell 255 + u from 256
    # if u is within 2^-17 of 1. Twice bins * eps bounds all roundings, those of `quantize` too.
    margin = 2 * bins * torch.finfo(u.dtype).eps
    return 2 * (values + u.clamp(margin, 1 - margin)) / bins - 1


def bin_centres(values: Tensor, bins: int) -> Tensor:
    """The middles of the bins of integers, ``(2 v + 1) / bins - 1``: `dequantize` without noise."""
    return (2 * values.to(torch.get_default_dtype()) + 1) / bins - 1


def quantize(x: Tensor, bins: int) -> Tensor:
    """The integers in whose bins ``x`` lies: ``floor(bins (x + 1) / 2)``, clamped.

    Args:
        x: ``(*)``; what is outside ``[-1, 1]`` goes to the nearest bin.
        bins: Number of bins.

    Returns:
        ``(*)``, int64 of ``0..bins-1``.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` has NaN entries, or ``bins`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import quantize
        >>> quantize(torch.tensor([-1.5, -1.0, -0.1, 0.0, 1.0]), bins=4)
        tensor([0, 0, 1, 2, 3])
    """
    check_bins(bins)
    floating("x", x)
    expect(not bool(x.isnan().any()), "x", "numbers", "NaN")
    return ((x + 1) * bins / 2).floor().clamp(0, bins - 1).long()


def bits_per_dim(log_prob: Tensor, dim: int, bins: int) -> Tensor:
    """Bits per dimension of integer data, from the log-density of dequantised data.

    ``x = 2 y / bins - 1`` with ``y = v + u`` has ``p(y) = p(x) (2 / bins)^dim``, so
    ``-log2 p(y) / dim = -log p(x) / (dim ln 2) + log2(bins / 2)``. As ``P(v)`` is the mean of
    ``p(v + u)`` over ``u``, Jensen's inequality makes the expectation over ``u`` an upper bound
    of ``-log2 P(v) / dim`` (Theis et al. 2016, section 3.1).

    Args:
        log_prob: ``(*)``, natural log-density of ``x``, scaled as by `dequantize`.
        dim: Number of components of an event.
        bins: Number of bins.

    Returns:
        ``(*)``.

    Raises:
        ValueError: If ``dim`` is not positive or ``bins`` not in ``2..65536``.

    Example:
        The uniform density on ``[-1, 1]^3`` costs as much as storing the integers.

        >>> import math
        >>> import torch
        >>> from scoresde.data import bits_per_dim
        >>> bits_per_dim(torch.tensor(-3 * math.log(2)), dim=3, bins=256)
        tensor(8.)
    """
    check_bins(bins)
    expect(dim > 0, "dim", "a positive number of components", dim)
    return -log_prob / (dim * math.log(2)) + math.log2(bins / 2)
