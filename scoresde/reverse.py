"""Equations with the marginals of an SDE, from its score.

    dz = [f - (1 + eta^2)/2 (g^2 s + div g^2)] dt + eta g dwbar

have the marginals ``p_t`` for every ``eta``: 1 is the reverse SDE (Anderson 1982), 0 the
probability-flow ODE (Song et al. 2021, eq. 13). The estimator is a child of the equation, and with
it the SDE: their weights are trained and moved with it, and found by
``torchdiffeq.odeint_adjoint`` and ``torchsde.sdeint_adjoint``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.blocks import Blocks
from scoresde.checks import expect
from scoresde.equation import Equation
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.noise import Noise
from scoresde.precision import shallow_copy
from scoresde.sdes.sde import SDE, Stage
from scoresde.sdes.sde_coefficients import ReverseCoefficients
from scoresde.selection import samples


class ReverseSDE(Equation):
    """The equation from prior to data, in time ``r = -t`` from ``-T`` to ``-eps``.

    ``dz = -[f - (1 + eta^2)/2 (g^2 s + div g^2)] dr + eta g dw``. Time is negated, not counted
    from ``T``, so that times increase, as integrators want, and small ones keep their digits.
    ``torchdiffeq`` evaluates it from ``-T`` to ``-eps`` only (`Equation.forward`).

    Args:
        estimator: Knows the score, and its SDE.
        eta: Amount of noise: 1 for the reverse SDE, 0 for the probability-flow ODE, any other
            number for what lies between or beyond; the marginals do not depend on it.
        condition: Passed on to the estimator.

    Raises:
        TypeError: If the estimator is of another type.
        ValueError: If ``eta`` is negative.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ReverseSDE
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> reverse, z = ReverseSDE(model), torch.tensor([[2.0]])
        >>> reverse.f(torch.tensor(-1.0), z), reverse.g(torch.tensor(-1.0), z)  # g^2 = 2t
        (tensor([[-2.]]), tensor([[1.4142]]))
    """

    references = "anderson1982 song2021"

    sign = -1

    def __init__(self, estimator: ScoreEstimator, eta: float = 1.0, condition: Any = None) -> None:
        expect_estimator(estimator)
        expect(eta >= 0, "eta", "at least 0", eta)
        sde = estimator.sde
        super().__init__(sde.basis, sde.T, sde.eps)
        self.estimator, self.eta, self.condition = estimator, eta, condition

    @property
    def sde(self) -> SDE:
        """The equation that diffuses data: the estimator's."""
        return self.estimator.sde

    @property
    def copies(self) -> int:
        """Those of the SDE."""
        return self.sde.copies

    @property
    def stochastic(self) -> bool:
        """Not with ``eta = 0``."""
        return self.eta > 0

    @property
    def span(self) -> tuple[float, float]:
        """From ``-T`` to ``-eps``: after, scores may be infinite."""
        return -self.T, -self.eps

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: If the time is out of the SDE's range; see `scoresde.SDE.time`.
        """
        self.sde.time(self.sign * t, y)
        return self.field(t, y).drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """``eta g``."""
        return self.eta * self.sde.g(self.sign * t, y) if self.eta else torch.zeros_like(y)

    def layout(self, dim: int) -> Blocks:
        """The SDE's."""
        return self.sde.layout(dim)

    def at(self, t: Tensor, like: Tensor) -> ReverseCoefficients:
        """See `scoresde.equation.Equation.at`."""
        forward = self.sde.at(self.sign * t, like)
        return forward.reverse(self.estimator, self.eta, self.condition, self.sign)

    def breakpoints(self) -> list[float]:
        """The SDE's, in this clock."""
        return sorted(self.sign * t for t in self.sde.breakpoints())

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The equation of some samples, with their conditions."""
        estimator = self.estimator.select(rows, batch)
        condition = samples(self.condition, rows, batch)
        return shallow_copy(self, estimator=estimator, condition=condition)


class ProbabilityFlow(ReverseSDE):
    """The ODE whose solutions have the marginals of an SDE, in the SDE's own time.

    ``dz/dt = f - (g^2 s + div g^2)/2`` (Song et al. 2021, eq. 13): the reverse equation without
    noise, which runs either way. Runs under ``torchdiffeq.odeint(flow, z, ts)`` in both directions,
    and, as ``g = 0``, under ``torchsde.sdeint``. Called so, times are kept from ``eps`` to ``T``
    (`Equation.forward`).

    Args:
        estimator: Knows the score, and its SDE.
        condition: Passed on to the estimator.

    Raises:
        TypeError: If the estimator is of another type.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ProbabilityFlow
        >>> from torchdiffeq import odeint
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow, ts = ProbabilityFlow(model), torch.tensor([0.01, 3.0])
        >>> odeint(flow, torch.ones(1, 1), ts)[-1].round(decimals=2)  # sqrt(1 + 3^2)
        tensor([[3.1600]])
    """

    sign = 1
    estimate = "probability flow"
    """Of a log-density: what is computed by it."""

    def __init__(self, estimator: ScoreEstimator, condition: Any = None) -> None:
        super().__init__(estimator, 0.0, condition)

    def start(self, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """A state of the flow at ``eps``, and a term to be added to its log-density.

        Args:
            z: Coefficients of events, ``(*batch, n)``.
            noise: Where random numbers come from, if there are others beside them.
        """
        return z, z.new_zeros(z.shape[:-1])

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """See `scoresde.SDE.marginalise`."""
        return self.sde.marginalise(z, stage, dim)

    @property
    def span(self) -> tuple[float, float]:
        """From ``eps`` to ``T``: before, scores may be infinite."""
        return self.eps, self.T
