"""Moving averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scoresde.internals.wrappers import match_names

GAMMAS = (16.97, 6.94)
"""Of the power profiles of which snapshots are kept: of relative widths of 0.05 and 0.10, as Karras
et al. 2024 have them."""


def power_decay(gamma: float, count: int) -> float:
    """Decay of a power profile at update ``count``: ``(1 - 1/count)^(gamma + 1)``."""
    return float((1 - 1 / count) ** (gamma + 1))


class WeightAverage:
    """Exponential moving averages of a module's weights, all updated at once.

    Args:
        module: Whose weights.

    Attributes:
        values: The averages, by name.
        placed: Whether the module has them at the moment, instead of its own weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.placed = False
        self._weights: list[Tensor] = [*module.parameters()]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Moves the averages towards the weights, by a share ``1 - decay`` of the way."""
        torch._foreach_lerp_([*self.values.values()], self._weights, 1 - decay)

    @torch.no_grad()
    def load(self) -> None:
        """Gives the module its averaged weights."""
        for name, weight in self.module.named_parameters():
            weight.copy_(self.values[name])

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Goes on from other averages, of this module wrapped in any way."""
        for name, value in match_names(values, self.values).items():
            self.values[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the module its averaged weights, in eval mode, and its own back at the end."""
        trained = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.placed = True
        self.load()
        self.module.eval()
        try:
            yield
        finally:
            self.module.load_state_dict(trained)
            self.module.train()
            self.placed = False
