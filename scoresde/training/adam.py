"""AdamW in as few kernels as a device can do with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils import _foreach_utils

from scoresde.training.settings import TrainingSettings
from scoresde.training.tally import Tally


def adam(
    weights: Sequence[nn.Parameter], training: TrainingSettings, tally: Tally | None = None
) -> torch.optim.AdamW:
    """The optimiser of some weights: fused where their devices can.

    Args:
        weights: Any.
        training: Rate and weight decay.
        tally: Whose failures leave steps out, without anybody waiting for it; fused ones only.

    Example:
        >>> import torch
        >>> from scoresde.training.adam import adam
        >>> from scoresde.training.settings import TrainingSettings
        >>> adam([torch.nn.Parameter(torch.ones(2))], TrainingSettings()).defaults["fused"]
        True
    """
    devices = _foreach_utils._get_fused_kernels_supported_devices()
    fused = all(p.device.type in devices and p.is_floating_point() for p in weights)
    optimizer = torch.optim.AdamW(
        weights, lr=training.lr, weight_decay=training.weight_decay, fused=fused
    )
    if fused and tally is not None:
        # as torch's own scaler of gradients has steps left out
        setattr(optimizer, "found_inf", tally.failed)  # noqa: B010
    return optimizer
