"""Linear systems whose matrix is known by products only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    """Solves positive definite systems ``(*batch, m)``, each by itself.

    A learned Jacobian need not be positive definite: directions of negative curvature are left out,
    and the minimum is sought among the others (Steihaug 1983, with a boundary at the start). Nor
    need it be symmetric, and steps may lead away then: the point on the way that misses least is
    returned.

    Args:
        apply: The matrix, times vectors.
        right: Right-hand sides.
        iterations: At most; ``m`` are enough.
    """
    solution, residual = torch.zeros_like(right), right
    direction, power = right, _dot(right, right)
    nearest, least = solution, power
    tiny = torch.finfo(right.dtype).tiny
    for _ in range(min(iterations, right.shape[-1])):
        image = apply(direction)
        curvature = _dot(direction, image)
        length = torch.where(curvature > 0, power / curvature.clamp(min=tiny), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        left = _dot(residual, residual)
        nearest = torch.where(left < least, solution, nearest)
        least = torch.minimum(left, least)
        direction = residual + left / power.clamp(min=tiny) * direction
        power = left
    return nearest


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = (a * b).sum(-1, keepdim=True)
    return product
