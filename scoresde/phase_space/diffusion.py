"""Diffusion in phase space: a position and a velocity for every component.

    d(x, v) = beta A (x, v) dt + (beta Q)^(1/2) dw

Data are ``x``; ``v`` starts as noise. What both say of data is one number per component, which is a
diffusion of the data by itself (`scoresde.phase_space.dynamics`); ``beta`` is such that it has a
given schedule. Estimators, losses and bounds are those of that `scoresde.DiagonalSDE`: only the
way from prior to data is another one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.bases import Basis
from scoresde.blocks import Blocks
from scoresde.checks import expect, instance
from scoresde.noise import Noise
from scoresde.phase_space.coefficients import PhaseCoefficients
from scoresde.phase_space.dynamics import Dynamics
from scoresde.phase_space.flow import PhaseFlow
from scoresde.phase_space.rotation import Rotation
from scoresde.precision import Numbers
from scoresde.schedules import Schedule
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import Append, Stage
from scoresde.sdes.sde_coefficients import Score


class PhaseSDE(DiagonalSDE):
    """Pairs or triples of numbers for every component, of which the first is data.

    A state has ``k n`` components: all positions, then all velocities. Estimators see ``n``
    numbers, what a state says of data: those of the same `scoresde.DiagonalSDE` can be used.

    Args:
        schedule: Signal and noise of what a state says of data.
        basis: See `scoresde.DiagonalSDE`.
        dynamics: Of position and velocity.
        speeds: See `scoresde.DiagonalSDE`.
        scale: See there; velocities have it, too.
        mean: See there.
        delays: See there.
        std: See there.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: As of `scoresde.DiagonalSDE`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, Dynamics, Identity, PhaseSDE
        >>> from solvers import ExponentialMultistep
        >>> sde = PhaseSDE(VP(), Identity((2,)), Dynamics.psld())
        >>> model = Gaussian(sde, torch.zeros(2), 4 * torch.eye(2))
        >>> x = ExponentialMultistep(12).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.shape, x.std().round(decimals=1)
        (torch.Size([5000, 2]), tensor(2.))
    """

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        dynamics: Dynamics,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        mean: Numbers = 0.0,
        delays: Numbers = 0.0,
        std: Numbers = 0.0,
    ) -> None:
        instance("dynamics", dynamics, Dynamics)
        super().__init__(schedule, basis, speeds, scale, mean=mean, delays=delays, std=std)
        self.dynamics, self.rotation = dynamics, Rotation(dynamics)

    @property
    def copies(self) -> int:
        """Number of entries of a state for every component of data."""
        return self.dynamics.copies

    def layout(self, dim: int) -> Blocks:
        """The blocks of all copies, or of data."""
        return self.blocks.repeated(self.copies) if dim == self.dim else super().layout(dim)

    def at(self, t: Tensor, like: Tensor | None = None) -> Any:
        """`PhaseCoefficients` for states of all copies, diagonal ones for what is seen of data."""
        if like is None or like.shape[-1] != self.dim:
            return super().at(t, like)
        seen = super().at(t, like[..., : self.basis.dim])
        return PhaseCoefficients(seen, self.dynamics, like)

    def time(self, t: Tensor | float, z: Tensor) -> Tensor:
        """See `scoresde.SDE.time`; states are of all copies, or of what is seen of data."""
        n, length = self.basis.dim, z.shape[-1] if z.ndim else 0
        if length not in (n, self.dim):
            wanted = f"states (*batch, {self.dim}), or what is seen of them (*batch, {n})"
            expect(False, "z", wanted, tuple(z.shape))
        return super().time(t, z)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``beta A y``."""
        return next(self.read(t, y).fields()).drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """``(beta Q)^(1/2)``, in the shape of ``y``."""
        return next(self.read(t, y).fields()).diffusion(y)

    def events(self, z: Tensor) -> Tensor:
        """The events of the positions."""
        return self.basis.inverse(z[..., : self.basis.dim])

    def score(
        self, estimator: Score, z: Tensor, t: Tensor | float, condition: Any = None
    ) -> Tensor:
        """``S^-1 (a D - y)``."""
        at = self.read(t, z).reverse(estimator, 0.0, condition, 1)
        (field,) = at.fields()
        return at.score(z.unsqueeze(0), field.forcing(z).unsqueeze(0))[0]

    def likelihood_flow(self, flow: Any) -> PhaseFlow:
        """A flow in diagonal coordinates; see `PhaseFlow`."""
        return PhaseFlow(flow.estimator, flow.condition)

    def appender(self, like: Tensor, stage: Stage) -> Append:
        """A draw of ``N(a mean, a a^T std^2 + S)``: of data with these moments, at ``T``."""
        at, mean, root = self._appended(like, stage.start)
        (factor,) = at.cast(at.mixing(root)).unbind()

        def append(z: Tensor, noise: Noise) -> Tensor:
            fresh: Tensor = mean + factor * noise(z.new_empty(*z.shape[:-1], self.dim))
            return fresh

        return append

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """See `scoresde.SDE.marginalise`: all components, at ``T``."""
        at, mean, root = self._appended(z, stage.start)
        (inverse,) = at.cast(at.mixing(torch.linalg.inv(root))).unbind()
        distance = (inverse * (z - mean)).square().sum(-1)
        constant = at.log_det(root) + self.dim * math.log(2 * math.pi) / 2
        return z[..., :0], -distance / 2 - constant.to(z)

    def _appended(self, like: Tensor, t: float) -> tuple[PhaseCoefficients, Tensor, Tensor]:
        """Coefficients at a time; mean, and root of the covariance, of what is appended there."""
        time = torch.full((1, 1), t, dtype=torch.float64, device="cpu")
        at = self.at(time, like.new_empty(*like.shape[:-1], self.dim))
        mean, std = (v.reshape(-1) for v in self.constants(time, "mean", "std"))
        kernel = at.phase_kernel
        root = at.in_units(kernel.root).movedim(-3, -1)
        a, root, mean, std = self.blocks.broadcastable(kernel.mean.mT, root, mean, std)
        root, wide = root.movedim(-1, -3), (a * std).mT.unsqueeze(-1)
        factor = torch.linalg.cholesky(root @ root.mT + wide @ wide.mT)
        return at, at.cast(at.vector((a * mean).mT))[0], factor
