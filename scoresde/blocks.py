"""The layout of a flat state: named blocks of components, coarse first.

A state is one vector of ``n`` coefficients per sample, ``(*batch, n)``. Blocks name contiguous
ranges of it: the bands of a wavelet pyramid, leading and trailing principal components, or the
``x`` and ``y`` of a joint model. Quantities that differ between components (a schedule's
parameter, a speed, a data scale) are broadcast along the *component axis*: their last axis holds
1 entry (shared), one per block, or one per component.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.checks import expect, instance, whole

_MANY = 32
"""Blocks, beyond which the host takes longer to handle each than memory to look numbers up; sums of
their gradients have one order only where each is handled."""


class Blocks:
    """Named contiguous blocks of a flat state.

    Args:
        sizes: Name and number of components of each block, in order, coarse first.

    Raises:
        TypeError: If ``sizes`` is no mapping.
        ValueError: If there is no block, or one is empty.

    Example:
        >>> import torch
        >>> from scoresde import Blocks
        >>> blocks = Blocks({"coarse": 1, "detail": 3})
        >>> blocks.dim, blocks.slices["detail"]
        (4, slice(1, 4, None))
        >>> blocks.expand(torch.tensor([2.0, 5.0]))
        tensor([2., 5., 5., 5.])
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        instance("sizes", sizes, Mapping)
        expect(len(sizes) > 0, "sizes", "at least one block", dict(sizes))
        for name, size in sizes.items():
            whole(f"sizes[{name!r}]", size, 1)
        self.sizes = dict(sizes)
        ends = [0, *itertools.accumulate(self.sizes.values())]
        self.dim = ends[-1]
        self._slices = {k: slice(*v) for k, v in zip(sizes, itertools.pairwise(ends), strict=True)}
        self._prefixes: dict[int, Blocks] = {self.dim: self}
        self._on_device: dict[torch.device, Tensor] = {}

    def singles(self) -> Blocks:
        """Every component as a block, named ``block[i]``, or as its block if it is alone there."""
        return Blocks(
            {
                name if size == 1 else f"{name}[{i}]": 1
                for name, size in self.sizes.items()
                for i in range(size)
            }
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and list(self.sizes.items()) == list(other.sizes.items())

    def __hash__(self) -> int:
        return hash(tuple(self.sizes.items()))

    def __repr__(self) -> str:
        return f"Blocks({self.sizes})"

    @property
    def slices(self) -> dict[str, slice]:
        """The slice of each block in the state."""
        return self._slices

    def prefix(self, dim: int) -> Blocks:
        """The layout of the first ``dim`` components, the last block of which may be cut short."""
        if dim not in self._prefixes:
            sizes = {k: min(s.stop, dim) - s.start for k, s in self.slices.items() if s.start < dim}
            self._prefixes[dim] = Blocks(sizes)
        return self._prefixes[dim]

    def repeated(self, count: int) -> Blocks:
        """The layout of so many copies of a state, one after the other."""
        return Blocks({f"{k}.{i}": n for i in range(count) for k, n in self.sizes.items()})

    def restrict(self, value: Tensor, prefix: Blocks) -> Tensor:
        """The part of values ``(*, 1 | blocks | n)`` that belongs to a prefix."""
        width = value.shape[-1]
        return (
            value if width == 1 else value[..., : prefix.dim if width == self.dim else len(prefix)]
        )

    def check(self, name: str, value: Tensor, alone: bool = False) -> None:
        """Raises ``ValueError`` unless the last axis of ``value`` is a component axis.

        Args:
            name: Of the argument.
            value: Its value.
            alone: Whether that is the only axis it may have: the same for every event.
        """
        if alone:
            expect(value.ndim < 2, name, "one axis at most, of components", tuple(value.shape))
        width = value.shape[-1] if value.ndim else 1
        expect(
            width in (1, len(self), self.dim),
            name,
            f"a last axis of 1 (shared), {len(self)} (one per block: {', '.join(self.sizes)}) "
            f"or {self.dim} (one per component)",
            width,
        )

    def expand(self, value: Tensor) -> Tensor:
        """Repeats per-block values over their components; leaves shared and full ones alone.

        Args:
            value: ``(*, 1 | blocks | n)``.

        Returns:
            ``(*, 1 | n)``: whatever broadcasts against a state.
        """
        if value.ndim == 0 or value.shape[-1] in (1, self.dim):
            return value
        self.check("value", value)
        learned = value.requires_grad and torch.is_grad_enabled()
        if len(self) >= _MANY and not (learned or torch.compiler.is_compiling()):
            return value.index_select(-1, self._owners(value.device))
        parts = zip(value.split(1, -1), self.sizes.values(), strict=True)
        return torch.cat([v.expand(*v.shape[:-1], size) for v, size in parts], -1)

    def _owners(self, device: torch.device) -> Tensor:
        """Index of every component's block, ``(n,)``: sent to a device once."""
        if device not in self._on_device:
            sizes = torch.tensor([*self.sizes.values()], device="cpu")
            owners = torch.arange(len(self), device="cpu").repeat_interleave(sizes)
            self._on_device[device] = owners.to(device, non_blocking=True)
        return self._on_device[device]

    def broadcastable(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Values ``(*, 1 | blocks | n)`` that broadcast against each other."""
        if len({v.shape[-1] for v in values} - {1}) < 2:
            return values
        return tuple(self.expand(v) for v in values)

    def mean(self, value: Tensor) -> Tensor:
        """Averages per-component values ``(*, n)`` over each block: ``(*, blocks)``."""
        return torch.stack([value[..., s].mean(-1) for s in self.slices.values()], dim=-1)

    def average(self, value: Tensor) -> Tensor:
        """The mean over blocks, of whatever size, of ``(*, 1 | blocks | n)``: ``(*,)``.

        Entries that are NaN do not count.
        """
        if value.shape[-1] == 1:
            return value.squeeze(-1)
        kind = value.dtype
        if value.shape[-1] == self.dim:
            total, count = self._sums(value.nan_to_num(0.0)), self._sums(~value.isnan())
            # 0/0 would have no derivative, nor then would sums that other blocks are part of
            value = (total / count.clamp(min=1)).masked_fill(count == 0, torch.nan)
        return _nanmean(value.to(kind))

    def _sums(self, value: Tensor) -> Tensor:
        """Sums of every block, as differences of cumulative ones in full precision."""
        kind = torch.float32 if value.device.type == "mps" else torch.float64
        total = value.cumsum(-1, dtype=kind)
        ends = [total[..., part.stop - 1 : part.stop] for part in self.slices.values()]
        return torch.cat([torch.zeros_like(ends[0]), *ends], -1).diff()


def _nanmean(value: Tensor) -> Tensor:
    finite = ~value.isnan()
    return folded(value.nan_to_num(0.0)) / folded(finite.to(value))


def folded(value: Tensor) -> Tensor:
    """Sum over the last axis, always in the same order.

    `torch.sum` adds in an order that depends on how many sums there are: a sample would depend on
    its batch.
    """
    while (size := value.shape[-1]) > 1:
        half = (size + 1) // 2
        rest = nn.functional.pad(value[..., half:], (0, 2 * half - size))
        value = value[..., :half] + rest
    return value.squeeze(-1)
