"""Copies of tensors elsewhere or in another dtype, with a check that they are up to date."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Copy(NamedTuple):
    """A copy of a tensor, with that tensor's address and version when it was made."""

    source: Tensor
    version: int
    address: int
    value: Tensor

    @classmethod
    def of(cls, source: Tensor, value: Tensor) -> Copy:
        """A copy of a tensor, valid as long as that stays the same."""
        return cls(source, times_written(source), source.data_ptr(), value)

    def holds(self, source: Tensor) -> bool:
        """Whether it is one of this tensor, as that is now."""
        same = self.source is source and self.version == times_written(source)
        return same and self.address == source.data_ptr()


def times_written(tensor: Tensor) -> int:
    """Number of in-place writes; 0 for tensors made in inference mode, which do not count them."""
    return 0 if tensor.is_inference() else tensor._version


def differentiated(value: Tensor) -> bool:
    """Whether a copy of a tensor is part of a graph or a transform, or may be while compiling."""
    if torch.compiler.is_compiling():
        return True  # asked first: graphs break at the others
    recorded = value.requires_grad and torch.is_grad_enabled()
    return recorded or torch._C._functorch.is_functorch_wrapped_tensor(value)


def lasting(value: Tensor) -> bool:
    """Whether something made of a tensor now may be kept: it is in no graph and no transform."""
    if torch.compiler.is_compiling():
        return False  # as of `differentiated`
    passing = value.requires_grad or torch.is_inference_mode_enabled() or value.is_inference()
    return not (passing or torch._C._functorch.is_functorch_wrapped_tensor(value))
