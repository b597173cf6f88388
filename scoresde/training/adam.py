"""AdamW, fused where the device can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _foreach_utils

from scoresde.training.settings import TrainingSettings
from scoresde.training.tally import Tally

_LEAVE_OUT = ("cpu", "cuda", "xpu", "meta")
"""Devices whose fused optimisers are known to leave steps out that they are told to: Apple's looks
for the number that says so in the host's memory."""


def adam(
    weights: Sequence[nn.Parameter], training: TrainingSettings, tally: Tally | None = None
) -> torch.optim.AdamW:
    """The optimiser of some weights: fused where their devices can.

    Args:
        weights: Any.
        training: Rate and weight decay.
        tally: Its failures skip steps, without synchronisation; of fused optimisers only.
    """
    devices = {*_foreach_utils._get_fused_kernels_supported_devices()} & {*_LEAVE_OUT}
    fused = all(
        # memory is gone through as it lies: there must be nothing else between a weight's numbers
        p.device.type in devices and p.is_floating_point() and _like(p).stride() == p.stride()
        for p in weights
    )
    optimizer = torch.optim.AdamW(
        weights, lr=training.lr, weight_decay=training.weight_decay, fused=fused
    )
    if fused and tally is not None:
        # as torch's own scaler of gradients has steps left out
        setattr(optimizer, "found_inf", tally.failed)  # noqa: B010
    return optimizer


def load_adam(
    optimizer: torch.optim.AdamW, weights: Sequence[nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Restores the state of an optimiser.

    Args:
        optimizer: Of the same weights.
        weights: In its order.
        state: Tensors by ``"weight.name"``, the former by its number.

    Raises:
        LookupError, RuntimeError, ValueError: If it is of other weights.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, key = name.split(".")
        weight = weights[int(index)]
        # moments lie in memory as their weight does, which was of no concern to a file
        slots.setdefault(int(index), {})[key] = (
            value if key == "step" else _like(weight).copy_(value)
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _like(weight: nn.Parameter) -> Tensor:
    return torch.empty_like(weight, requires_grad=False)
