"""Which components training shows clean, drawn for every event."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.checks import look_up
from scoresde.noise import Noise
from scoresde.sdes.diagonal import DiagonalSDE

Observed = Callable[[DiagonalSDE, Tensor, Noise], Tensor]
"""``(sde, states (batch, n), noise) -> (batch, n)``, True where shown clean."""


def blocks(sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
    """A random subset of the blocks for each event, of a share that is uniform on [0, 1].

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.conditioning import blocks
        >>> sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}))
        >>> blocks(sde, torch.zeros(2, 3), Noise(torch.Generator().manual_seed(3)))
        tensor([[ True,  True,  True],
                [False,  True,  True]])
    """
    return sde.blocks.expand(_share(z, len(sde.blocks), noise))[..., : z.shape[-1]]


def components(sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
    """A random subset of the components for each event, see `blocks`.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.conditioning import components
        >>> sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}))
        >>> components(sde, torch.zeros(2, 3), Noise(torch.Generator().manual_seed(3)))
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """
    return _share(z, z.shape[-1], noise)


OBSERVED: dict[str, Observed] = {f.__name__: f for f in (blocks, components)}
"""The two above, by name."""


def observed(name: str | Observed) -> Observed:
    """A way of choosing what is observed by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.conditioning import observed
        >>> observed("blocks").__name__
        'blocks'
    """
    return look_up("observe", name, OBSERVED)


def _share(z: Tensor, count: int, noise: Noise) -> Tensor:
    """True with a probability of its own for each event."""
    u = torch.special.ndtr(noise(z.new_empty(len(z), 1 + count)))
    shown: Tensor = u[:, 1:] < u[:, :1]
    return shown
