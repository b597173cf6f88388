"""Levels: integers to densities and back.

Integers ``v`` of ``0..levels-1`` become densities by *uniform dequantisation*: ``y = v + u`` with
``u`` uniform on ``[0, 1)``, scaled to ``x = 2 y / levels - 1`` in ``[-1, 1]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import expect, floating, whole
from scoresde.noise import Generators, Noise


def check_levels(levels: int) -> None:
    """Raises ``ValueError`` unless integers can have so many levels.

    Example:
        >>> from scoresde.data.levels import check_levels
        >>> check_levels(1)
        Traceback (most recent call last):
            ...
        ValueError: levels: expected a whole number of at least 2, got 1
    """
    whole("levels", levels, 2)
    expect(levels <= 2**16, "levels", f"2 to {2**16}", levels)


def dequantize(values: Tensor, levels: int, generator: Generators = None) -> Tensor:
    """Spreads each level over its cell: ``x = 2 (v + u) / levels - 1``, ``u`` uniform on [0, 1).

    Source:
        Theis et al. 2016 (arXiv 1511.01844), section 3.1.

    Args:
        values: ``(*)``, integers of ``0..levels-1``.
        levels: Number of levels.
        generator: Source of ``u``.

    Returns:
        ``(*)`` in ``[-1, 1]``, of the default dtype, which `quantize` takes back exactly.

    Raises:
        ValueError: If ``levels`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import dequantize, quantize
        >>> levels = torch.tensor([0, 1, 255])
        >>> x = dequantize(levels, 256, torch.Generator().manual_seed(0))
        >>> quantize(x, 256)
        tensor([  0,   1, 255])
    """
    check_levels(levels)
    u = Noise.of(generator).uniform(torch.empty(values.shape, device=values.device))
    # Rounding must not carry x over the edge of its cell: float32 cannot tell 255 + u from 256
    # if u is within 2^-17 of 1. Twice levels * eps bounds all roundings, those of `quantize` too.
    margin = 2 * levels * torch.finfo(u.dtype).eps
    return 2 * (values + u.clamp(margin, 1 - margin)) / levels - 1


def quantize(x: Tensor, levels: int) -> Tensor:
    """The levels in whose cells ``x`` lies: ``floor(levels (x + 1) / 2)``, clamped.

    Args:
        x: ``(*)``; what is outside ``[-1, 1]`` goes to the nearest level.
        levels: Number of levels.

    Returns:
        ``(*)``, int64 of ``0..levels-1``.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` has NaN entries, or ``levels`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import quantize
        >>> quantize(torch.tensor([-1.5, -1.0, -0.1, 0.0, 1.0]), levels=4)
        tensor([0, 0, 1, 2, 3])
    """
    check_levels(levels)
    floating("x", x)
    expect(not bool(x.isnan().any()), "x", "numbers", "NaN")
    return ((x + 1) * levels / 2).floor().clamp(0, levels - 1).long()


def bits_per_dim(log_prob: Tensor, dim: int, levels: int) -> Tensor:
    """Bits per dimension of integer data, from the log-density of dequantised data.

    ``x = 2 y / levels - 1`` with ``y = v + u`` has ``p(y) = p(x) (2 / levels)^dim``, so
    ``-log2 p(y) / dim = -log p(x) / (dim ln 2) + log2(levels / 2)``. As ``P(v)`` is the mean of
    ``p(v + u)`` over ``u``, Jensen's inequality makes the expectation over ``u`` an upper bound
    of ``-log2 P(v) / dim`` (Theis et al. 2016, section 3.1).

    Args:
        log_prob: ``(*)``, natural log-density of ``x``, scaled as by `dequantize`.
        dim: Number of components of an event.
        levels: Number of levels.

    Returns:
        ``(*)``.

    Raises:
        ValueError: If ``dim`` is not positive or ``levels`` not in ``2..65536``.

    Example:
        The uniform density on ``[-1, 1]^3`` costs as much as storing the levels.

        >>> import math
        >>> import torch
        >>> from scoresde.data import bits_per_dim
        >>> bits_per_dim(torch.tensor(-3 * math.log(2)), dim=3, levels=256)
        tensor(8.)
    """
    check_levels(levels)
    expect(dim > 0, "dim", "a positive number of components", dim)
    return -log_prob / (dim * math.log(2)) + math.log2(levels / 2)
