"""Kernel ridge regression of parameters on observations."""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.precision import KeepsFloat64


class Smooth(KeepsFloat64):
    """Kernel ridge regression on landmarks, in closed form.

        g(x) = sum_r phi_r(x) c_r,  phi(x) = k(x, landmarks) R,  k(x, l) = exp(-|x - l|^2/(2 w^2))

    with ``R`` such that ``|phi(x)|^2`` is the leverage of ``x``: the residual of a simulation that
    is left out is ``1/(1 - |phi(x)|^2)`` times its residual otherwise. Width and ridge minimise the
    squares of these.

    Args:
        landmarks: ``(k, n)``.
        width: ``w``.
        root: ``R``, ``(k, r)``.
        weights: ``c``, ``(r, m)``.

    Source:
        Williams and Seeger 2001, *Using the Nyström method to speed up kernel machines*.

    Example:
        >>> import torch
        >>> from scoresde.inference.smooth import Smooth
        >>> x = torch.linspace(-3, 3, 400).unsqueeze(1)
        >>> sine = Smooth.fit(x, x.sin())
        >>> sine(torch.tensor([[1.0]])).round(decimals=3)
        tensor([[0.8410]], dtype=torch.float64)
    """

    references = "williams2001"

    landmarks: Tensor
    width: Tensor
    root: Tensor
    weights: Tensor

    def __init__(self, landmarks: Tensor, width: Tensor, root: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("landmarks", landmarks)
        self.register_buffer("width", width)
        self.register_buffer("root", root)
        self.register_buffer("weights", weights)

    @classmethod
    def fit(cls, x: Tensor, y: Tensor) -> Self | None:
        """Fitted to rows ``(N, n)`` and ``(N, m)``; None if it explains too little of every column.

        Columns of which it explains enough are those that have weights.
        """
        x, y = x.double(), y.double()
        few = _thinned(len(x), _FEW)
        typical = _distance(x[few])
        candidates = [_ridged(x[few], y[few], typical * width) for width in _WIDTHS]
        best = min(candidates, key=lambda one: one.score)
        if not (best.unexplained < _PROMISING).any():
            return None
        most = _thinned(len(x), _MOST)
        best = _ridged(x[most], y[most], best.width)
        if not (best.unexplained < _NEARLY_ALL).any():
            return None
        # of its own memory, as files want it
        weights = best.weights.masked_fill(best.unexplained > _PROMISING, 0.0).contiguous()
        return cls(best.landmarks.clone(), best.width.clone(), best.root.contiguous(), weights)

    @property
    def explains(self) -> Tensor:
        """Which columns it explains, ``(m,)``."""
        return self.weights.any(0)

    def features(self, x: Tensor) -> Tensor:
        """``phi``, ``(*, r)``, of ``(*, n)``."""
        rows = x.to(self.landmarks).reshape(-1, x.shape[-1])
        parts = [
            _kernel(part, self.landmarks, self.width) @ self.root for part in rows.split(_ROWS)
        ]
        phi = torch.cat(parts) if parts else self.root.new_zeros(0, self.root.shape[1])
        return phi.reshape(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        """``g``, ``(*, m)``, of ``(*, n)``."""
        return self.features(x) @ self.weights

    def with_leverage(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``g`` of rows it was fitted to, and their leverages, both ``(*, m)``.

        Those are 0 in columns that are not explained.
        """
        phi = self.features(x)
        leverage = phi.square().sum(-1, keepdim=True).clamp(max=_HIGHEST)
        return phi @ self.weights, leverage.where(self.explains, 0.0)


_WIDTHS = (0.5, 1.0, 2.0, 4.0)
"""Of kernels, in units of the median distance: a wide one is a polynomial, of low degree."""

_RIDGES = torch.logspace(-8, 2, 11, dtype=torch.float64, device="cpu")
"""Beside eigenvalues of up to the number of simulations."""

_LANDMARKS, _EACH = 800, 4
"""How many landmarks at most, and how many simulations there are for each at least."""

_FEW, _MOST = 2000, 20_000
"""Simulations by which a width is chosen, and on which the regression is fitted."""

_ROWS = 2**14
"""How many rows at a time."""

_PROMISING, _NEARLY_ALL = 0.3, 0.003
"""The shares of the variance that may be left, of every column that is explained, and of one of
them at least: a network learns by itself, and often better, what is no more."""

_HIGHEST = 0.99
"""Of leverages: less than 1 by more than a rounding error, as what is left is divided by that."""

_NOTHING = 1e-20
"""A mean square beside 1: of a column of zeros there is nothing to explain."""

_RANK = 1e-10
"""Eigenvalues of landmarks' kernels that are no rounding errors, in units of the largest."""


class _Ridged(NamedTuple):
    landmarks: Tensor
    width: Tensor
    root: Tensor
    weights: Tensor
    unexplained: Tensor
    score: float


def _ridged(x: Tensor, y: Tensor, width: Tensor) -> _Ridged:
    """Regression with the ridge that leaves least of rows that are left out."""
    landmarks = x[_thinned(len(x), max(1, min(_LANDMARKS, len(x) // _EACH)))]
    values, vectors = torch.linalg.eigh(_kernel(landmarks, landmarks, width))
    kept = values > _RANK * values[-1]
    whiten = vectors[:, kept] * values[kept].rsqrt()
    features = _kernel(x, landmarks, width) @ whiten
    powers, axes = torch.linalg.eigh(features.mT @ features)
    features = features @ axes
    products = features.mT @ y

    def by_ridge(ridge: Tensor) -> tuple[float, Tensor, Tensor]:
        shrunk = 1 / (powers.clamp(min=0) + ridge)
        leverage = (features.square() @ shrunk).clamp(max=_HIGHEST)
        fitted = features @ (shrunk.unsqueeze(-1) * products)
        left_out = (y - fitted) / (1 - leverage).unsqueeze(-1)
        unexplained = (left_out.square().mean(0) + _NOTHING) / (y.square().mean(0) + _NOTHING)
        return float(unexplained.clamp(max=1.0).log().sum()), unexplained, shrunk.sqrt()

    score, unexplained, root = min(map(by_ridge, _RIDGES.to(x)), key=itemgetter(0))
    weights = root.unsqueeze(-1) * products
    return _Ridged(landmarks, width, whiten @ axes * root, weights, unexplained, score)


def _kernel(x: Tensor, landmarks: Tensor, width: Tensor) -> Tensor:
    return (torch.cdist(x, landmarks).square() / (-2 * width**2)).exp()


def _thinned(count: int, most: int) -> slice:
    """Evenly over the simulations, which may be in an order."""
    return slice(None, None, -(-count // most))


def _distance(x: Tensor) -> Tensor:
    # 500 rows: widths are tried by factors, for which the median of their distances is near enough
    few = x[_thinned(len(x), 500)]
    return torch.pdist(few).median().clamp(min=1e-6)
