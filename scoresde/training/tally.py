"""Sums over updates on the device, without synchronisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Tally:
    """Losses, and whether all of them and of the gradients have been finite.

    ``failed`` stays 1 after the first that was not: optimisers that skip steps where it is 1 keep
    the weights of before, however late that is noticed. Values stay on the device until they are
    read, and are summed by the host, in double precision and in order: sums do not depend on when
    they are read.

    Args:
        device: Where updates are computed.

    Attributes:
        poison: 0, and NaN after an update that was not finite.
        failed: 1 after an update that was not finite, 0 before; ``found_inf`` of an optimiser.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), dtype=torch.float32, device=device)
        self.poison = torch.zeros((), dtype=torch.float32, device=device)
        self._loss, self._norm, self._norms = 0.0, 0.0, 0
        self._left_out, self._stopped = 0, False
        self._unread: list[tuple[bool, tuple[Tensor, ...]]] = []

    def add(
        self, loss: Tensor, norm: Tensor, stop: Tensor | None = None, scaled: bool = False
    ) -> None:
        """Counts an update.

        Args:
            loss: Its loss; as the others it must not be written to afterwards.
            norm: Of its gradient.
            stop: Positive if a process was asked to end.
            scaled: Whether a gradient that is not finite may be due to its scale.
        """
        # a network may be spread over several
        given = (loss, norm) if stop is None else (loss, norm, stop)
        loss, norm, *_ = update = tuple(v.to(self.poison.device) for v in given)
        # 0 times what is not finite is NaN, which stays, and alone differs from itself
        self.poison.add_((loss if scaled else loss + norm) * 0)
        torch.ne(self.poison, self.poison, out=self.failed)
        self._unread.append((scaled, update))

    def read(self) -> tuple[int, bool]:
        """Number of skipped updates, and whether a process was asked to end: waits for them."""
        unread, self._unread = self._unread, []
        if unread:
            counts = iter(torch.stack([v for _, update in unread for v in update]).tolist())
            for scaled, update in unread:
                self._count(scaled, *(next(counts) for _ in update))
        return self._left_out, self._stopped

    def _count(self, scaled: bool, loss: float, norm: float, stop: float = 0.0) -> None:
        bad = not (math.isfinite(loss) and (scaled or math.isfinite(norm)))
        self._left_out += bad or self._left_out > 0
        self._stopped |= stop > 0
        self._loss += loss
        if math.isfinite(norm):
            self._norm, self._norms = self._norm + norm, self._norms + 1

    @property
    def loss(self) -> float:
        """Sum of the losses since it was last cleared: waits for them."""
        self.read()
        return self._loss

    def mean_norm(self) -> float:
        """Mean of the finite norms since it was last cleared, NaN of none: waits for them."""
        self.read()
        return self._norm / self._norms if self._norms else math.nan

    def clear(self) -> None:
        """Resets losses and norms."""
        self.read()
        self._loss, self._norm, self._norms = 0.0, 0.0, 0

    def state(self) -> dict[str, Tensor]:
        """Tensors for `restore`."""
        numbers = {"loss": self.loss, "norm": [self._norm, self._norms]}
        return {k: torch.tensor(v, dtype=torch.float64, device="cpu") for k, v in numbers.items()}

    def restore(self, loss: Tensor, norm: Tensor) -> None:
        """Goes on from what `state` has said."""
        self._loss, (self._norm, norms) = float(loss), norm.tolist()
        self._norms = int(norms)
