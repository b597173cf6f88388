"""What of events is compared: any function of them, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scoresde.checks import choice, expect, whole
from scoresde.internals.modes import evaluation_mode
from scoresde.metrics.efficientnet import EfficientNetLite0

Features = Callable[[Tensor], Tensor]
"""Events ``(N, *event_shape)`` to what is compared of them, ``(N, d)``."""


def pixels(x: Tensor) -> Tensor:
    """The numbers themselves: distances in them measure shades and blur, not content.

    Example:
        >>> import torch
        >>> from scoresde.metrics import pixels
        >>> pixels(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 192])
    """
    return x.flatten(1)


NAMED: dict[str, Callable[[], Features]] = {
    "pixels": lambda: pixels,
    "efficientnet-lite0": EfficientNetLite0,
}
"""What makes the features that have a name."""


def feature_function(name: str) -> Features:
    """Features by their name, one of `NAMED`.

    Raises:
        ImportError: If a library is missing.
        ValueError: If there are none of that name.

    Example:
        >>> from scoresde.metrics import feature_function
        >>> feature_function("pixels").__name__
        'pixels'
    """
    choice("features", name, *NAMED)
    return NAMED[name]()


@torch.no_grad()
def extract(
    features: Features,
    x: Tensor,
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Features of many events, in batches.

    Args:
        features: A function, or a module, which is put in evaluation mode meanwhile.
        x: ``(N, *event_shape)``, images between -1 and 1.
        batch_size: How many events at a time.
        device: On which they are computed; where events are if None.
        progress: Whether to show a progress bar.

    Returns:
        ``(N, d)``, on the device on which they were computed.

    Raises:
        ValueError: If a batch becomes anything else.

    Example:
        >>> import torch
        >>> from scoresde.metrics import extract
        >>> extract(lambda x: x.mean((-2, -1)), torch.zeros(100, 3, 8, 8)).shape
        torch.Size([100, 3])
    """
    whole("batch_size", batch_size, 1)
    parts = []
    with evaluation_mode(features) if isinstance(features, nn.Module) else nullcontext():
        for batch in tqdm(x.split(batch_size), desc="features", disable=not progress):
            part = features(batch.to(device))
            good = isinstance(part, Tensor) and part.ndim == 2 and len(part) == len(batch)
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            expect(good, "features", f"a tensor ({len(batch)}, d) of {len(batch)} events", got)
            parts.append(part)
    return torch.cat(parts)
