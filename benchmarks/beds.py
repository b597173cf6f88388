"""Closed forms that benchmarks measure against."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import Gaussian
from scoresde import DiagonalSDE, Noise, ReverseSDE, Solver
from scoresde.testing import Impulses


class Fixed(Noise):
    """The same number for every draw."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __call__(self, like: Tensor) -> Tensor:
        """A constant tensor."""
        return torch.full_like(like, self.value)


def sample_moments(model: Gaussian, solver: Solver) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a solver's samples of Gaussian data, exactly.

    A deterministic solver is an affine map of the noise it starts from; a stochastic one-step
    solver is a chain of them.
    """
    sde = model.sde
    n = sde.basis.dim
    if solver.eta == 0:
        rows = 1 + sde.dim  # velocities, where there are any, start from noise as well
        x = solver.rsample(model, (rows,), generator=Impulses(), dtype=torch.float64)
        mean, deviations = x[0].flatten(), (x[1:] - x[:1]).flatten(1)
        return mean, deviations.mT @ deviations
    reverse, times = ReverseSDE(model, solver.eta), solver.times(sde)
    mean, covariance = torch.zeros(0).double(), torch.zeros(0, 0).double()
    for stage in sde.stages():
        deviations = sde.append(mean, stage, Fixed(1.0))
        deviations[: len(mean)] = 0
        mean = sde.append(mean, stage, Fixed(0.0))
        grow = len(mean) - len(covariance)
        covariance = torch.nn.functional.pad(covariance, (0, grow, 0, grow))
        covariance = covariance + torch.diag(deviations**2)
        inside = times[(times <= stage.start + 1e-12) & (times >= stage.end - 1e-12)]
        for step in (-inside).unfold(0, 2, 1):
            points = torch.cat([mean[None], torch.eye(stage.dim).double()])
            points[1:] += mean
            moved = solver.integrate(reverse, points, step, Fixed(0.0))
            kicked = solver.integrate(reverse, points[:1], step, Fixed(1.0)) - moved[:1]
            jacobian = (moved[1:] - moved[:1]).mT
            mean = moved[0]
            covariance = jacobian @ covariance @ jacobian.mT + torch.diag(kicked[0] ** 2)
    back = sde.basis.inverse(torch.eye(n).double()).flatten(1)
    return mean @ back, back.mT @ covariance @ back


def relative_w2(mean: Tensor, covariance: Tensor, moments: tuple[Tensor, Tensor]) -> float:
    """``W2^2(N(mean, covariance), N(*moments)) / trace(covariance)``."""
    center, power = moments
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ power @ root).clamp(min=0).sqrt().sum()
    distance = (mean - center).square().sum() + covariance.trace() + power.trace() - 2 * cross
    return float(distance / covariance.trace())


def cost(sde: DiagonalSDE, solver: Solver) -> float:
    """Full-resolution evaluations: active over all components, summed over steps."""
    times = solver.times(sde)
    total = 0.0
    for stage in sde.stages():
        inside = (times <= stage.start + 1e-12) & (times >= stage.end - 1e-12)
        total += (int(inside.sum()) - 1) * stage.dim / sde.basis.dim
    return total
