"""Networks with an embedding of their condition, which is trained with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import expect, instance, whole


class Embedded(nn.Module):
    """A network whose condition is embedded in a vector: series, sets, images.

    The embedding is a part of the network, with its weights in the same loss and state.

    Args:
        network: Of events, levels and conditions ``(batch, c)``: ``ResidualMLP(condition_dim=c)``.
        embedding: Any module, from conditions ``(batch, *condition_shape)`` to ``(batch, c)``.

    Raises:
        TypeError: If one is no module.

    Example:
        >>> import torch
        >>> from estimators import Embedded, ResidualMLP, SetEmbedding
        >>> network = Embedded(ResidualMLP((2,), condition_dim=8), SetEmbedding(3, 8))
        >>> observations = torch.randn(7, 20, 4)  # 20 of 3 numbers, and whether they are there
        >>> network(torch.randn(7, 2), torch.zeros(7), observations).shape
        torch.Size([7, 2])
    """

    def __init__(self, network: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        instance("network", network, nn.Module)
        instance("embedding", embedding, nn.Module)
        self.network, self.embedding = network, embedding

    def forward(self, x: Tensor, noise_level: Tensor, condition: Any) -> Tensor:
        """Events like ``x``."""
        heard = self.embedding(condition)
        fits = isinstance(heard, Tensor) and heard.shape[:1] == x.shape[:1] and heard.ndim == 2
        if not fits:
            got = tuple(heard.shape) if isinstance(heard, Tensor) else type(heard).__name__
            expect(False, "embedding", f"an output (batch, c) of {len(x)} rows", got)
        output: Tensor = self.network(x, noise_level, heard)
        return output


class SetEmbedding(nn.Module):
    """An embedding of sets that does not depend on the order of items.

    Every item goes through the same layers; their outputs are averaged over the items that are
    there, and go through others, with the logarithm of the number of items (Zaheer et al. 2017).

    Args:
        features: Numbers of an item. They are followed by 1 where it is there, and 0 where it is
            missing, as `scoresde.inference.Coordinates` with ``items=True`` has them.
        size: Of the embedding.
        width: Of hidden layers.

    Raises:
        ValueError: If a number is no whole one from 1 on, or sets have another shape.

    Example:
        >>> import torch
        >>> from estimators import SetEmbedding
        >>> _ = torch.manual_seed(0)
        >>> embedding, items = SetEmbedding(1, 4), torch.tensor([[[0.3, 1.0], [-1.2, 1.0]]])
        >>> more = torch.cat([items.flip(1), torch.tensor([[[7.0, 0.0]]])], 1)  # one is missing
        >>> torch.allclose(embedding(items), embedding(more))
        True
    """

    references = "zaheer2017"

    def __init__(self, features: int, size: int, width: int = 64) -> None:
        super().__init__()
        for name, value in (("features", features), ("size", size), ("width", width)):
            whole(name, value, 1)
        self.features = features
        self.each = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.all = nn.Sequential(nn.Linear(width + 1, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, items: Tensor) -> Tensor:
        """``(batch, n, features + 1)`` to ``(batch, size)``."""
        fits = items.ndim == 3 and items.shape[-1] == self.features + 1
        expect(fits, "items", f"shape (batch, n, {self.features + 1})", tuple(items.shape))
        numbers, there = items.split([self.features, 1], -1)
        count = there.sum(1)
        mean = (self.each(numbers) * there).sum(1) / count.clamp(min=1)
        said: Tensor = self.all(torch.cat([mean, count.log1p()], -1))
        return said
