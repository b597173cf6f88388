"""Moments of data in an SDE's basis, by which a network's inputs are divided."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from estimators.mismatch import check_range
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE


def measure(sde: SDE, data: Tensor | Iterable[Tensor], missing: bool = False) -> dict[str, Tensor]:
    """The data's mean per component and standard deviation per block, in an SDE's basis.

    In `scoresde.Identity` the standard deviation of vectors is per component as well. A warning
    names what is out of the SDE's range (`estimators.mismatch`).

    Source:
        Karras et al. 2022 (arXiv 2206.00364), section 5, for its use.

    Args:
        sde: Its basis is used.
        data: Events, ``(N, *event_shape)``, or pieces of them, `scoresde.data.events.Batches`.
        missing: Whether NaN stands for values that are missing.

    Returns:
        ``{"data_mean": (n,), "data_std": (blocks | n,)}``, arguments of `Denoising`; see
        `scoresde.Basis.moments`.

    Example:
        >>> import torch
        >>> from estimators import measure
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}))
        >>> scales = measure(sde, torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> {name: value.tolist() for name, value in scales.items()}
        {'data_mean': [1.0, 2.0], 'data_std': [1.0, 2.0]}
    """
    mean, std = sde.basis.moments(data, missing)
    if isinstance(sde, DiagonalSDE):
        check_range(sde, mean, std)
    return {"data_mean": mean, "data_std": std}
