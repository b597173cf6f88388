"""A network of the parts of a joint event, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.bases import Joint
from scoresde.bases.spatial import spatial_axes
from scoresde.checks import expect


class JointNetwork(nn.Module):
    """A network that sees the parts of a joint event as channels of one image.

    Parts share the space of the finest one: a coarse part is repeated to it, and its prediction is
    the mean over the repetitions. A vector has a constant channel for each of its numbers. If all
    parts are vectors, they are joined to one.

    Source:
        Saharia et al. 2021 (arXiv 2104.07636), section 2.2, for a condition that is stacked on what
        is diffused; Batzolis et al. 2022 (arXiv 2207.09786), section 4.

    Args:
        joint: The basis of the joint event.
        network: ``network(x, noise_level)`` or ``network(x, noise_level, condition)`` on events of
            `seen_shape`.
        spatial: Number of spatial axes of parts that are no vectors, the last ones; 2 by default.

    Raises:
        ValueError: If there are not so many axes.

    Example:
        >>> import torch
        >>> from estimators import JointNetwork, ResidualMLP
        >>> from scoresde import Joint
        >>> joint = Joint(y=(3, 2, 2), x=(3, 8, 8))
        >>> JointNetwork.seen_shape(joint)
        torch.Size([6, 8, 8])
        >>> network = JointNetwork(joint, ResidualMLP((6, 8, 8), 16, 1))
        >>> network(torch.randn(5, joint.dim), torch.zeros(5)).shape
        torch.Size([5, 204])
    """

    references = "saharia2021 batzolis2022"

    def __init__(self, joint: Joint, network: nn.Module, spatial: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.shapes = [*joint.shapes.values()]
        self.seen = [*_seen(self.shapes, spatial)]
        self.space = _space(self.seen)

    @classmethod
    def seen_shape(cls, joint: Joint, spatial: int | None = None) -> torch.Size:
        """Shape of the events that the network sees: ``(channels, *space)``, or ``(n,)``."""
        seen = [*_seen([*joint.shapes.values()], spatial)]
        return torch.Size([sum(shape[0] for shape in seen), *_space(seen)])

    def forward(self, x: Tensor, noise_level: Tensor, condition: Any = None) -> Tensor:
        """Joint events ``(batch, n)`` in and out."""
        parts = x.split([shape.numel() for shape in self.shapes], -1)
        maps = [
            self._repeated(part.reshape(len(x), *shape))
            for part, shape in zip(parts, self.seen, strict=True)
        ]
        conditions = () if condition is None else (condition,)
        out = self.network(torch.cat(maps, 1), noise_level, *conditions)
        predicted = out.split([shape[0] for shape in self.seen], 1)
        flat = [
            self._gathered(part, shape[1:]).flatten(1)
            for part, shape in zip(predicted, self.seen, strict=True)
        ]
        return torch.cat(flat, -1)

    def _repeated(self, x: Tensor) -> Tensor:
        """Repeated to the common space."""
        for axis, size in enumerate(self.space, 2):
            own = x.shape[axis]
            if own != size:  # the pixel in which the middle of each of the larger space lies
                middles = 2 * torch.arange(size, device=x.device) + 1
                x = x.index_select(axis, middles * own // (2 * size))
        return x

    def _gathered(self, x: Tensor, space: torch.Size) -> Tensor:
        """Means over what was repeated."""
        if x.shape[2:] == space:
            return x
        pool: Any = (
            nn.functional.adaptive_avg_pool1d,
            nn.functional.adaptive_avg_pool2d,
            nn.functional.adaptive_avg_pool3d,
        )[len(space) - 1]
        mean: Tensor = pool(x, [*space])
        return mean


def _seen(shapes: Sequence[torch.Size], spatial: int | None) -> list[torch.Size]:
    """Channels and space of every part; of vectors, 1 along every axis."""
    images = [shape for shape in shapes if len(shape) > 1]
    axes = {spatial_axes(shape, spatial) for shape in images}
    expect(len(axes) < 2, "spatial", "as many spatial axes in all parts", sorted(axes))
    count = next(iter(axes), 0)
    return [
        torch.Size([shape[:-count].numel(), *shape[-count:]])
        if len(shape) > 1
        else torch.Size([*shape, *[1] * count])
        for shape in shapes
    ]


def _space(seen: Sequence[torch.Size]) -> torch.Size:
    """The largest size along every axis."""
    sizes = itertools.zip_longest(*(shape[1:] for shape in seen))
    return torch.Size([max(along) for along in sizes])
