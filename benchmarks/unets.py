"""U-Nets of the diffusers library as networks of ours."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from estimators import NetworkAdapter


class UNet(NetworkAdapter):
    """``diffusers.UNet2DModel`` without attention, called with a noise level.

    Args:
        event_shape: ``(channels, height, width)``.
        widths: Channels at every resolution, finest first.
        layers: Residual blocks per resolution.
    """

    def __init__(self, event_shape: Sequence[int], widths: Sequence[int], layers: int = 1) -> None:
        from diffusers import UNet2DModel

        channels, height, _ = event_shape
        body = UNet2DModel(
            sample_size=height,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            add_attention=False,
            norm_num_groups=8,
        )
        super().__init__(body)


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in network.parameters())
