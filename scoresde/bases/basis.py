"""What turns events into coefficients: orthonormal, or not a basis here.

``z = U x`` with ``U U^T = 1``: lengths, Gaussian noise and densities are the same on both sides,
and scores transform as ``score_x = U^T score_z``. Only a basis knows how blocks of coefficients
make up an image or a signal; everything else sees a flat state ``(*batch, n)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.blocks import Blocks
from scoresde.checks import expect, finite, floating, sizes, trailing_shape


class Basis(nn.Module, ABC):
    """An orthonormal change of coordinates between events and flat coefficients.

    Subclasses implement `analyse` and `synthesise`; calling the basis and `inverse` add the
    checks of shape and dtype. Coefficients come in the dtype of the events. Floating-point
    buffers keep their precision: casting a module moves them to its device but does not round
    them, as a rounded basis would no longer be orthonormal.

    Args:
        event_shape: Shape of one event.
        blocks: Layout of the coefficients, coarse first; its size is that of the event.

    Raises:
        ValueError: If the event shape is empty or not positive, or the blocks do not cover it.

    Example:
        >>> import torch
        >>> from scoresde import Basis, Blocks
        >>> class Reversed(Basis):
        ...     def analyse(self, x): return x.flip(-1)
        ...     def synthesise(self, z): return z.flip(-1)
        >>> basis = Reversed((3,), Blocks({"last": 1, "rest": 2}))
        >>> basis(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 2., 1.])
    """

    def __init__(self, event_shape: Sequence[int], blocks: Blocks) -> None:
        super().__init__()
        self.event_shape = checked_shape(event_shape)
        expect(
            blocks.dim == self.event_shape.numel(),
            "blocks",
            f"{self.event_shape.numel()} components for event shape {tuple(event_shape)}",
            blocks.dim,
        )
        self.blocks = blocks

    @property
    def dim(self) -> int:
        """Number of components ``n``."""
        return self.blocks.dim

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """``U x``: ``(*batch, *event_shape)`` to ``(*batch, n)``."""

    @abstractmethod
    def synthesise(self, z: Tensor) -> Tensor:
        """``U^T z``: ``(*batch, n)`` to ``(*batch, *event_shape)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Coefficients of events, checked.

        Args:
            x: ``(*batch, *event_shape)``.

        Returns:
            ``(*batch, n)``.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If its trailing shape is not the event shape.
        """
        floating("x", x)
        trailing_shape("x", x, self.event_shape)
        return self.analyse(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Events of coefficients, checked.

        Args:
            z: ``(*batch, n)``.

        Returns:
            ``(*batch, *event_shape)``.

        Raises:
            TypeError: If ``z`` is not a floating-point tensor.
            ValueError: If its last axis is not ``n``.
        """
        floating("z", z)
        trailing_shape("z", z, torch.Size([self.dim]))
        return self.synthesise(z)

    def flatten(self, x: Tensor) -> Tensor:
        """``(*batch, *event_shape)`` to ``(*batch, n)``, row-major."""
        if len(self.event_shape) == 1:
            return x
        return x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.dim)

    def unflatten(self, z: Tensor) -> Tensor:
        """``(*batch, n)`` to ``(*batch, *event_shape)``, row-major."""
        if len(self.event_shape) == 1:
            return z
        return z.reshape(*z.shape[:-1], *self.event_shape)

    def moments(self, data: Tensor | Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean of every coefficient and standard deviation of every block.

        Args:
            data: Events, ``(N, *event_shape)``, or pieces of them, one after the other.

        Returns:
            ``(n,)`` and ``(blocks,)``, in float64; deviations are at least 1e-3 of the largest,
            so that constant coefficients do no harm as a scale.

        Raises:
            TypeError: If ``data`` is not a floating-point tensor.
            ValueError: If its trailing shape is not the event shape, or it is not finite.
        """
        mean, square = spread((self(x.double()) for x in pieces(data)), lambda z: (z**2).sum(0))
        variance = self.blocks.mean(square)
        floor = 1e-6 * variance.amax().clamp(min=1e-12)
        return mean, variance.clamp(min=floor).sqrt()

    def extra_repr(self) -> str:
        """Shape and blocks, for ``print(basis)``."""
        return f"event_shape={tuple(self.event_shape)}, blocks={self.blocks.sizes}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {id(b) for b in self._buffers.values() if b is not None and b.is_floating_point()}

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in kept or tensor.is_meta:
                return fn(tensor)
            device = fn(tensor.new_empty(0, dtype=torch.float32)).device
            return tensor.to(device, precision(device))

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call,no-any-return]


def pieces(data: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Events some at a time, checked: a float64 copy of all need not fit in memory.

    Raises:
        TypeError: If they are not floating-point tensors.
        ValueError: If they are not finite.

    Example:
        >>> import torch
        >>> from scoresde.bases.basis import pieces
        >>> [len(piece) for piece in pieces(torch.zeros(5000, 2))]
        [4096, 904]
    """
    for piece in data.detach().split(4096) if isinstance(data, Tensor) else data:
        floating("data", piece)
        finite("data", piece)
        yield piece


def spread(rows: Iterable[Tensor], product: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of rows, and mean product of what is left of them, in one pass.

    Source:
        Chan, Golub and LeVeque 1983, *Algorithms for Computing the Sample Variance*.

    Args:
        rows: Pieces ``(N_i, n)``.
        product: Of centred rows, summed over them: squares ``(n,)`` or a matrix ``(n, n)``.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> import torch
        >>> from scoresde.bases.basis import spread
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> spread(rows.split(2), lambda z: (z**2).sum(0))
        (tensor([3.]), tensor([3.5000]))
    """
    count, mean, total = 0, torch.zeros(()), torch.zeros(())
    for piece in rows:
        own, both = piece.mean(0), count + len(piece)
        shift = own - mean.to(own)
        between = product(shift.unsqueeze(0)) * (count * len(piece) / both)
        total = total.to(own) + product(piece - own) + between
        count, mean = both, mean.to(own) + shift * (len(piece) / both)
    expect(count > 0, "data", "events", "none")
    return mean, total / count


def transformed(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix`` in the precision of ``x``, within `torch.autocast` too.

    Example:
        >>> import torch
        >>> from scoresde.bases.basis import transformed
        >>> transformed(torch.ones(1, 2), torch.eye(2, dtype=torch.float64))
        tensor([[1., 1.]])
    """
    if not torch.amp.is_autocast_available(x.device.type):
        return x @ matrix.to(x)
    with torch.autocast(x.device.type, enabled=False):
        return x @ matrix.to(x)


def precision(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, but float32 on MPS.

    Example:
        >>> import torch
        >>> from scoresde.bases.basis import precision
        >>> precision(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


def checked_shape(event_shape: Sequence[int]) -> torch.Size:
    """An event's shape; raises ``TypeError`` if it is none, ``ValueError`` if it is empty.

    Example:
        >>> from scoresde.bases.basis import checked_shape
        >>> checked_shape([3, 8, 8])
        torch.Size([3, 8, 8])
    """
    shape = sizes("event_shape", event_shape)
    expect(
        len(shape) > 0 and min(shape) > 0, "event_shape", "one or more positive sizes", tuple(shape)
    )
    return shape
