"""Residual perceptrons, and networks of one part of a joint event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from estimators.conditions import (
    Labels,
    Standardised,
    Waves,
    expect_condition,
    expect_levels,
)
from scoresde.bases import Joint
from scoresde.bases.basis import checked_shape
from scoresde.checks import expect, real, whole
from scoresde.precision import Numbers


class ResidualMLP(nn.Module):
    """Residual blocks on flattened events (and their conditions), modulated by the noise level.

    Source:
        He et al. 2016 (arXiv 1512.03385) for the blocks, Perez et al. 2018 (arXiv 1709.07871) for
        the modulation.

    Args:
        event_shape: Shape of one event.
        width: Width of the hidden layers.
        depth: Number of residual blocks.
        dropout: Dropout inside them.
        condition_dim: Length of a condition vector; 0 if there is none.
        noise_levels: Number of noise levels: 1, or that of an event's numbers for an estimator with
            vector time, which says the level of every component.
        classes: Number of labels, if those are conditions: integers ``(batch,)`` of
            ``0 .. classes``, where ``classes`` itself stands for none (see
            `estimators.ClassifierFree`).
        condition_mean: Of condition vectors, number by number or of all.
        condition_std: Of condition vectors, which are standardised by both.
        embedding_dim: Width of the modulation of blocks; theirs if None, when it takes half of the
            multiplications. A noise level alone needs less.

    Raises:
        ValueError: If a size is not a whole number in range, ``dropout`` is negative, or
            conditions are of both kinds.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP
        >>> network = ResidualMLP((1, 4, 4), width=32, depth=2, condition_dim=3)
        >>> network(torch.randn(7, 1, 4, 4), torch.zeros(7), torch.randn(7, 3)).shape
        torch.Size([7, 1, 4, 4])
    """

    references = "he2016 perez2018"
    example: ClassVar = {"width": 16, "depth": 1}
    width_argument = "width"  # what a budget of parameters changes

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        condition_dim: int = 0,
        noise_levels: int = 1,
        classes: int = 0,
        condition_mean: Numbers = 0.0,
        condition_std: Numbers = 1.0,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        embedding_dim = width if embedding_dim is None else embedding_dim
        sizes = {"width": width, "depth": depth, "noise_levels": noise_levels}
        for name, value in {**sizes, "embedding_dim": embedding_dim}.items():
            whole(name, value, 1)
        whole("condition_dim", condition_dim, 0)
        whole("classes", classes, 0)
        expect(not (classes and condition_dim), "classes", "0 beside condition_dim", classes)
        self.condition_embedding: nn.Module = Standardised(condition_mean, condition_std)
        self.condition_shape = () if classes else (condition_dim,) if condition_dim else None
        if classes:
            self.condition_embedding, condition_dim = Labels(classes, width), width
        real("dropout", dropout, 0)
        size, self.noise_levels = checked_shape(event_shape).numel(), noise_levels
        self.waves = Waves(noise_levels)
        self.embed = nn.Sequential(
            nn.Linear(self.waves.size + condition_dim, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
            nn.SiLU(),
        )
        # a condition modulates, and is worked on: regressing on it is half of the task
        self.input_layer = nn.Linear(size + condition_dim, width)
        self.blocks = nn.ModuleList(_Block(width, embedding_dim, dropout) for _ in range(depth))
        self.output_layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        # a network that says 0 at first leaves estimators with the best linear denoiser
        nn.init.zeros_(self.output_layer[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.output_layer[1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, noise_level: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction, ``(batch, *event_shape)``.

        Args:
            x: Events, ``(batch, *event_shape)``.
            noise_level: ``(batch,)``, or ``(batch, noise_levels)``.
            condition: ``(batch, condition_dim)``, or labels ``(batch,)``, if there are any.

        Raises:
            ValueError: If a condition is missing or unexpected, or levels are too many or too few.
        """
        expect_condition(condition, self.condition_shape is not None, "condition_dim= or classes=")
        levels = expect_levels(noise_level, self.noise_levels)
        conditions = [] if condition is None else [self.condition_embedding(condition)]
        embedding = self.embed(torch.cat([self.waves(levels), *conditions], dim=-1))
        hidden = self.input_layer(torch.cat([x.flatten(1), *conditions], dim=-1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        out: Tensor = self.output_layer(hidden)
        return out.reshape(x.shape)


class PartNetwork(nn.Module):
    """A network of one part of a joint event, the others being its condition.

    Its prediction for the others is 0: for conditional estimators that use one part only (CDE,
    where a condition does not diffuse).

    Args:
        joint: The basis of the joint event.
        part: The name of the part.
        network: ``network(x, noise_level, condition)`` on events of the part, with the other parts
            flattened and joined as ``condition``, ``(batch, m)``.

    Raises:
        ValueError: If there is no such part.

    Example:
        >>> import torch
        >>> from estimators import PartNetwork, ResidualMLP
        >>> from scoresde import Joint
        >>> joint = Joint(y=(3,), x=(2,))
        >>> network = PartNetwork(joint, "x", ResidualMLP((2,), 16, 1, condition_dim=3))
        >>> network(torch.randn(7, 5), torch.zeros(7)).shape
        torch.Size([7, 5])
    """

    def __init__(self, joint: Joint, part: str, network: nn.Module) -> None:
        super().__init__()
        joint.check({part: None})
        self.part, self.shape, self.network = joint.slices[part], joint.shapes[part], network

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Joint events ``(batch, n)`` in and out."""
        before, part, after = x.tensor_split([self.part.start, self.part.stop], -1)
        condition = torch.cat([before, after], -1)
        event = part.reshape(len(part), *self.shape)
        predicted = self.network(event, noise_level, condition).reshape(part.shape)
        return torch.cat([torch.zeros_like(before), predicted, torch.zeros_like(after)], -1)


class _Block(nn.Module):
    def __init__(self, width: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(embedding_dim, 2 * width)
        self.body = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=-1)
        update: Tensor = self.body(self.norm(hidden) * (1 + scale) + shift)
        return hidden + update
