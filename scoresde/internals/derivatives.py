"""Derivatives of functions that call arbitrary networks.

``torch.func`` differentiates many directions at a time, but takes no networks that checkpoint their
activations or hold a ``torch.autograd.Function`` of the old style. For those ``torch.autograd`` is
used, with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

PullBack = Callable[[Any], Tensor]
"""``v -> J^T v``."""


def vjp(
    function: Callable[[Tensor], Any], at: Tensor, weights: Iterable[Tensor] = ()
) -> tuple[Any, PullBack]:
    """A function's value, and ``v -> J^T v``; both differentiable where gradients are on.

    Args:
        function: Of one tensor.
        at: Where.
        weights: What the function may use that requires gradients. Old reentrant checkpoints write
            to their ``grad``, which is restored; their derivatives have no derivatives.

    Returns:
        The value, and a function of vectors in its shape.
    """
    try:
        value, pull_back = torch.func.vjp(function, at)[:2]
        return value, lambda v: pull_back(v)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch has no kind of its own for what torch.func cannot do
        return _recorded(function, at, list(weights))


def batched(function: PullBack, vectors: Tensor, chunk: int | None = None) -> Tensor:
    """A function of each of several vectors, vectorised if it can be, else one by one.

    Args:
        function: For instance of a `vjp`.
        vectors: ``(k, ...)``.
        chunk: How many at a time; all if None.

    Returns:
        ``(k, ...)``.
    """
    try:
        together: Tensor = torch.func.vmap(function, chunk_size=chunk)(vectors)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return torch.stack([function(v) for v in vectors])
    return together


def _recorded(
    function: Callable[[Tensor], Any], at: Tensor, weights: Sequence[Tensor]
) -> tuple[Any, PullBack]:
    """As `vjp`, by ``torch.autograd``."""
    graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # a name of its own: what else depends on the same tensor is held
        point = at.view_as(at) if graph and at.requires_grad else at.detach().requires_grad_()
        value = function(point)
    returned = value if graph else value.detach()
    if not value.requires_grad:
        return returned, lambda v: torch.zeros_like(at)

    def pull_back(v: Tensor) -> Tensor:
        try:
            (gradient,) = torch.autograd.grad(
                value, point, v, create_graph=graph, retain_graph=True, materialize_grads=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # reentrant checkpoints know `backward` only
            return _Last.apply(_accumulated(function, at, weights, v), returned, error)  # type: ignore
        return gradient

    return returned, pull_back


def _accumulated(
    function: Callable[[Tensor], Any], at: Tensor, weights: Sequence[Tensor], v: Tensor
) -> Tensor:
    """``J^T v`` by `torch.Tensor.backward`, whose other traces are removed."""
    if torch._C._functorch.is_batchedtensor(v):
        raise RuntimeError("gradients are accumulated for one vector at a time")
    leaves = [w for w in weights if w.requires_grad and w.is_leaf]
    saved_grads = [w.grad for w in leaves]
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        value = function(leaf)
    try:
        for w in leaves:
            w.grad = None  # what is there would be added to in place
        value.backward(v)
    finally:
        for w, grad in zip(leaves, saved_grads, strict=True):
            w.grad = grad
    return torch.zeros_like(at) if leaf.grad is None else leaf.grad


class _Last(torch.autograd.Function):
    """Passes a derivative on that cannot be differentiated again, and raises where one tries to."""

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, value: Tensor, error: RuntimeError) -> Tensor:
        ctx.error = error
        return derivative.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise RuntimeError(
            "network: expected derivatives that can be differentiated in turn (checkpoints with "
            "use_reentrant=False, functions whose backward is made of tensors), got ones that can "
            f"be evaluated only: {ctx.error}"
        ) from ctx.error
