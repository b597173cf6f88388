"""Log-densities by quadrature along a path, right to first order even off the flow.

Along any path ``z(t)``, whatever takes it there, with ``v`` the probability flow and ``s`` the
score,

    d log p_t(z)/dt = dp_t/dt / p_t + s dz/dt = -div v + s (dz/dt - v).

So a path that misses the flow by a little is no error but one more integral, which corrects it.
What is left is quadrature: of high order, at the nodes of a cheap path.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from torch import Tensor

from scoresde import grid as grids
from scoresde.bases.basis import precision
from scoresde.checks import validator, whole
from scoresde.grid import Grid
from scoresde.noise import Noise
from scoresde.sde import SDE, Propagator
from scoresde.solver import grid_field, jumps, sides

if TYPE_CHECKING:
    from scoresde.likelihood import DensityFlow


@attrs.frozen
class Quadrature:
    """Where `scoresde.log_prob` needs few evaluations: one per step, and the last.

    The path is a second-order exponential multistep one (Lu et al. 2022b). All integrals are
    those of piecewise cubic polynomials through four nodes, in every component's own log-SNR:

        log p(x) = log p_T(z_T) + sum_i [int a_i dt + int c_i dF_i/dz_i dt]
                   - int s (dz - v dt),        v = a z + c F,

    of which the first integral is known. For a score that is the gradient of a density's
    logarithm, the error of the path enters squared; for a learned one, it also enters times what
    the score lacks of being one. The limit of many steps is the flow's density either way.

    Args:
        steps: Number of steps.
        grid: Where they are: a name or a function, as for a `scoresde.Solver`.

    Raises:
        ValueError: If ``steps`` is not a whole number of at least 1, or the grid's name is unknown.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Quadrature, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> log_prob(model, torch.zeros(1, 1), Quadrature(20)).value.round(decimals=2)
        tensor([-0.9200])
    """

    sources = "lu2022b"

    steps: int = attrs.field(default=30, validator=validator(whole, 1))
    grid: Grid = grid_field(grids.broad)

    def times(self, sde: SDE) -> Tensor:
        """The grid for an SDE: decreasing, float64; see `scoresde.Solver.times`."""
        return grids.check(sde, self.grid(sde, self.steps))

    def transport(
        self, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """See `scoresde.Solver.transport`."""
        kinks, gained = jumps(density, ts), z.new_zeros(())
        ends = [0, *(kinks[1:-1].nonzero().flatten() + 1).tolist(), len(ts) - 1]
        for a, b in itertools.pairwise(ends):
            z, more = self._smooth(density, z, ts[a : b + 1], kinks[a : b + 1])
            gained = gained + more
        return z, gained

    def _smooth(
        self, density: DensityFlow, z: Tensor, ts: Tensor, kinks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Between two times at which rates jump."""
        like = torch.empty(z.shape[-1], dtype=precision(z.device), device=z.device)
        ahead = density.flow.propagator(ts[:-1].unsqueeze(-1), ts[1:].unsqueeze(-1), like)
        linear = ahead.decay.log().expand(-1, z.shape[-1]).sum().to(z)
        decay, gain = ahead.decay.to(z), ahead.gain.to(z)
        path, best = (averages(ahead, points).to(z) for points in (2, 4))
        starts, stops = sides(ts, kinks, torch.finfo(z.dtype).eps)
        forcings: list[Tensor] = []
        diagonals: list[Tensor] = []
        scores: list[Tensor] = []
        times = torch.cat([starts, stops[-1:]]).to(z)
        for k, force in enumerate(density.flow.forcings(times, z)):
            if k:
                latest = range(max(k - 2, 0), k)
                mean = sum(path[k - 1, j] * forcings[j] for j in latest)
                z = decay[k - 1] * z + gain[k - 1] * mean
            forcing, diagonal = density.look(force, z)
            forcings.append(forcing)
            diagonals.append(diagonal)
            scores.append(density.flow.sde.marginal_score(times[k], z, forcing))
        batch = z.shape[:-1]
        # of the path and of the flow from the same start, at the end of every step
        missed = gain.unsqueeze(1) * _combine(path - best, forcings)
        grown = torch.cat([torch.ones_like(ahead.decay[:1]), ahead.decay.cumprod(0)])
        carried = best * (grown.unsqueeze(0) / grown[1:].unsqueeze(1)).to(z)
        work = (missed * _combine(carried, scores)).sum((0, -1)).reshape(batch)
        plain = averages(ahead._replace(damping=torch.zeros_like(ahead.damping)), 4)
        weights = ((ahead.h.unsqueeze(1) * plain).sum(0) * responses(ahead)).to(z)
        trace = sum((w * d).sum(-1) for w, d in zip(weights, diagonals, strict=True))
        assert isinstance(trace, Tensor)
        return z, trace + (linear - work).unsqueeze(-1)


