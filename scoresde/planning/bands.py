"""Statistics of data that plans use: how power and tails are shared between bands."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.bases import Basis
from scoresde.checks import expect, finite

Spectra = Mapping[str, Tensor]
"""Eigenvalues of the covariance of every block, coarse first; or a sample of them."""


def spectra(basis: Basis, data: Tensor) -> dict[str, Tensor]:
    """Eigenvalues of the covariance of every block of coefficients.

    Eigenvalues of a sample's covariance are spread further than the data's, by far if there are
    fewer events than coefficients. They are shrunk towards their mean, to the estimate that is best
    for Gaussian data.

    Source:
        Chen et al. 2010, *Shrinkage Algorithms for MMSE Covariance Estimation*, eq. 23.

    Args:
        basis: Its blocks are the bands.
        data: Events, ``(N, *event_shape)``: a few hundred will do.

    Returns:
        ``(size,)`` for every block, not increasing.

    Raises:
        ValueError: If the data are not finite, or none.

    Example:
        >>> import torch
        >>> from scoresde import Haar
        >>> from scoresde.planning import spectra
        >>> bands = spectra(Haar((1, 4, 4), 1), torch.randn(100, 1, 4, 4))
        >>> {name: len(values) for name, values in bands.items()}
        {'a1': 4, 'd1': 12}
    """
    z = _coefficients(basis, data)
    eigenvalues = {}
    for name, block in basis.blocks.slices.items():
        own = z[:, block]
        count, size = own.shape
        # the smaller of two matrices that have the same eigenvalues
        gram = own @ own.mT if count < size else own.mT @ own
        values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0) / count
        values = torch.nn.functional.pad(values, (0, size - len(values)))
        mean, square, trace2 = values.mean(), values.square().sum(), values.sum() ** 2
        excess = (count + 1 - 2 / size) * (square - trace2 / size)
        share = ((1 - 2 / size) * square + trace2) / excess if excess > 0 else 1.0
        eigenvalues[name] = torch.lerp(values, mean, min(float(share), 1.0))
    return eigenvalues


def kurtosis(basis: Basis, data: Tensor) -> dict[str, float]:
    """Kurtosis of the coefficients of every block, in units of each: 3 for Gaussian ones.

    Args:
        basis: Its blocks are the bands.
        data: Events, ``(N, *event_shape)``.

    Raises:
        ValueError: If the data are not finite, or none.

    Example:
        >>> import torch
        >>> from scoresde import Haar
        >>> from scoresde.planning import kurtosis
        >>> x = torch.tensor([1.0, -1.0, 0.0, 0.0]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
        >>> kurtosis(Haar((1, 4, 4), 1), x)
        {'a1': 2.0, 'd1': 3.0}
    """
    z = _coefficients(basis, data)
    kurtoses = {}
    for name, block in basis.blocks.slices.items():
        power, fourth = z[:, block].square().mean(0), (z[:, block] ** 4).mean(0)
        square = float(power.square().sum())
        kurtoses[name] = float(fourth.sum()) / square if square > 0 else 3.0
    return kurtoses


def _coefficients(basis: Basis, data: Tensor) -> Tensor:
    """Coefficients of events, around their mean."""
    finite("data", data)
    expect(len(data) > 0, "data", "at least one event", tuple(data.shape))
    z: Tensor = basis(data.double())
    return z - z.mean(0)
