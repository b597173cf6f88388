"""What updates have come to, counted where they are computed: nobody waits to know it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.precision import precision


class Tally:
    """Losses, and whether all of them and of the gradients have been finite.

    Once one has not, ``failed`` stays 1: updates of weights that are left out where it is 1 leave
    them as they were before the first that was not finite, whenever that is noticed.

    Args:
        device: Where updates are computed.

    Attributes:
        loss: Sum of the losses since it was last cleared.
        norm: Sum of the finite norms of gradients since then, and their number, ``(2,)``.
        poison: 0, and no number after an update that was not finite.
        failed: 1 after an update that was not finite, 0 before; ``found_inf`` of an optimiser.

    Example:
        >>> import torch
        >>> from scoresde.training.tally import Tally
        >>> tally = Tally(torch.device("cpu"))
        >>> for loss in (1.0, torch.nan, 2.0):
        ...     tally.add(torch.tensor(loss), torch.tensor(0.5))
        >>> tally.failed, tally.read()
        (tensor(1.), (2, False))
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=precision(device), device=device)
        self.norm = torch.zeros(2, dtype=precision(device), device=device)
        self.failed = torch.zeros((), dtype=torch.float32, device=device)
        self.poison = torch.zeros((), dtype=torch.float32, device=device)
        self._left_out = torch.zeros((), dtype=torch.float32, device=device)
        self._stops = torch.zeros((), dtype=torch.float32, device=device)

    def add(
        self, loss: Tensor, norm: Tensor, stop: Tensor | None = None, scaled: bool = False
    ) -> None:
        """Counts an update.

        Args:
            loss: Its loss.
            norm: Of its gradient.
            stop: Positive if somebody has asked to end.
            scaled: Whether a gradient that is not finite is a matter of its scale.
        """
        # a network may be spread over several
        loss, norm = loss.to(self.loss.device), norm.to(self.loss.device)
        self.loss.add_(loss)
        finite = norm.isfinite()
        self.norm.add_(torch.stack([norm.where(finite, 0.0), finite.to(norm)]))
        self.poison.add_((loss if scaled else loss + norm) * 0)
        torch.ne(self.poison, self.poison, out=self.failed)
        self._left_out.add_(self.failed)
        if stop is not None:
            self._stops.add_(stop)

    def mean_norm(self) -> float:
        """Mean of the norms since it was last cleared, NaN of none: waits for them."""
        total, count = self.norm.tolist()
        return total / count if count else math.nan

    def clear(self) -> None:
        """Begins losses and norms anew."""
        self.loss.zero_()
        self.norm.zero_()

    def read(self) -> tuple[int, bool]:
        """How many updates were left out, and whether somebody has asked to end: waits for them."""
        left_out, stops = torch.stack([self._left_out, self._stops]).tolist()
        return int(left_out), stops > 0