def _combine(weights: Tensor, values: list[Tensor]) -> Tensor:
    """``(k, nodes, 1 | n)`` times as many ``(*batch, n)``: ``(k, batch, n)``."""
    flat = torch.stack([v.reshape(-1, v.shape[-1]) for v in values])
    return torch.einsum("kjn,jbn->kbn", weights, flat)


def averages(ahead: Propagator, points: int) -> Tensor:
    """Weights of values at the nodes in their mean over each step.

    That of the polynomial through the nearest ``points`` nodes (through the latest two, of
    which the end is none, if they are two), under the density ``e^(damping v)`` of
    `scoresde.Propagator` with ``v`` from 0 to 1 along the step.

    Args:
        ahead: Coefficients of the steps, ``(k, 1 | n)``.
        points: 2 or 4.

    Returns:
        ``(k, k + 1, 1 | n)``.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.quadrature import averages
        >>> sde = DiagonalSDE(VP(), Identity((1,)))
        >>> ts = torch.tensor([[0.1], [0.2], [0.3]]).double()
        >>> ahead = sde.propagator(ts[:-1], ts[1:], torch.zeros(1, 1))
        >>> averages(ahead, 4).sum(1)  # weights of a mean
        tensor([[1.],
                [1.]])
    """
    steps, width = ahead.h.shape
    h = torch.where(ahead.h == 0, 1.0, ahead.h)  # what stands still has weights, not used
    place = torch.cat([torch.zeros_like(h[:1]), h.cumsum(0)])
    count = min(points, steps + 1)
    k = torch.arange(steps, device=h.device)
    last = k if points == 2 else (k + 2).clamp(count - 1, steps)
    stencil = (last.unsqueeze(1) - torch.arange(count, device=h.device)).clamp(min=0)
    nodes = place[stencil].unsqueeze(2)  # (k, count, 1, 1 | n)
    u, mass = (torch.from_numpy(v).to(h) / 2 for v in np.polynomial.legendre.leggauss(16))
    v = (u + 0.5).reshape(-1, 1)
    at = place[:-1].unsqueeze(1) + v * h.unsqueeze(1)
    density = mass.reshape(-1, 1) * (ahead.damping.unsqueeze(1) * v).exp()
    density = density / density.sum(1, keepdim=True)
    found = h.new_zeros(steps, steps + 1, width)
    for j in range(count):
        others = [i for i in range(count) if i != j]
        gaps = nodes[:, j : j + 1] - nodes[:, others]
        first = gaps == 0  # a node twice: there is no earlier one
        ratio = (at.unsqueeze(1) - nodes[:, others]) / gaps.masked_fill(first, 1.0)
        shape = ratio.masked_fill(first, 0.0 if j else 1.0).prod(1)
        found[k, stencil[:, j]] += (density * shape).sum(1)
    return found


def responses(ahead: Propagator) -> Tensor:
    """``c`` at the nodes, per unit of ``h``, ``(k + 1, 1 | n)``: the gain of steps of length 0.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.quadrature import responses
        >>> sde = DiagonalSDE(VP(), Identity((1,)))
        >>> ts = torch.tensor([[0.1], [0.2], [0.3]]).double()
        >>> ahead = sde.propagator(ts[:-1], ts[1:], torch.zeros(1, 1))
        >>> responses(ahead).shape
        torch.Size([3, 1])
    """
    h = torch.where(ahead.h == 0, 1.0, ahead.h)
    x = torch.where(ahead.damping == 0, 1.0, ahead.damping)
    early = torch.where(ahead.damping == 0, 1.0, x / torch.expm1(x))
    late = torch.where(ahead.damping == 0, 1.0, x / -torch.expm1(-x))
    rate = ahead.gain / h
    return torch.cat([rate * early / ahead.decay, (rate * late)[-1:]])
