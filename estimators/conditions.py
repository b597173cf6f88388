"""What networks hear beside events: conditions, and the noise levels of components."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import expect, numbers, positive
from scoresde.precision import Numbers

_OCTAVES = 8
"""That embed a noise level, which is ``log(sigma / alpha) / 4``: from about -3 to 3, where the
longest period, 16, does not repeat; the shortest, 1/8, resolves a factor of 1.6."""


class Waves(nn.Module):
    """Noise levels, their sines and their cosines, for networks that hear more than one.

    Args:
        levels: Of an event.

    Example:
        >>> import torch
        >>> from estimators.conditions import Waves
        >>> waves = Waves(levels=3)
        >>> waves(torch.zeros(5, 3)).shape, waves(torch.zeros(5, 3, 8, 8)).shape, waves.size
        (torch.Size([5, 51]), torch.Size([5, 51, 8, 8]), 51)
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.size = levels * (1 + 2 * _OCTAVES)
        octaves = 2.0 ** torch.arange(_OCTAVES)
        self.register_buffer("frequencies", octaves * math.pi / 8, persistent=False)

    frequencies: Tensor

    def forward(self, levels: Tensor) -> Tensor:
        """``(batch, levels, *space)`` to ``(batch, size, *space)``."""
        frequencies = self.frequencies.reshape(-1, *[1] * (levels.ndim - 2))
        phases = (levels.unsqueeze(2) * frequencies).flatten(1, 2)
        return torch.cat([levels, phases.sin(), phases.cos()], 1)


class Labels(nn.Embedding):
    """Learned vectors for ``0 .. classes - 1``, and for ``classes``, which stands for none.

    Args:
        classes: Number of labels.
        width: Length of the vectors.

    Raises:
        ValueError: On the CPU, for other labels.

    Example:
        >>> import torch
        >>> from estimators.conditions import Labels
        >>> Labels(classes=10, width=4)(torch.tensor([3, 10])).shape
        torch.Size([2, 4])
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """``(batch,)`` to ``(batch, width)``."""
        most, good = self.num_embeddings - 1, labels.ndim == 1 and not labels.is_floating_point()
        # elsewhere looking at them would wait for the device, which says itself that it has failed
        if good and len(labels) and labels.is_cpu and not torch.compiler.is_compiling():
            good = bool((labels >= 0).all() and (labels <= most).all())
        if not good:
            wanted = f"labels (batch,) of 0 to {most}, the last of which stands for none"
            got = (  # as many as a line of a message holds
                labels.tolist() if labels.numel() <= 8 else f"{labels.dtype} {tuple(labels.shape)}"
            )
            expect(False, "condition", wanted, got)
        return super().forward(labels)


class Standardised(nn.Module):
    """Vectors in units of their own deviations, ``(c - mean) / std``.

    Args:
        mean: Of every number, or of all.
        std: Of every number, or of all.

    Raises:
        ValueError: If a deviation is not positive.

    Example:
        >>> import torch
        >>> from estimators.conditions import Standardised
        >>> Standardised([170.0, 70.0], [10.0, 15.0])(torch.tensor([[180.0, 40.0]]))
        tensor([[ 1., -2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            with torch.device("cpu"):  # where numbers are looked at, whatever the default
                values = numbers(f"condition_{name}", value).to(torch.get_default_dtype())
                if name == "std":
                    positive("condition_std", values)
            values = values.to(torch.get_default_device())
            self.register_buffer(name, values, persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        """``(batch, condition_dim)``, as given."""
        scaled: Tensor = (condition - self.mean) / self.std
        return scaled


def expect_levels(noise_level: Tensor, count: int) -> Tensor:
    """Noise levels ``(batch, n)`` of ``(batch,)``, or of as many; ``ValueError`` of others.

    Args:
        noise_level: What a network was given.
        count: Of the levels that it was made for.
    """
    levels = noise_level.unsqueeze(-1) if noise_level.ndim == 1 else noise_level
    if levels.ndim != 2 or levels.shape[-1] != count:  # asked at every step of a solver
        wanted = f"{count} for an event, noise_levels= of the network"
        expect(False, "noise_level", wanted, levels.shape[-1])
    return levels


def expect_condition(condition: Any, wanted: bool, arguments: str) -> None:
    """Raises ``ValueError`` if there is a condition and none is wanted, or the reverse.

    Args:
        condition: What a network was given.
        wanted: Whether it was made for one.
        arguments: Names of the arguments for conditions.
    """
    if wanted != (condition is not None):  # asked at every step of a solver
        expected = "one" if wanted else f"none, as the network was made without {arguments}"
        got = f"a tensor {tuple(condition.shape)}" if isinstance(condition, Tensor) else condition
        expect(False, "condition", expected, got)
