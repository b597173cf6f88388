"""Log-densities by quadrature along a path, right to first order even off the flow.

Along any path ``z(t)``, whatever takes it there, with ``v`` the probability flow and ``s`` the
score,

    d log p_t(z)/dt = dp_t/dt / p_t + s dz/dt = -div v + s (dz/dt - v).

So a path that misses the flow a little is corrected by one more integral, and what is left is
quadrature of high order, at the nodes of a cheap path.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import real, validator, whole
from scoresde.likelihood.density import DensityFlow
from scoresde.noise import Noise
from scoresde.precision import precision, to_device
from scoresde.propagator import Propagator
from scoresde.sampling import grid as grids
from scoresde.sampling.discontinuities import at_discontinuity, one_sided, segments
from scoresde.sampling.grid import Grid, grid_field
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import ReverseCoefficients


@attrs.frozen
class Quadrature:
    """Integrates log-densities with few evaluations of the score: one per step, and one at the end.

    The path is a second-order exponential multistep one (Lu et al. 2022b). All integrals are
    those of piecewise cubic polynomials through four nodes, in every component's own log-SNR:

        log p(x) = log p_T(z_T) + sum_i [int a_i dt + int c_i dF_i/dz_i dt]
                   - int s (dz - v dt),        v = a z + c F,

    of which the first integral is known. For a score that is the gradient of a density's
    logarithm, the error of the path enters squared; for a learned one, it also enters times what
    the score lacks of being one. The limit of many steps is the flow's density either way.

    Events near the border between modes need more nodes. The change of the integrals if polynomials
    were parabolas estimates a step's error: twice, the half of an event's steps with the largest
    errors is halved, at states between those of the path.

    An event's error is estimated as twice the sum of the changes that are left
    (`scoresde.likelihood.exact.LogProb`). On Gaussian mixtures the estimate is mostly ten times
    the error, and never below two fifths of it, even far between narrow modes, where few steps are
    off by hundreds of nats.

    Args:
        steps: Number of steps.
        grid: Where they are: a name or a function, as for a `scoresde.Solver`.
        tolerance: Of the sum of changes, in nats over the root of the number of components: events
            above it get more nodes; none if None.

    Raises:
        ValueError: If ``steps`` is not a whole number of at least 1, ``tolerance`` is negative, or
            the grid's name is unknown.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Quadrature, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> log_prob(model, torch.zeros(1, 1), Quadrature(20)).value.round(decimals=2)
        tensor([-0.9200])
    """

    references = "lu2022b"
    tells_errors: ClassVar[bool] = True

    steps: int = attrs.field(default=30, validator=validator(whole, 1))
    grid: Grid = grid_field(grids.wide_arctan_log_snr)
    tolerance: float | None = attrs.field(default=0.07)

    @tolerance.validator
    def _check_tolerance(self, attribute: Any, value: Any) -> None:
        if value is not None:
            real("tolerance", value, 0)

    def times(self, sde: SDE) -> Tensor:
        """The grid for an SDE: decreasing, float64; see `scoresde.Solver.times`."""
        return grids.check(sde, self.grid(sde, self.steps))

    def buffer_size(self, times: int, estimates: int) -> int:
        """See `scoresde.Solver.buffer_size`: what is known at all nodes, in full precision.

        Those are twice as many where an event gets more.
        """
        return 2 * 2 * times * (3 + estimates)

    def transport(
        self, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """See `scoresde.Solver.transport`."""
        batch, rows = z.shape[:-1], torch.arange(z.shape[:-1].numel(), device=z.device)
        flat = density if len(batch) == 1 else density.select(rows, batch)
        state, discontinuous = z.reshape(len(rows), z.shape[-1]), at_discontinuity(density, ts)
        pieces: list[_Piece] = []
        for a, b in segments(density, ts):
            nodes = _walk(flat, state, ts[a : b + 1], discontinuous[a : b + 1])
            pieces.append(_Piece.of(nodes))
            state = nodes.z[-1].to(z)
        if self.tolerance is not None:
            allowed = self.tolerance * z.shape[-1] ** 0.5
            # which events need more nodes is looked at once for all pieces
            short = torch.stack([piece.errors for piece in pieces]).gt(allowed).cpu()
            pieces = [_better(flat, *pair) for pair in zip(pieces, short, strict=True)]
        gained, errors = (
            torch.stack(v).sum(0).to(z) for v in zip(*(piece[1:] for piece in pieces), strict=True)
        )
        density.error = (_CAUTION * errors).reshape(batch)
        return state.reshape(z.shape), gained.reshape(*batch, gained.shape[-1])


_CAUTION = 2.0
"""Errors in units of their estimates: more than almost any, where they are below a nat."""


class _Nodes(NamedTuple):
    """What the flow says of times ``(k + 1, 1 | batch, 1)``, and what is known there."""

    at: ReverseCoefficients
    z: Tensor
    """``(k + 1, batch, n)``, as forcing and score; all in full precision."""
    forcing: Tensor
    score: Tensor
    diagonal: Tensor
    """``(k + 1, batch, estimates, n)``."""

    def only(self, at: ReverseCoefficients, rows: Tensor) -> _Nodes:
        """Of some events, whose times are given."""
        return _Nodes(at, *(v[:, rows] for v in self[1:]))


class _Piece(NamedTuple):
    """Between two times at which rates jump: the nodes, and what was found there.

    ``gained`` is ``(batch, estimates)``; ``errors``, estimates of what is left, ``(batch,)``.
    """

    nodes: _Nodes
    gained: Tensor
    errors: Tensor

    @classmethod
    def of(cls, nodes: _Nodes) -> _Piece:
        """What is found at some nodes."""
        steps = _integrate(nodes)
        return cls(nodes, steps.values.sum(0), _error_estimates(nodes, steps).sum(0))


class _StepIntegrals(NamedTuple):
    """Integrals ``(k, batch, estimates)``, and how far the path ends from the flow."""

    values: Tensor
    missed: Tensor


def _walk(density: DensityFlow, z: Tensor, ts: Tensor, discontinuous: Tensor) -> _Nodes:
    """The nodes of a second-order multistep path."""
    starts, stops = one_sided(ts, discontinuous, torch.finfo(z.dtype).eps)
    both = torch.cat([ts, starts, stops[-1:]]).reshape(-1, 1, 1)
    at = density.flow.at(both, z)
    exact, seen = at[: len(ts)], at[len(ts) :]
    ahead = exact[:-1].propagator(exact[1:])
    rule = averages(ahead, 2)
    decay, gain, weights = (at.cast(v) for v in (ahead.decay, ahead.gain, rule.weights))
    states: list[Tensor] = []
    evaluated: list[tuple[Tensor, Tensor]] = []
    for k, field in enumerate(seen.fields()):
        if k:
            places = zip(weights[k - 1], rule.nodes[k - 1].tolist(), strict=True)
            mean = sum(w * evaluated[j][0] for w, j in places)
            z = decay[k - 1] * z + gain[k - 1] * mean
        states.append(z)
        evaluated.append(density.evaluate(field.forcing, z))
    stacked = torch.stack(states)
    forcing, diagonal = (torch.stack(values) for values in zip(*evaluated, strict=True))
    score = seen.score(stacked, forcing)
    full = precision(z.device)
    return _Nodes(exact, *(v.to(full) for v in (stacked, forcing, score, diagonal)))


def _better(density: DensityFlow, piece: _Piece, short: Tensor) -> _Piece:
    """With more nodes for some events, ``(batch,)`` on the CPU."""
    nodes, gained, errors = piece
    rows = to_device(short.nonzero().flatten(), gained.device)
    if not len(rows):
        return piece
    steps, count = len(nodes.z) - 1, len(short)
    some = density.select(rows, (count,))
    t = to_device(nodes.at.t, gained.device).expand(-1, len(rows), -1)
    failing = nodes.only(density.flow.at(t, nodes.z[0, rows]), rows)
    for _ in range(2):
        failing = _refine(some, failing, (steps + 1) // 2, count)
    _, more, left = _Piece.of(failing)
    return _Piece(nodes, gained.index_copy(0, rows, more), errors.index_copy(0, rows, left))


def _integrate(nodes: _Nodes, points: int = 4) -> _StepIntegrals:
    """See `Quadrature`: of the divergence, less what the path does that the flow does not."""
    at, z, forcing, score, diagonal = nodes
    steps = at[:-1].propagator(at[1:])
    polynomials = _lagrange(steps.h, points, steps.h)
    best = polynomials.means(steps)
    # where on a step the path is let go astray is free: as noise grows; lengths count alike
    astray, plain = (
        polynomials.means(Propagator(*steps[:3], v, None)).weights
        for v in (steps.damping, torch.zeros_like(steps.h))
    )
    decay, astray = at.blocks.broadcastable(steps.decay, astray)
    grown = torch.cat([torch.ones_like(decay[:1]), decay.cumprod(0)])
    carried = astray * grown[best.nodes] / grown[1:].unsqueeze(1)
    widths, response = plain * steps.h.unsqueeze(1), at.response_by_length
    # small numbers, found where times are, and sent to where states are
    decay, gain, growth, weights, carried, widths, response = (
        at.blocks.expand(to_device(v, z.device))
        for v in (
            steps.decay,
            steps.gain,
            steps.decay.log(),
            best.weights,
            carried,
            widths,
            response,
        )
    )
    nearest = to_device(best.nodes, z.device)
    # of the path and of the flow from the same start, at the end of every step
    missed = z[1:] - decay * z[:-1] - gain * Rule(weights, nearest)(forcing)
    work = (missed * Rule(carried, nearest)(score)).sum(-1)
    linear = growth.expand(-1, -1, z.shape[-1]).sum(-1)
    trace = Rule((widths * response[nearest]).unsqueeze(-2), nearest)(diagonal).sum(-1)
    return _StepIntegrals(trace + (linear - work).unsqueeze(-1), missed)


def _error_estimates(nodes: _Nodes, steps: _StepIntegrals) -> Tensor:
    """By how much parabolas would change integrals, ``(k, batch)``; less where nodes are few."""
    with torch.no_grad():
        rough = _integrate(nodes, min(3, len(nodes.z) - 1))
        return (steps.values - rough.values).mean(-1).abs()


def _refine(density: DensityFlow, nodes: _Nodes, count: int, most: int) -> _Nodes:
    """With more nodes, in the middle of those steps of every event whose errors are largest.

    Args:
        density: Of these events.
        nodes: Of these events.
        count: Number of steps of each that are halved.
        most: States at a time: what memory there is has been enough for so many.
    """
    at, z, forcing, *_ = nodes
    k, flow, steps = len(z) - 1, density.flow, _integrate(nodes)
    chosen = _error_estimates(nodes, steps).topk(count, 0).indices.unsqueeze(-1)
    middle = (at.t[:-1] + at.t[1:]) / 2
    both = flow.at(torch.cat([at.t[:-1], middle]), at.like)
    ahead = at[:-1].propagator(at[1:])
    early = both[:k].propagator(both[k:])
    share = early.h / torch.where(ahead.h == 0, 1.0, ahead.h)
    mean = averages(ahead, 4, early).expand(at.blocks)(forcing)
    early, share = early.expand(at.blocks), at.blocks.expand(share)
    between = early.decay * z[:-1] + early.gain * mean + share * steps.missed
    times, states = (v.take_along_dim(chosen, 0).flatten(0, 1) for v in (middle, between))
    rows, evaluated = torch.arange(len(states), device=z.device), []
    for part in rows.split(most):
        some = density.select(part % z.shape[1], z.shape[1:2])
        state = states[part].to(density.probes)
        seen = some.flow.at(times[part].unsqueeze(0).to(state), state)
        value, diagonal = some.evaluate(next(seen.fields()).forcing, state)
        evaluated.append((value, seen.score(state.unsqueeze(0), value.unsqueeze(0))[0], diagonal))
    values = (torch.cat(parts).to(z) for parts in zip(*evaluated, strict=True))
    new = (states.to(density.probes).to(z), *values)
    joined = [
        torch.cat([old, v.reshape(count, *old.shape[1:])])
        for old, v in zip(nodes[1:], new, strict=True)
    ]
    t = torch.cat([at.t, middle.take_along_dim(chosen, 0)])
    order = t.argsort(0)
    ordered = (
        v.take_along_dim(order.reshape(*order.shape, *[1] * (v.ndim - 3)), 0) for v in joined
    )
    return _Nodes(flow.at(t.take_along_dim(order, 0), at.like), *ordered)


class Rule(NamedTuple):
    """Weights ``(k, points, ...)`` of values at the nodes ``(k, points)``, for every step."""

    weights: Tensor
    nodes: Tensor

    def expand(self, blocks: Blocks) -> Rule:
        """With weights of every component, of a state in these blocks, wherever they differ."""
        return Rule(blocks.expand(self.weights), self.nodes)

    def __call__(self, values: Tensor) -> Tensor:
        """Values ``(k + 1, ...)`` to ``(k, ...)``."""
        parts = zip(self.weights.unbind(1), self.nodes.unbind(1), strict=True)
        total = sum(weights * values[nodes] for weights, nodes in parts)
        assert isinstance(total, Tensor)
        return total


def averages(ahead: Propagator, points: int, part: Propagator | None = None) -> Rule:
    """Weights of values at the nodes in the means of a forcing over each step.

    The mean is that of the polynomial through ``points`` nodes, by the moments of a
    `scoresde.propagator.Propagator`. Four nodes are the nearest, three are these without the
    latest, two the latest before the end, one is the start.

    Args:
        ahead: Coefficients of the steps, ``(k, ...)``.
        points: 1 to 4.
        part: Of parts of them, from where they start, over which the means are; of the whole if
            None.
    """
    part = ahead if part is None else part
    return _lagrange(ahead.h, points, part.h).means(part)


class _Lagrange(NamedTuple):
    """Of every step, the polynomials that are 1 at one of its nodes, and 0 at the others.

    ``coefficients`` are ``(k, points, ...)`` each, the lowest first; ``nodes``, ``(k, points)``.
    """

    coefficients: list[Tensor]
    nodes: Tensor

    def means(self, part: Propagator) -> Rule:
        """Over steps, or parts of them, by the ``moments`` of their equation."""
        moments = [*part.moments]
        if len(self.coefficients) > 3:
            moments.append(part.cubic)
        weights, *rest = self.coefficients
        for coefficient, moment in zip(rest, moments, strict=False):
            weights = weights + coefficient * moment.unsqueeze(1)
        return Rule(weights, self.nodes)


def _lagrange(h: Tensor, points: int, unit: Tensor) -> _Lagrange:
    """Of steps ``(k, ...)``, in units of parts of them; see `averages`."""
    # what stands still has weights, not used
    h, unit = (v.masked_fill(v == 0, 1.0) for v in (h, unit))
    place = torch.cat([torch.zeros_like(h[:1]), h.cumsum(0)])
    count, k = min(points, len(h) + 1), torch.arange(len(h), device=h.device)
    last = k if points == 2 else (k + points // 2).clamp(count - 1, len(h))
    stencil = (last.unsqueeze(1) - torch.arange(count, device=h.device)).clamp(min=0)
    nodes = (place[stencil] - place[:-1].unsqueeze(1)) / unit.unsqueeze(1)
    coefficients, none = [torch.ones_like(nodes)], torch.zeros_like(nodes)
    alone = none.index_fill(1, stencil.new_zeros(1), 1.0)
    for shift in range(1, count):  # the factors of all nodes at once: of each, that of another
        others = nodes.roll(-shift, 1)
        gap = nodes - others
        twice = gap == 0  # there is no earlier one: its factor is 1, and that of others 0
        slope = (1 / gap.masked_fill(twice, 1.0)).masked_fill(twice, 0.0)
        intercept = torch.where(twice, alone, -others * slope)
        powers = zip([*coefficients, none], [none, *coefficients], strict=True)
        coefficients = [intercept * a + slope * b for a, b in powers]
    return _Lagrange(coefficients, stencil)
