"""Adaptive steps, for every sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from scoresde.blocks import folded
from scoresde.checks import positive, validator, whole
from scoresde.endpoint_solver import EndpointSolver
from scoresde.equation import Equation, expect_ode
from scoresde.noise import Noise
from scoresde.sampling.discontinuities import TimeWarp, segments
from solvers.rungekutta import step, tableau


@attrs.frozen(eq=False)
class Outcome:
    """The result of an adaptive integration, complete or not.

    Attributes:
        states: ``(*batch, n)``: at the end where ``finished``, else where a sample got stuck.
        times: Times reached, ``(*batch,)``, in the SDE's clock.
        finished: Whether a sample has reached the end, ``(*batch,)``.
        steps: Steps taken and refused, ``(*batch,)``; each costs three evaluations.
        worst: The component with the largest error in a sample's last attempt, ``(*batch,)``.
        lost: Whether a sample was given up, as the field is not finite at its state, or after steps
            of any length, ``(*batch,)``.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ProbabilityFlow
        >>> from solvers import Adaptive
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> flow, ts = ProbabilityFlow(model), torch.tensor([0.01, 3.0]).double()
        >>> outcome = Adaptive().solve(flow, torch.ones(2, 1), ts)
        >>> outcome.finished, outcome.states[0].round(decimals=2)  # sqrt(1 + 3^2)
        (tensor([True, True]), tensor([3.1600]))
    """

    states: Tensor
    times: Tensor
    finished: Tensor
    steps: Tensor
    worst: Tensor
    lost: Tensor


class StepLimit(RuntimeError):
    """Some samples did not arrive: the allowed steps are used up, or the field is not finite.

    Attributes:
        outcome: The result so far, for all samples.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from solvers import Adaptive, StepLimit
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> try:
        ...     Adaptive(max_steps=2).sample(model, (3,))
        ... except StepLimit as error:
        ...     print(error.outcome.finished)
        tensor([False, False, False])
    """

    def __init__(self, outcome: Outcome, limit: int) -> None:
        stuck, lost = (~outcome.finished).flatten(), outcome.lost.flatten()
        first = int((lost if bool(lost.any()) else stuck).nonzero()[0])
        state = outcome.states.reshape(len(stuck), -1)[first]
        what = "changes too fast"
        if bool(lost[first]):
            what = "has a field that is NaN or infinite"
        elif not bool(torch.isfinite(state).all()):
            what = "is not finite"
        flat = (v.flatten()[first].item() for v in (outcome.times, outcome.steps, outcome.worst))
        time, steps, component = flat
        super().__init__(
            f"max_steps: {int(stuck.sum())} of {len(stuck)} samples have not arrived, {limit} "
            f"steps being allowed; sample {first} stopped at time {time:.6g} after {steps}, where "
            f"component {component} {what}; what there is of them is in the attribute outcome"
        )
        self.outcome = outcome


@attrs.frozen
class Adaptive(EndpointSolver):
    """Third order with an error estimate, on every sample's own steps (for ODEs).

    A sample's steps and value depend on that sample alone, as far as the estimator's do; finished
    ones leave the batch. A step is accepted if the root mean square over components of
    ``error / (atol + rtol |z|)`` is at most 1, where the error is the distance to the embedded
    result of second order. Steps are measured along the grid, and end where rates jump.

    Source:
        Lu et al. 2022 (arXiv 2206.00927) for the method, there for one clock;
        Jolicoeur-Martineau et al. 2021 (arXiv 2105.14080) for steps of every sample's own.

    Args:
        rtol: Relative tolerance per step.
        atol: Absolute tolerance per step, in the data's units.
        max_steps: Steps, taken and refused, that a sample is allowed in all.
        pad_to_multiple_of: Samples are evaluated in multiples of this number, some of them twice if
            need be: processors compute functions a whole vector at a time, and the rest with other
            last digits. With 16 a sample does not depend on the batch, to the last bit in float64
            (32 in float32 where vectors have 512 bits); 1 is for networks so large that a single
            sample must not cost more than one.

    Raises:
        ValueError: If a tolerance is not positive or a count below 1; on integrating, if the
            equation has noise (``eta`` above 0).
        StepLimit: On integrating, if a sample does not arrive.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import Adaptive
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = Adaptive(rtol=1e-3).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "lu2022 martineau2021"
    laws: ClassVar = {"adaptive": True}

    order = 3.0
    weak_order = None

    rtol: float = attrs.field(default=1e-4, kw_only=True, validator=validator(positive))
    atol: float = attrs.field(default=1e-4, kw_only=True, validator=validator(positive))
    max_steps: int = attrs.field(default=1000, kw_only=True, validator=validator(whole, 1))
    pad_to_multiple_of: int = attrs.field(default=16, kw_only=True, validator=validator(whole, 1))

    def integrate(self, equation: Equation, y: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """See `scoresde.Solver.integrate`; of the times within, only the jumps are met."""
        outcome = self.solve(equation, y, ts)
        if not bool(outcome.finished.all()):
            raise StepLimit(outcome, self.max_steps)
        return outcome.states

    def solve(self, equation: Equation, y: Tensor, ts: Tensor) -> Outcome:
        """As `integrate`, but returns what there is when a sample does not arrive."""
        batch = y.shape[:-1]
        run = _Run.of(y, float(ts[0]))
        expect_ode(equation, "this solver")
        alive = torch.arange(len(run.rows), device=y.device)
        for a, b in segments(equation, ts):
            track = TimeWarp(ts[a : b + 1], (a > 0, b < len(ts) - 1), torch.finfo(y.dtype).eps)
            alive = alive[self._advance(equation, track, batch, run, alive)]
        finished = torch.zeros(len(run.rows), dtype=torch.bool, device=y.device)
        finished[alive] = True
        lost = (run.failed > _TRIES) & ~finished
        flat = (run.reached.to(y.device), finished, run.count, run.worst, lost)
        return Outcome(run.rows.reshape(y.shape), *(v.reshape(batch) for v in flat))

    def _advance(
        self, equation: Equation, track: TimeWarp, batch: Sequence[int], run: _Run, alive: Tensor
    ) -> Tensor:
        """Takes the living rows along a track, in place; says which of them have arrived."""
        where = torch.zeros(len(alive), dtype=torch.float64, device="cpu")
        length = torch.full_like(where, 1 / self.steps)
        busy = torch.arange(len(alive), device="cpu")
        while len(busy):
            # processors round what is left over of a vector otherwise
            padded = torch.cat([busy, busy[:1].expand(-len(busy) % self.pad_to_multiple_of)])
            mine = alive[padded.to(alive.device)]
            y, start = run.rows[mine], where[padded]
            reach = torch.minimum(length[padded], 1 - start)
            parts = [track(start + reach * part) for part in (0.0, 1 / 3, 2 / 3, 1.0)]
            times = torch.stack(parts).unsqueeze(-1)
            at = equation.select(mine, batch).at(times, y)
            first, *forcings = (field.forcing for field in at[:3].fields())
            here = first(y)
            end, error = step(y, here, forcings, tableau(at))
            size = self.atol + self.rtol * torch.maximum(y.abs(), end.abs())
            ratios = (error.abs() / size).detach()  # what steps are taken is not differentiated
            ratio = (folded(ratios.square()) / ratios.shape[-1]).sqrt().double().cpu()
            n, spots = len(busy), alive[busy.to(alive.device)]
            run.fail(spots, here[:n], ratio[:n])
            ratio = ratio.nan_to_num(torch.inf)
            factor = (_SAFETY * ratio.clamp(min=1e-6) ** (-1 / self.order)).clamp(*_CHANGES)
            accepted = (ratio <= 1)[:n]
            run.move(spots, ratios[:n], end[:n], times[3][:n, 0], accepted)
            where[busy[accepted]] = (start + reach)[:n][accepted]
            length[busy] = (reach * factor)[:n]
            left = (run.count[spots] < self.max_steps) & (run.failed[spots] <= _TRIES)
            busy = busy[(where[busy] < 1) & left.cpu()]
        return (where >= 1).to(alive.device)


_SAFETY, _CHANGES = 0.9, (0.2, 5.0)
"""Of the step at which the error would be the tolerance, so much is tried; and by how much a step
may change (Hairer, Norsett and Wanner 1993, II.4)."""

_TRIES = 20
"""How many attempts of a sample may end nowhere: a fifth of the step each time, 1e-14 in all."""


@attrs.frozen(eq=False)
class _Run:
    """The state of an integration, a row per sample."""

    rows: Tensor
    count: Tensor
    worst: Tensor
    failed: Tensor
    reached: Tensor

    @classmethod
    def of(cls, y: Tensor, start: float) -> _Run:
        """Before the first step."""
        rows = y.reshape(y.shape[:-1].numel(), y.shape[-1]).clone()
        count, worst, failed = torch.zeros(3, len(rows), dtype=torch.long, device=y.device)
        reached = torch.full((len(rows),), start, dtype=torch.float64, device="cpu")
        return cls(rows, count, worst, failed, reached)

    def fail(self, spots: Tensor, here: Tensor, ratio: Tensor) -> None:
        """Counts attempts that end nowhere; where the field is nowhere itself, there is no use."""
        self.failed[spots] += (~torch.isfinite(ratio)).to(spots.device)
        self.failed[spots] += (_TRIES + 1) * (~torch.isfinite(here.detach()).all(-1))

    def move(
        self, spots: Tensor, ratios: Tensor, end: Tensor, times: Tensor, accepted: Tensor
    ) -> None:
        """Goes on where a step is taken."""
        here = accepted.to(spots.device)
        self.rows[spots[here]] = end[here]
        self.reached[spots[here].cpu()] = times[accepted]
        self.count[spots] += 1
        self.worst[spots] = ratios.nan_to_num(torch.inf).argmax(-1)
