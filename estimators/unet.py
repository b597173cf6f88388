"""U-Nets of the MONAI library."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from estimators.adapters import stretched
from estimators.conditions import (
    Labels,
    Standardised,
    expect_condition,
)
from estimators.noise_levels import Levels, Modulation
from scoresde.bases.basis import checked_shape
from scoresde.bases.spatial import spatial_axes
from scoresde.checks import expect, sizes, whole
from scoresde.precision import Numbers

_GROUPS, _TOGETHER = 32, 4
"""Channels are normalised in at most so many groups, of at least so many, as in the networks of Ho
et al. 2020. A channel alone would lose what the noise level and a condition add to it."""

HEAD = 32
"""Channels of a head of attention, if those of a resolution can be divided by it."""


class UNet(nn.Module):
    """Residual blocks at falling and rising resolution, modulated by the noise level.

    ``monai.networks.nets.DiffusionModelUNet``; needs ``pip install 'scoresde[images]'``. Events are
    padded with their last values to sizes that can be halved, and cut again. Signals are images
    that are constant along one axis.

    Source:
        Ho et al. 2020 (arXiv 2006.11239), appendix B; Ronneberger et al. 2015 (arXiv 1505.04597).

    Args:
        event_shape: Shape of one event; axes before the spatial ones are channels.
        channels: Of the hidden layers at every resolution, finest first.
        blocks: Residual blocks per resolution.
        attention: Largest size, along the longest axis, of resolutions with attention, whose cost
            grows with the square of the number of pixels. None if 0.
        classes: Number of labels; conditions are then integers ``(batch,)`` of ``0 .. classes``,
            where ``classes`` itself stands for none (see `estimators.ClassifierFree`).
        condition_dim: Length of vectors that are conditions, ``(batch, condition_dim)``.
        condition_channels: Of maps that are conditions, ``(batch, condition_channels, *space)``;
            maps of another size are seen by their means over what becomes a pixel.
        spatial: Number of spatial axes, the last ones: 1 to 3. By default 1 if the event has one
            axis, else 2.
        condition_mean: Of vectors that are conditions, number by number or of all.
        condition_std: Of vectors, which are standardised by both.
        noise_levels: Of an estimator with vector time, which says the level of every component:
            sizes of the SDE's blocks, for a level of each that modulates; or the number of an
            event's numbers, for one of each that is seen beside it, where components are the
            numbers themselves (`scoresde.Identity`). What modulates is then their average.

    Raises:
        ImportError: If MONAI is not installed.
        ValueError: If a number is out of range, or conditions are of several kinds.

    Example:
        >>> import torch
        >>> from estimators import UNet
        >>> network = UNet((3, 10, 7), channels=[8, 16], blocks=1, classes=2)
        >>> network(torch.randn(5, 3, 10, 7), torch.zeros(5), torch.tensor([0, 1, 1, 2, 2])).shape
        torch.Size([5, 3, 10, 7])
    """

    references = "ho2020 ronneberger2015"
    example: ClassVar = {"channels": [8, 16], "blocks": 1}
    width_argument = "channels"  # what a budget of parameters changes

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        attention: int = 8,
        classes: int = 0,
        condition_dim: int = 0,
        condition_channels: int = 0,
        spatial: int | None = None,
        condition_mean: Numbers = 0.0,
        condition_std: Numbers = 1.0,
        noise_levels: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        self.event_shape, self.channels = checked_shape(event_shape), sizes("channels", channels)
        expect(min(self.channels, default=0) > 1, "channels", "numbers above 1", channels)
        whole("blocks", blocks, 1)
        whole("attention", attention, 0)
        kinds = {"classes": classes, "condition_dim": condition_dim}
        kinds["condition_channels"] = condition_channels
        for name, value in kinds.items():
            whole(name, value, 0)
        given = [name for name, value in kinds.items() if value]
        expect(len(given) < 2, "condition", "one kind: labels, vectors or maps", given)
        self.condition_channels = condition_channels
        axes = spatial_axes(self.event_shape, spatial)
        self.space = self.event_shape[-axes:]
        self.condition_shape = _condition_shape(kinds, self.space)
        width = self.event_shape[:-axes].numel()
        self.levels = Levels(noise_levels, (width, *self.space))
        seen = max(axes, 2), width + condition_channels + self.levels.channels, width
        self.body, embedded = self._make_body(*seen, blocks, self._attends(attention))
        self.embed: nn.Module | None = Labels(classes, embedded) if classes else None
        if condition_dim:
            scaled = Standardised(condition_mean, condition_std)
            self.embed = nn.Sequential(scaled, nn.Linear(condition_dim, embedded))
        if self.embed is not None or self.levels.vector_size:
            self.body.num_class_embeds, self.body.class_embedding = 1, self._added(embedded)

    def _added(self, size: int) -> nn.Module | None:
        """What the library adds to its embedding of the level."""
        vector = self.levels.vector_size
        return Modulation(vector, size, self.embed) if vector else self.embed

    def _attends(self, attention: int) -> list[bool]:
        return [max(self.space) / 2**place <= attention for place in range(len(self.channels))]

    def forward(self, x: Tensor, noise_level: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction, ``(batch, *event_shape)``.

        Args:
            x: Events, ``(batch, *event_shape)``.
            noise_level: ``(batch,)``, or ``(batch, n)`` of all components; see the class.
            condition: Labels, vectors or maps, if there are any; see the class.

        Raises:
            ValueError: If a condition is missing or unexpected, or maps have other axes; if there
                are more levels for an event than announced, or fewer.
        """
        level, vector, maps = self.levels(noise_level)
        wanted = self.embed is not None or self.condition_channels > 0
        expect_condition(condition, wanted, "classes=, condition_dim= or condition_channels=")
        if not len(x):  # attention does not take it
            return torch.zeros_like(x)
        hidden = x.reshape(len(x), -1, *self.space)
        added: Any = condition if self.embed is not None else None
        if vector is not None:
            added = vector, added
        if maps is not None:
            hidden = torch.cat([hidden, maps.to(hidden)], 1)
        if self.condition_channels and condition is not None:
            hidden = torch.cat([hidden, self._resized(condition).to(hidden)], 1)
        hidden = self._padded(hidden)
        out = self.body(hidden, stretched(level), class_labels=added)
        out = getattr(out, "sample", out)
        if len(self.space) == 1:
            out = out.mean(-2)
        for axis, size in zip(range(-len(self.space), 0), self.space, strict=True):
            out = out.narrow(axis, 0, size)
        predicted: Tensor = out.reshape(x.shape)
        return predicted

    def _make_body(
        self, axes: int, inputs: int, outputs: int, blocks: int, attention: Sequence[bool]
    ) -> tuple[Any, int]:
        """The library's network, and the width of what it adds embedded labels to."""
        before = dict(os.environ)
        try:
            from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
        except ImportError as error:
            raise ImportError("a U-Net needs MONAI: pip install 'scoresde[images]'") from error
        for name in {*os.environ} - {*before}:  # of OpenMP and cuBLAS, for the process
            del os.environ[name]
        body: Any = DiffusionModelUNet(
            spatial_dims=axes,
            in_channels=inputs,
            out_channels=outputs,
            num_res_blocks=blocks,
            channels=self.channels,
            attention_levels=attention,
            norm_num_groups=group_count(self.channels),
            num_head_channels=[math.gcd(HEAD, c) for c in self.channels],
        )
        if not attention[-1]:  # the middle always has it, whatever its size
            body.middle_block.attention = nn.Identity()
        for module in body.modules():
            for name in (
                "att_mat",
                "causal_mask",
            ):  # empty tensors that no move of the module moves
                if hasattr(module, name):
                    setattr(module, name, None)
        return body, body.time_embed[-1].out_features

    def _resized(self, maps: Tensor) -> Tensor:
        """Conditions at the network's own resolution."""
        axes = len(self.space)
        if maps.ndim != 2 + axes or maps.shape[1] != self.condition_channels:
            wanted = f"maps (batch, {self.condition_channels}, *space) of {axes} axes of space"
            seen = f"{tuple(maps.shape)} for a network of events {tuple(self.event_shape)}"
            expect(False, "condition", wanted, seen)
        if maps.shape[2:] == self.space:
            return maps
        return nn.functional.interpolate(maps, self.space, mode="area")

    def _padded(self, x: Tensor) -> Tensor:
        """Events padded to sizes that can be halved as often as there are resolutions."""
        factor = 2 ** (len(self.channels) - 1)
        ends = [v for size in reversed(self.space) for v in (0, -size % factor)]
        if any(ends):
            x = nn.functional.pad(x, ends, mode="replicate")
        if len(self.space) == 1:
            x = x.unsqueeze(-2).expand(*x.shape[:-1], factor, x.shape[-1])
        return x


def _condition_shape(kinds: Mapping[str, int], space: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of the condition of one event, ``()`` of a label."""
    if kinds["classes"]:
        return ()
    vectors, channels = kinds["condition_dim"], kinds["condition_channels"]
    return (vectors,) if vectors else (channels, *space) if channels else None


def group_count(channels: Sequence[int]) -> int:
    """Number of normalisation groups that divides all numbers of channels."""
    common, fewest = math.gcd(*channels), min(channels)
    fits = [g for g in range(1, _GROUPS + 1) if common % g == 0 and fewest >= _TOGETHER * g]
    return max(fits, default=1)
