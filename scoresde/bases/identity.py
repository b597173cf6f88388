"""The identity: events as they are, flattened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from scoresde.bases.basis import Basis, checked_shape, pieces, spread
from scoresde.blocks import Blocks


class Identity(Basis):
    """``z = x``, flattened row-major: the basis of uniform diffusion and of joint models.

    Args:
        event_shape: Shape of one event.
        blocks: Name and size of each block of the flattened event, for instance the ``x`` and
            ``y`` of a joint model; one block named ``all`` if not given.

    Raises:
        ValueError: If the blocks do not cover the event.

    Source:
        Batzolis et al. 2022, *Non-Uniform Diffusion Models* (arXiv 2207.09786), section 4, for
        blocks of different speeds.

    Example:
        >>> import torch
        >>> from scoresde import Identity
        >>> joint = Identity((5,), blocks={"x": 3, "y": 2})
        >>> joint(torch.arange(5.0))[joint.blocks.slices["y"]]
        tensor([3., 4.])
    """

    sources = "batzolis2022"

    def __init__(self, event_shape: Sequence[int], blocks: Mapping[str, int] | None = None) -> None:
        size = checked_shape(event_shape).numel()
        super().__init__(event_shape, Blocks({"all": size} if blocks is None else blocks))

    def moments(self, data: Tensor | Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """As `scoresde.Basis.moments`; of every component if events are vectors of one block.

        Columns of a table have units of their own, pixels of an image have not. Deviations are
        ``(n,)`` then, and only those of constant components are replaced, by 1e-3 of the largest.

        Example:
            >>> import torch
            >>> from scoresde import Identity
            >>> metres_and_grams = torch.tensor([[1.0, 2000.0], [1.5, 1000.0]])
            >>> Identity((2,)).moments(metres_and_grams)[1].tolist()
            [0.25, 500.0]
        """
        if len(self.event_shape) > 1 or len(self.blocks) > 1:
            return super().moments(data)
        rows = (self(x.double()) for x in pieces(data))
        mean, variance = spread(rows, lambda z: (z**2).sum(0))
        largest = variance.amax().clamp(min=1e-12)
        constant = variance <= 1e-12 * torch.maximum(mean**2, largest)
        return mean, torch.where(constant, 1e-6 * largest, variance).sqrt()

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.flatten(x)

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.unflatten(z)
