"""Tests in float32: values and gradients are finite, and those of float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.testing.measures import DOUBLE, assert_holds, standard_normal

Find = Callable[..., Mapping[str, Tensor]]
"""``(module, *inputs) -> values`` by name, in the dtype of the inputs."""


def assert_single_precision(
    law: str,
    module: nn.Module,
    find: Find,
    *inputs: Any,
    size: Tensor | float = 1.0,
    tolerance: float = 1e-3,
) -> None:
    """Raises ``AssertionError`` unless float32 finds what float64 finds, and its gradients.

    Gradients are those of a random sum of each value, in the inputs and in the module's
    parameters. An error is one of more than ``tolerance`` of the float64 number and its natural
    size: for gradients that of an event's largest, or of the parameters', and 1.

    Args:
        law: Its words.
        module: Copied and cast.
        find: What is found.
        inputs: In float64; what is no floating-point tensor is passed on.
        size: Of values, broadcast.
        tolerance: See above; by default three of the seven digits that float32 has.

    Example:
        >>> import torch
        >>> from scoresde.testing.precision import assert_single_precision
        >>> identity = torch.nn.Identity()
        >>> def find(identity, x): return {"softplus": (1 + identity(x).exp()).log()}
        >>> assert_single_precision("float32 is accurate", identity, find, torch.ones(1, 2))
    """
    single_inputs = [v.to(torch.float32, copy=True) if _real(v) else v for v in inputs]
    actual, expected = (
        _look(module, find, single_inputs, dtype) for dtype in (torch.float32, DOUBLE)
    )
    for name, values in actual.items():
        for what, value in values.items():
            exact = expected[name][what]
            assert_holds(f"{law}: {what} is finite in float64", exact.isfinite(), exact)
            assert_holds(f"{law}: {what} is finite in float32", value.isfinite(), value)
            if what == name:
                scale = exact.abs() + torch.as_tensor(size, dtype=DOUBLE)
            elif " in input " in what and exact.ndim:
                scale = 1 + exact.abs().amax(-1, keepdim=True)
            else:
                slopes = [
                    v for w, v in expected[name].items() if w != name and " in input " not in w
                ]
                scale = 1 + torch.stack([v.abs().amax() for v in slopes]).amax()
            error = (value.double() - exact).abs() / scale
            worst = f"an error of {float(error.max()):.2g} of its size" if error.numel() else ""
            assert_holds(f"{law}: {what} in float32 is that in float64", error <= tolerance, worst)


def _look(
    module: nn.Module, find: Find, inputs: list[Any], dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """Values by name, and beside each its gradients."""
    cast = copy.deepcopy(module).to(dtype)
    typed_inputs = [v.to(dtype).requires_grad_() if _real(v) else v for v in inputs]
    leaves = {f"input {i}": v for i, v in enumerate(typed_inputs) if _real(v)}
    leaves |= {n: p for n, p in cast.named_parameters() if p.requires_grad}
    values: dict[str, dict[str, Tensor]] = {}
    for name, value in find(cast, *typed_inputs).items():
        values[name] = {name: value.detach()}
        if not value.requires_grad:
            continue
        total = (value * standard_normal(*value.shape, seed=5).to(value)).sum()
        slopes = torch.autograd.grad(
            total, [*leaves.values()], retain_graph=True, allow_unused=True
        )
        values[name] |= {
            f"the gradient of {name} in {leaf}": slope.detach()
            for leaf, slope in zip(leaves, slopes, strict=True)
            if slope is not None
        }
    return values


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
