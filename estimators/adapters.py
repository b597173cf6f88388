"""Networks of other libraries, called as estimators call theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import expect, instance

_STRETCH = 250.0
"""Noise levels, ``log(sigma / alpha) / 4``, are from about -2 to 2; networks that expect one of a
thousand time steps embed numbers of that size."""


def stretched(noise_level: Tensor) -> Tensor:
    """Noise levels on the scale of time steps, for networks that expect these."""
    return _STRETCH * noise_level


class NetworkAdapter(nn.Module):
    """A network ``network(x, time)`` of another library, as it is.

    A ``diffusers.UNet2DModel`` needs no more; its output is its ``sample``. Networks that take a
    vector instead of the time, as those of azula, get it from ``embed``.

    Args:
        network: Is called with events ``(batch, *event_shape)``, the output of ``embed``, and the
            condition, if there is one, by its name.
        embed: From noise levels ``(batch,)`` to the network's argument; a module is trained with
            it.
        condition: The network's name for a condition.

    Raises:
        TypeError: If the network is no module, or ``embed`` cannot be called.
        ValueError: If the network returns neither a tensor nor one as ``sample`` or first item.

    Example:
        >>> import torch
        >>> from estimators import NetworkAdapter
        >>> class Theirs(torch.nn.Module):
        ...     def forward(self, sample, timestep, class_labels=None):
        ...         return (sample * timestep.reshape(-1, 1) + class_labels.reshape(-1, 1),)
        >>> network = NetworkAdapter(Theirs())
        >>> network(torch.ones(2, 1), torch.tensor([0.0, 1.0]), torch.tensor([3, 4]))
        tensor([[  3.],
                [254.]])
    """

    def __init__(
        self,
        network: nn.Module,
        embed: Callable[[Tensor], Tensor] = stretched,
        condition: str = "class_labels",
    ) -> None:
        super().__init__()
        instance("network", network, nn.Module)
        instance("embed", embed, Callable)  # type: ignore[arg-type]
        instance("condition", condition, str)
        self.network, self.embed, self.condition = network, embed, condition

    def forward(self, x: Tensor, noise_level: Tensor, condition: Any = None) -> Tensor:
        """The prediction, ``(batch, *event_shape)``."""
        told = {} if condition is None else {self.condition: condition}
        out = self.network(x, self.embed(noise_level), **told)
        if isinstance(out, tuple) and out:
            out = out[0]
        out = getattr(out, "sample", out)
        expect(
            torch.is_tensor(out), "network", "one that returns a tensor, or has it as sample", out
        )
        predicted: Tensor = out
        return predicted
