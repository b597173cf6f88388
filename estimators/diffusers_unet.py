"""U-Nets of the diffusers library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from estimators.unet import HEAD, UNet, group_count
from scoresde.checks import expect


class DiffusersUNet(UNet):
    """`UNet` by ``diffusers.UNet2DModel``, for images and signals.

    Needs ``pip install 'scoresde[diffusers]'``, and some seconds to import. Arguments, conditions
    and sizes are those of `UNet`; there are no volumes. For pretrained weights see
    `from_diffusers`.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If a number is out of range, conditions are of several kinds, or there are more
            than two spatial axes.

    Example:
        >>> import torch
        >>> from estimators import DiffusersUNet
        >>> network = DiffusersUNet((3, 10, 7), channels=[8, 16], blocks=1)
        >>> network(torch.randn(5, 3, 10, 7), torch.zeros(5)).shape
        torch.Size([5, 3, 10, 7])
    """

    def _make_body(
        self, axes: int, inputs: int, outputs: int, blocks: int, attention: Sequence[bool]
    ) -> tuple[Any, int]:
        expect(axes == 2, "spatial", "1 or 2 axes (the network named unet has 3)", axes)
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            hint = "pip install 'scoresde[diffusers]'"
            raise ImportError(f"this U-Net needs diffusers: {hint}") from error
        attending = [c for c, attends in zip(self.channels, attention, strict=True) if attends]
        body = UNet2DModel(
            in_channels=inputs,
            out_channels=outputs,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
            block_out_channels=self.channels,
            layers_per_block=blocks,
            norm_num_groups=group_count(self.channels),
            attention_head_dim=math.gcd(HEAD, *attending),  # one for all resolutions
            add_attention=attention[-1],
        )
        nn.init.zeros_(body.conv_out.weight)  # it says nothing at first
        nn.init.zeros_(body.conv_out.bias)
        return body, body.time_embedding.linear_2.out_features
