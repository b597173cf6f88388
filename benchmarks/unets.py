"""What benchmarks of networks share: a plain U-Net, widths and numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in network.parameters())


class PlainUNet(nn.Module):
    """A U-Net of torch's own layers alone: two residual blocks of every width down, and two up.

    Args:
        event_shape: ``(channels, height, width)``; both halve as often as there are widths, to one.
        widths: Channels at every resolution, finest first, multiples of 8.
    """

    def __init__(self, event_shape: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        channels, (first, *_), last = event_shape[0], widths, widths[-1]
        told = 4 * first
        self.level = nn.Sequential(nn.Linear(1, told), nn.SiLU(), nn.Linear(told, told))
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)
        down, before = [], first
        for width in widths:
            down.append(
                nn.ModuleList([_Residual(before, width, told), _Residual(width, width, told)])
            )
            before = width
        self.down, self.middle = nn.ModuleList(down), _Residual(last, last, told)
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        up = []
        for width in reversed(widths):
            up.append(
                nn.ModuleList(
                    [_Residual(before + width, width, told), _Residual(width, width, told)]
                )
            )
            before = width
        self.up = nn.ModuleList(up)
        self.conv_out = nn.Sequential(
            nn.GroupNorm(8, first), nn.SiLU(), nn.Conv2d(first, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """``(batch, *event_shape)`` and noise levels ``(batch,)``."""
        told = self.level(noise_level.to(x.dtype).unsqueeze(-1))
        hidden, kept = self.conv_in(x), []
        for i, (one, two) in enumerate(self.down):
            hidden = two(one(hidden if i == 0 else self.shrink[i - 1](hidden), told), told)
            kept.append(hidden)
        hidden = self.middle(hidden, told)
        for one, two in self.up:
            fine = kept.pop()
            if hidden.shape[-1] != fine.shape[-1]:
                hidden = nn.functional.interpolate(hidden, scale_factor=2)
            hidden = two(one(torch.cat([hidden, fine], 1), told), told)
        out: Tensor = self.conv_out(hidden)
        return out


class Patched(nn.Module):
    """A network that sees squares of pixels as channels of fewer pixels.

    Args:
        event_shape: ``(channels, height, width)``.
        side: Of a square; both sizes are multiples of it.
        make: Makes the network of what it sees.
    """

    def __init__(
        self, event_shape: Sequence[int], side: int, make: Callable[[tuple[int, ...]], nn.Module]
    ) -> None:
        super().__init__()
        channels, height, width = event_shape
        self.side = side
        self.inner = make((channels * side**2, height // side, width // side))

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """``(batch, *event_shape)`` and noise levels ``(batch,)``."""
        seen = nn.functional.pixel_unshuffle(x, self.side)
        return nn.functional.pixel_shuffle(self.inner(seen, noise_level), self.side)


class _Residual(nn.Module):
    """Two convolutions, told the noise level between them."""

    def __init__(self, before: int, after: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        self.told = nn.Linear(told, after)
        self.second = nn.Sequential(
            nn.GroupNorm(8, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1)
        )
        self.past = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden = self.first(x) + self.told(told)[..., None, None]
        out: Tensor = self.past(x) + self.second(hidden)
        return out


def scaled(widths: Sequence[int], factor: float) -> tuple[int, ...]:
    """Widths times a factor, as multiples of 8."""
    return tuple(8 * round(factor * width / 8) for width in widths)
