"""Matrices of copies that multiply states as coefficients do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.blocks import Blocks


class Mixing:
    """Small matrices, one per component, that multiply a state of several copies.

    ``mixing * y`` is ``sum_q M_pq y_q`` for states whose copies ``p`` and ``q`` lie one after the
    other; `torch.addcmul` takes it, too. So solvers work with matrices as with numbers.

    Args:
        matrices: ``(*, k, k, 1 | blocks | n)``: the component axis is last.
        blocks: Of one copy.

    Example:
        >>> import torch
        >>> from scoresde import Blocks
        >>> from scoresde.phase_space.mixing import Mixing
        >>> turn = Mixing(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).unsqueeze(-1), Blocks({"x": 2}))
        >>> turn * torch.tensor([1.0, 2.0, 3.0, 4.0])  # positions, and velocities
        tensor([ 3.,  4., -1., -2.])
    """

    _PRODUCTS: ClassVar[Mapping[Any, Callable[..., Tensor]]] = {
        torch.addcmul: lambda base, a, b: torch.add(base, a * b),
        torch.Tensor.addcmul_: lambda base, a, b: base.add_(a * b),
    }

    def __init__(self, matrices: Tensor, blocks: Blocks) -> None:
        self.matrices, self.blocks = matrices, blocks

    def __mul__(self, y: Tensor) -> Tensor:
        copies = self.matrices.shape[-2]
        matrices = self.blocks.expand(self.matrices)
        mixed: Tensor = (matrices * y.unflatten(-1, (1, copies, -1))).sum(-2)
        return mixed.flatten(-2)

    def __rmul__(self, factor: float) -> Self:
        return type(self)(factor * self.matrices, self.blocks)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        product = cls._PRODUCTS.get(func)
        return NotImplemented if product is None or kwargs else product(*args)

    # As a coefficient (*, k n): see `scoresde.equation.Coefficients.cast`.

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a coefficient of every component of all copies."""
        return (*self.matrices.shape[:-3], self.matrices.shape[-2] * self.blocks.dim)

    @property
    def ndim(self) -> int:
        """Length of `shape`."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """The device of the matrices."""
        return self.matrices.device

    @property
    def dtype(self) -> torch.dtype:
        """Theirs."""
        return self.matrices.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The matrices in another dtype or on another device."""
        return type(self)(self.matrices.to(*args, **kwargs), self.blocks)

    def __getitem__(self, index: Any) -> Self:
        return type(self)(self.matrices[index], self.blocks)

    def unbind(self) -> list[Self]:
        """One by one along the first axis."""
        return [type(self)(matrices, self.blocks) for matrices in self.matrices.unbind()]
