"""Equations that share the marginals of an SDE, by its score.

    dz = [f - (1 + eta^2)/2 (g^2 s + div g^2)] dt + eta g dwbar

They hold the estimator as a child, and with it the SDE: what trains or moves an equation trains or
moves these, and ``torchdiffeq.odeint_adjoint`` and ``torchsde.sdeint_adjoint`` find their weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.sde import SDE, Forcing, Propagator
from scoresde.selection import samples


class _ByScore(SDE):
    """An equation of an SDE and its score."""

    def __init__(self, sde: SDE, estimator: ScoreEstimator, condition: Any = None) -> None:
        expect_estimator(estimator)
        other = f"a {type(estimator).__name__} of another {type(estimator.sde).__name__}"
        wanted = "one whose `sde` is this very object"
        expect(estimator.sde is sde, "estimator", wanted, other)
        super().__init__(basis=sde.basis, T=sde.T, eps=sde.eps)
        self.estimator, self.condition = estimator, condition

    @property
    def sde(self) -> SDE:
        """The equation that diffuses data: the estimator's."""
        return self.estimator.sde


class ProbabilityFlow(_ByScore):
    """The ODE whose solutions have the marginals of an SDE, in the SDE's own time.

    ``dz/dt = f - (g^2 s + div g^2)/2`` (Song et al. 2021, eq. 13). Runs under
    ``torchdiffeq.odeint(flow, z, ts)`` in both directions, and, as ``g = 0``, under
    ``torchsde.sdeint``. Called so, times are kept from ``eps`` to ``T`` (`scoresde.SDE.forward`).

    Args:
        sde: The equation that diffuses data.
        estimator: Knows the score.
        condition: Passed on to the estimator.

    Raises:
        TypeError: If the estimator is none.
        ValueError: If the estimator has another SDE.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from torchdiffeq import odeint
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow, ts = model.sde.probability_flow(model), torch.tensor([0.01, 3.0])
        >>> odeint(flow, torch.ones(1, 1), ts)[-1].round(decimals=2)  # sqrt(1 + 3^2)
        tensor([[3.1600]])
    """

    @property
    def span(self) -> tuple[float, float]:
        """From ``eps`` to ``T``: before, scores may be infinite."""
        return self.eps, self.T

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        return self.sde.marginal_drift(t, y, self.forcing(t, y), 0.0)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def breakpoints(self) -> list[float]:
        """Those of the SDE."""
        return self.sde.breakpoints()

    def levels(self, t: Tensor) -> Tensor:
        """Those of the SDE."""
        return self.sde.levels(t)

    def select(self, rows: Tensor, batch: Sequence[int]) -> ProbabilityFlow:
        """With the estimator's and the condition's samples."""
        estimator = self.estimator.select(rows, batch)
        return ProbabilityFlow(estimator.sde, estimator, samples(self.condition, rows, batch))

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """That of the SDE, without noise."""
        return self.sde.marginal_propagator(t, s, like, 0.0)

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """That of the SDE."""
        return self.sde.marginal_forcing(t, y, self.estimator, 0.0, self.condition)

    def forcings(self, ts: Tensor, like: Tensor) -> Iterator[Forcing]:
        """Those of the SDE."""
        return self.sde.marginal_forcings(ts, like, self.estimator, 0.0, self.condition)


class ReverseSDE(_ByScore):
    """The equation from prior to data, in time ``r = -t`` from ``-T`` to ``-eps``.

    ``dz = -[f - (1 + eta^2)/2 (g^2 s + div g^2)] dr + eta g dw``. Time is negated, not counted
    from ``T``: integrators that want increasing times get them, and small times keep their
    digits. ``torchdiffeq`` looks at times from ``-T`` to ``-eps`` only (`scoresde.SDE.forward`).

    Args:
        sde: The equation that diffuses data.
        estimator: Knows the score.
        eta: Amount of noise: 1 for the reverse SDE, 0 for the probability-flow ODE, any other
            number for what lies between or beyond; the marginals do not depend on it.
        condition: Passed on to the estimator.

    Raises:
        TypeError: If the estimator is none.
        ValueError: If ``eta`` is negative, or the estimator has another SDE.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> reverse, z = model.sde.reverse(model), torch.tensor([[2.0]])
        >>> reverse.f(torch.tensor(-1.0), z), reverse.g(torch.tensor(-1.0), z)  # g^2 = 2t
        (tensor([[-2.]]), tensor([[1.4142]]))
    """

    def __init__(
        self, sde: SDE, estimator: ScoreEstimator, eta: float = 1.0, condition: Any = None
    ) -> None:
        expect(eta >= 0, "eta", "at least 0", eta)
        super().__init__(sde, estimator, condition)
        self.eta = eta

    @property
    def span(self) -> tuple[float, float]:
        """From ``-T`` to ``-eps``: after, scores may be infinite."""
        return -self.T, -self.eps

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class; ``t`` is the negated time ``r``."""
        return -self.sde.marginal_drift(-t, y, self.forcing(t, y), self.eta)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """``eta g``."""
        return self.eta * self.sde.g(-t, y)

    def breakpoints(self) -> list[float]:
        """Those of the SDE, negated."""
        return [-t for t in reversed(self.sde.breakpoints())]

    def levels(self, t: Tensor) -> Tensor:
        """Those of the SDE, negated: they increase with ``r``."""
        return -self.sde.levels(-t)

    def select(self, rows: Tensor, batch: Sequence[int]) -> ReverseSDE:
        """With the estimator's and the condition's samples."""
        estimator = self.estimator.select(rows, batch)
        return ReverseSDE(estimator.sde, estimator, self.eta, samples(self.condition, rows, batch))

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """That of the SDE, with time running down."""
        return self.sde.marginal_propagator(-t, -s, like, self.eta)

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """That of the SDE."""
        return self.sde.marginal_forcing(-t, y, self.estimator, self.eta, self.condition)

    def forcings(self, ts: Tensor, like: Tensor) -> Iterator[Forcing]:
        """Those of the SDE."""
        return self.sde.marginal_forcings(-ts, like, self.estimator, self.eta, self.condition)

    def kick(self, t: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        """That of the SDE."""
        return self.sde.marginal_kick(-t, y, xi)
