"""How convolutional networks hear a noise level of every component, or block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from estimators.conditions import Waves, expect_levels
from scoresde.checks import expect, readable, sizes


class Levels(nn.Module):
    """What a network of one noise level for an event hears of several.

    Args:
        noise_levels: 1 for an event; or the number of its numbers, for maps of their levels; or
            sizes of blocks, for a vector of theirs.
        event_shape: Channels and space, the number of both.

    Raises:
        ValueError: If sizes are not those of all numbers of an event.

    Example:
        >>> import torch
        >>> from estimators.noise_levels import Levels
        >>> vector, maps = Levels([1, 3], (1, 4)), Levels(4, (1, 4))
        >>> vector.vector_size, vector.channels, maps.vector_size, maps.channels
        (34, 0, 0, 17)
        >>> average, heard, _ = vector(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        >>> average, heard.shape
        (tensor([0.5000]), torch.Size([1, 34]))
    """

    def __init__(self, noise_levels: int | Sequence[int], event_shape: Sequence[int]) -> None:
        super().__init__()
        channels, numbers = event_shape[0], torch.Size(event_shape).numel()
        given = [noise_levels] if isinstance(noise_levels, int) else noise_levels
        self.sizes = list(sizes("noise_levels", given))
        wanted = f"1, or {numbers} of an event, or sizes of blocks, {numbers} together"
        good = min(self.sizes, default=0) > 0 and sum(self.sizes) in (1, numbers)
        expect(good, "noise_levels", wanted, noise_levels)
        one, self.apart = sum(self.sizes) == 1, len(self.sizes) > 1
        self.waves = None if one else Waves(len(self.sizes) if self.apart else channels)
        size = 0 if self.waves is None else self.waves.size
        self.vector_size, self.channels = (size, 0) if self.apart else (0, size)
        self.shape = tuple(event_shape)

    def forward(self, noise_level: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The average level, and a vector or maps of all, if there are several.

        Raises:
            ValueError: If there are more or fewer than announced, or, on the CPU, more than one in
                a block.
        """
        levels = expect_levels(noise_level, sum(self.sizes))
        if self.waves is None:
            return levels.squeeze(-1), None, None
        if not self.apart:
            return levels.mean(-1), None, self.waves(levels.unflatten(-1, self.shape))
        parts = levels.split(self.sizes, -1)
        each = torch.stack([part[:, 0] for part in parts], -1)
        if readable(levels):  # looking at them would wait for another device
            same = all(bool((p == p[:, :1]).all()) for p in parts)
            wanted = f"one for all of a block, of sizes {self.sizes}: a network of noise_levels="
            expect(same, "noise_level", f"{wanted}{sum(self.sizes)} hears of all", "several")
        return each.mean(-1), self.waves(each), None


class Modulation(nn.Module):
    """The sum of what levels and a condition add to what modulates.

    Args:
        levels: Size of their vector.
        size: Of what is added.
        condition: Embeds it, if there is one.

    Example:
        >>> import torch
        >>> from estimators.noise_levels import Modulation
        >>> Modulation(34, 8, None)((torch.zeros(5, 34), None)).shape
        torch.Size([5, 8])
    """

    def __init__(self, levels: int, size: int, condition: nn.Module | None) -> None:
        super().__init__()
        self.levels, self.condition = nn.Linear(levels, size), condition

    def forward(self, heard: tuple[Tensor, Tensor | None]) -> Tensor:
        """``(batch, levels)`` and a condition or None to ``(batch, size)``."""
        vector, condition = heard
        added: Tensor = self.levels(vector)
        return added if self.condition is None else added + self.condition(condition)
