"""The identity: events as they are, flattened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from scoresde.bases.basis import Basis, checked_shape
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

    references = "batzolis2022"

    def __init__(self, event_shape: Sequence[int], blocks: Mapping[str, int] | None = None) -> None:
        size = checked_shape(event_shape).numel()
        super().__init__(event_shape, Blocks({"all": size} if blocks is None else blocks))

    @property
    def groups(self) -> Blocks:
        """For vectors, single components, as columns of a table have units of their own.

        For events of more axes, the blocks.
        """
        return self.blocks.singles() if len(self.event_shape) == 1 else self.blocks

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.flatten(x)

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.unflatten(z)
