"""Mean and scale of data, a batch at a time, separately for every group.

A *group* is what is measured together: a column of a table, a band of an image. With mean ``m`` and
deviation ``s``, in the rounding ``u`` of float64, it is *constant* if ``s <= 8 u |m|``, and then
its scale is ``2^-12 |m|``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import torch
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import expect, finite, floating
from scoresde.internals.limits import chunk_size
from scoresde.internals.messages import join_names, warn

_ROUNDED = 8 * torch.finfo(torch.float64).eps
"""Deviation by the mean up to which there is nothing but the rounding of sums."""

CONSTANT = 2.0**-12
"""Scale of a constant by its size: half of float32's digits. A state then tells the constant from
its noise, and noise from none, equally well, and what is learned wrong hardly shows."""

_NARROW = 0.01
"""Deviation of most events by that of all, below which the rest decides what is seen: that of the
noise at which the usual schedules start, in units of the data's scale."""

_STEPS = 64
"""Numbers of a dtype within a deviation, below which its grid shows in what is learned."""


def batches(data: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Data as checked batches, so that a float64 copy of all need not fit into memory.

    Raises:
        TypeError: If they are not floating-point tensors.
        ValueError: If they are not finite.
    """
    if isinstance(data, Tensor):
        data = data.detach().split(chunk_size(data.shape[1:]))
    for batch in data:
        floating("data", batch)
        finite("data", batch)
        yield batch


def streaming_moments(
    rows: Iterable[Tensor], product: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean of rows and mean product of centred rows, in one pass over batches of them.

    Source:
        Chan, Golub and LeVeque 1983, *Algorithms for Computing the Sample Variance*.

    Args:
        rows: Batches ``(N_i, n)``.
        product: Of centred rows, summed over them: squares ``(n,)`` or a matrix ``(n, n)``.

    Raises:
        ValueError: If there are no rows.
    """
    count, mean, product_sum = 0, *torch.zeros(2, device="cpu")
    for batch in rows:
        if not len(batch):
            continue
        batch_mean, total_count = batch.mean(0), count + len(batch)
        shift = batch_mean - mean.to(batch_mean)
        between = product(shift.unsqueeze(0)) * (count * len(batch) / total_count)
        product_sum = product_sum.to(batch_mean) + product(batch - batch_mean) + between
        count, mean = total_count, mean.to(batch_mean) + shift * (len(batch) / total_count)
    expect(count > 0, "data", "events", "none")
    return mean, product_sum / count


@attrs.define(eq=False)
class MomentsByGroup:
    """Means, and the scale of every group; `warn` names those whose scale is doubtful.

    Beside the deviation, the typical distance from the middle is measured, the geometric mean over
    events of the distance from one of them: a few outliers change the deviation only.

    Args:
        blocks: What is measured together, by name.

    Attributes:
        constant: Which groups are constant, ``(groups,)``, once they are measured.
        outlying: Which groups' deviation is due to outliers.
    """

    blocks: Blocks
    constant: Tensor = attrs.field(init=False)
    outlying: Tensor = attrs.field(init=False)
    _middle: Tensor | None = attrs.field(default=None, init=False)
    _count: Tensor = attrs.field(init=False)
    _logs: Tensor = attrs.field(init=False)
    _largest: Tensor = attrs.field(init=False)
    _size: Tensor = attrs.field(init=False)
    _std: Tensor = attrs.field(init=False)
    _typical: Tensor = attrs.field(init=False)
    _kind: torch.finfo | None = attrs.field(default=None, init=False)

    def measured(
        self, data: Iterable[Tensor], analyse: Callable[[Tensor], Tensor] = torch.Tensor.double
    ) -> tuple[Tensor, Tensor]:
        """Means ``(n,)`` and scales ``(groups,)`` of events, in one pass.

        Args:
            data: Batches of events.
            analyse: To coefficients, ``(N, n)``, in float64.

        Raises:
            ValueError: If there are no events, or the squares of a group are infinite.
        """
        rows = (self._seen(analyse(batch), batch.dtype) for batch in data)
        mean, square = streaming_moments(rows, lambda z: (z**2).sum(0))
        size, std = self._rms(mean), self._mean(square).sqrt()
        for name in self.names(~std.isfinite()):
            expect(False, "data", f"numbers whose squares are finite in {name!r}", "larger ones")
        self.constant, self._size, self._std = std <= _ROUNDED * size, size, std
        typical = (self._logs / self._count.clamp(min=1)).exp()
        self.outlying, self._typical = ~self.constant & (typical < _NARROW * std), typical
        return mean, torch.where(self.constant, CONSTANT * torch.where(size > 0, size, 1.0), std)

    def _seen(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """Records rows for `warn`, and returns them as they are."""
        if not len(z):
            return z
        if self._middle is None:
            self._middle = z.median(0).values
            self._count, self._logs, self._largest = self._rms(z.new_zeros(3, z.shape[-1])).unbind()
        kind = torch.finfo(dtype)
        if self._kind is None or kind.eps > self._kind.eps:
            self._kind = kind
        distance = self._rms(z - self._middle)
        # what repeats itself is as wide as it is large, and of no width if it is 0
        width = torch.where(distance > 0, distance, self._rms(self._middle))
        known = width > 0
        self._count = self._count + known.double().sum(0)
        self._logs = self._logs + torch.where(known, width, 1.0).log().sum(0)
        self._largest = torch.maximum(self._largest, distance.amax(0))
        return z

    def warn(self, outliers: bool = True) -> None:
        """Names groups whose scale is that of outliers, or lost in the rounding of numbers.

        Args:
            outliers: Whether to name the first.
        """
        most, typical, kind = self._largest, self._typical, self._kind
        own, std, constant = self._size, self._std, self.constant
        assert kind is not None
        self._warn(
            self.outlying & outliers,
            lambda i: (
                f"outliers {most[i]:.3g} from the middle, where events are typically "
                f"{typical[i]:.3g} from it: by a standard deviation of {std[i]:.3g} the others "
                "look all alike; leave them out, clip them, or take logarithms"
            ),
        )
        apart, square = kind.eps * own, std**2
        self._warn(
            torch.where(constant, apart > 1, apart * _STEPS > std),
            lambda i: (
                f"{own[i]:.9g} with a standard deviation of {0.0 if constant[i] else std[i]:.3g}, "
                f"too far from 0 for {kind.dtype}, whose numbers are {apart[i]:.3g} apart there; "
                "subtract the mean before rounding, or use float64"
            ),
        )
        self._warn(
            ~constant & ((square > kind.max) | (square < kind.tiny)),
            lambda i: (
                f"a standard deviation of {std[i]:.3g}, whose square is no number of {kind.dtype}; "
                "use other units"
            ),
        )

    def names(self, which: Tensor) -> list[str]:
        """Names of the groups where a mask ``(groups,)`` is true."""
        return [n for n, chosen in zip(self.blocks.sizes, which.tolist(), strict=True) if chosen]

    def _warn(self, which: Tensor, what: Callable[[int], str]) -> None:
        """One warning of all groups of a kind, with the numbers of the first."""
        if bool(which.any()):
            first = int(which.int().argmax())
            warn(f"data: in {join_names(map(repr, self.names(which)), 3)}: {what(first)}")

    def _rms(self, z: Tensor) -> Tensor:
        return self._mean(z**2).sqrt()

    def _mean(self, z: Tensor) -> Tensor:
        """Over every group: ``(*, n)`` to ``(*, groups)``."""
        if len(self.blocks) == self.blocks.dim:
            return z
        return self.blocks.mean(z)
