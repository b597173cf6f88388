"""Multi-scale plans from data: when to drop what, and where to put the steps.

For data with independent Gaussian components a deterministic solver is a linear map, and the
error of its samples is known in closed form. A plan minimises it: the data are replaced by the
eigenvalues of every band's covariance, times are moved by gradient descent, and steps are added
where they buy most. Coarse stages are cheap, so they get most of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde import grid as grids
from scoresde.bases import Basis, Identity
from scoresde.checks import expect, finite
from scoresde.diagonal import DiagonalSDE
from scoresde.estimator import ScoreEstimator
from scoresde.grid import segments
from scoresde.noise import Noise
from scoresde.parametrization import noiseless, shrinkage
from scoresde.schedules import Schedule
from scoresde.sde import SDE
from scoresde.solver import Solver

_WORTH = 0.002  # logarithm of the error that a full-resolution evaluation must buy

_SMOOTH = 0.03
_LIMIT = 5.0

Spectra = Mapping[str, Tensor]
"""Eigenvalues of the covariance of every block, coarse first; or a sample of them."""


def spectra(basis: Basis, data: Tensor) -> dict[str, Tensor]:
    """Eigenvalues of the covariance of every block of coefficients.

    Args:
        basis: Its blocks are the bands.
        data: Events, ``(N, *event_shape)``; of blocks longer than ``N`` the eigenvalues that
            so many events show.

    Returns:
        ``(size,)`` for every block, not increasing.

    Raises:
        ValueError: If the data are not finite.

    Example:
        >>> import torch
        >>> from scoresde import Haar
        >>> from scoresde.planning import spectra
        >>> bands = spectra(Haar((1, 4, 4), 1), torch.randn(100, 1, 4, 4))
        >>> {name: len(values) for name, values in bands.items()}
        {'a1': 4, 'd1': 12}
    """
    finite("data", data)
    z = basis(data.double())
    found = {}
    for name, block in basis.blocks.slices.items():
        centred = z[:, block] - z[:, block].mean(0)
        values = torch.linalg.svdvals(centred) ** 2 / len(z)
        found[name] = torch.nn.functional.pad(values, (0, centred.shape[1] - len(values)))
    return found


@attrs.frozen(eq=False)
class Plan:
    """A multi-scale SDE and the times at which to sample it.

    Use as ``Solver(steps=sum(plan.steps), grid=plan.grid)`` on an estimator of ``plan.sde``.

    Attributes:
        sde: Drops every block at the start of the stage that it enters.
        times: Decreasing, from ``T`` to ``eps``.
        steps: Steps per stage, coarse first.
        cost: Sum over steps of active over all components: full-resolution evaluations.
        error: Predicted ``W2^2 / trace`` between samples and data.
        handover: Bound on the divergence that the handovers cost, in nats:
            ``sum_k SNR_k(T_k) E|d_k|^2 / 2``.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> from solvers import DDIM
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> DDIM(sum(made.steps), grid=made.grid).times(made.sde).shape
        torch.Size([9])
    """

    sde: DiagonalSDE
    times: Tensor
    steps: tuple[int, ...]
    cost: float
    error: float
    handover: float

    def grid(self, sde: SDE, steps: int) -> Tensor:
        """The plan's times, as a `scoresde.grid.Grid`."""
        return self.times


def plan(
    basis: Basis,
    schedule: Schedule,
    bands: Spectra,
    solver: Solver,
    *,
    error: float = 0.0,
    cost: float = math.inf,
    evaluations: float = math.inf,
    quantiles: int = 32,
) -> Plan:
    """The cheapest plan found that reaches an error, or the best within a budget.

    Args:
        basis: Its blocks are dropped one by one, the last one first.
        schedule: Read by every band on a clock that stops when the band is dropped.
        bands: What is known of the data, see `spectra`.
        solver: A deterministic solver, whose grid is planned.
        error: Wanted ``W2^2 / trace``.
        cost: Allowed cost, in full-resolution evaluations.
        evaluations: Allowed number of steps in all.
        quantiles: Eigenvalues by which each band is represented.

    Raises:
        ValueError: If neither an error nor a budget is given, or the solver is stochastic, or
            the budget does not allow one step per stage.

    Example:
        >>> import torch
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import plan, spectra
        >>> from solvers import DDIM
        >>> _ = torch.manual_seed(0)
        >>> basis = Haar((1, 4, 4), 1)
        >>> bands = spectra(basis, torch.randn(100, 1, 1, 1) + 0.1 * torch.randn(100, 1, 4, 4))
        >>> made = plan(basis, LogLinear(), bands, DDIM(), evaluations=5)
        >>> sum(made.steps), made.cost < 5
        (5, True)
    """
    expect(
        error > 0 or min(cost, evaluations) < math.inf,
        "error, cost, evaluations",
        "one of them",
        (error, cost, evaluations),
    )
    expect(solver.eta == 0, "solver", "a deterministic one (eta = 0)", solver)
    for name, band in bands.items():
        expect(bool((band >= 0).all()), f"bands[{name!r}]", "variances, at least 0", band)
    expect(list(bands) == list(basis.blocks.sizes), "bands", f"{basis.blocks}", list(bands))
    bed = _Bed(basis, schedule, bands, solver, quantiles)
    best = bed.tune(_Draft.even([1] * len(bands)))
    expect(bed.cost(best) <= cost, "cost", f"at least {bed.cost(best):.3g}", cost)
    expect(len(bands) <= evaluations, "evaluations", f"at least {len(bands)}", evaluations)
    while best.error > error:
        # where one step more is worth nothing, two may be
        for more in (1, 2):
            grown = [best.grown(k, more) for k in range(len(bands))]
            grown = [d for d in grown if bed.cost(d) <= cost and sum(d.steps) <= evaluations]
            tuned = [bed.tune(draft) for draft in grown]
            gains = [math.log(best.error / d.error) / (bed.cost(d) - bed.cost(best)) for d in tuned]
            if gains and max(gains) > _WORTH:
                break
        else:
            break
        best = tuned[gains.index(max(gains))]
    best = bed.tune(best, iterations=100)
    return bed.plan(basis, best)


def equal(basis: Basis, schedule: Schedule, steps: int, scale: Any = 1.0) -> Plan:
    """The paper's plan: ``T_k = k/K``, the same number of steps in every stage.

    Source:
        Batzolis et al. 2022 (arXiv 2207.09786), section 5.

    Args:
        basis: Its ``K`` blocks are dropped one by one.
        schedule: Read by every band on a clock that stops when the band is dropped.
        steps: Steps per stage, equal in time.
        scale: Unit of the noise, along the component axis.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> made.steps, made.cost
        ((4, 4), 5.0)
    """
    count = len(basis.blocks)
    drop = [schedule.T * (count - k) / count for k in range(count)]
    sde = DiagonalSDE(schedule, basis, [schedule.T / t for t in drop], scale, drop)
    edges = [*drop, schedule.eps]
    pieces = [
        torch.linspace(a, b, steps + 1, dtype=torch.float64, device="cpu")[:-1]
        for a, b in itertools.pairwise(edges)
    ]
    times = torch.cat([*pieces, torch.tensor([schedule.eps], dtype=torch.float64, device="cpu")])
    sizes = list(itertools.accumulate(basis.blocks.sizes.values()))
    cost = steps * sum(sizes) / sizes[-1]
    return Plan(sde, times, (steps,) * count, cost, math.nan, math.nan)


@attrs.frozen(eq=False)
class OptimisedGrid:
    """The times at which a solver's samples of Gaussian data are best, as a grid.

    Moves times by gradient descent on the closed-form error of independent components; where
    rates jump, times stay.

    Args:
        variances: Of the data, along the component axis of the SDE's basis.
        solver: A deterministic solver, the one that will use the grid.

    Raises:
        ValueError: If a variance is negative, or the solver is stochastic.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.planning import OptimisedGrid
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> times = OptimisedGrid(torch.tensor([1.0, 0.1]), DDIM())(sde, 6)
        >>> len(times), float(times[0])
        (7, 1.0)
    """

    variances: Tensor
    solver: Solver

    def __attrs_post_init__(self) -> None:
        good = bool(torch.isfinite(self.variances).all() and (self.variances >= 0).all())
        expect(good, "variances", "finite numbers, at least 0", self.variances)
        expect(self.solver.eta == 0, "solver", "a deterministic one (eta = 0)", self.solver)

    def __call__(self, sde: SDE, steps: int) -> Tensor:
        """A grid: ``(steps + 1,)`` decreasing times."""
        sde.basis.blocks.check("variances", self.variances)
        variances = sde.basis.blocks.expand(self.variances.double()).expand(sde.basis.dim)
        first = grids.arctan_log_snr(sde, steps)
        pieces = [(first[a], first[a : b + 1].diff()) for a, b in segments(sde, first)]
        start = torch.cat([(gaps / gaps.sum()).log() for _, gaps in pieces])
        estimator = _Independent(sde, variances)

        def times(logits: Tensor) -> Tensor:
            shares = logits.split([len(gaps) for _, gaps in pieces])
            moved = [
                begin + torch.cat([begin.new_zeros(1), (part.softmax(0) * gaps.sum()).cumsum(0)])
                for (begin, gaps), part in zip(pieces, shares, strict=True)
            ]
            return torch.cat([moved[0][:1], *(part[1:] for part in moved)])

        def loss(logits: Tensor) -> Tensor:
            solver = attrs.evolve(self.solver, steps=steps, grid=lambda *_: times(logits))
            spread = solver.rsample(estimator, generator=_Ones(), dtype=torch.float64)
            gap: Tensor = (sde.basis(spread) - variances.sqrt()).square().sum() / variances.sum()
            kept: Tensor = (logits - start).diff().square().sum()
            total: Tensor = gap.log() + _SMOOTH * kept
            return total

        return times(_minimise(loss, start, 60)).detach()


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """The best point that a quasi-Newton method has seen."""
    point, best, lowest = start.clone().requires_grad_(), start, math.inf
    optimizer = torch.optim.LBFGS(
        [point], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nonlocal best, lowest
        optimizer.zero_grad()
        if not bool(point.isfinite().all()):
            return point.new_tensor(math.inf)  # a line search that has lost its way
        value: Tensor = loss(point)
        if (found := value.item()) < lowest:
            best, lowest = point.detach().clone(), found
        value.backward()
        return value

    optimizer.step(closure)
    return best


@attrs.frozen(eq=False)
class _Draft:
    """Steps per stage and the logarithms of their lengths, up to a common factor."""

    steps: tuple[int, ...]
    logits: Tensor
    error: float = math.inf

    @classmethod
    def even(cls, steps: Sequence[int]) -> _Draft:
        return cls(tuple(steps), torch.zeros(sum(steps), dtype=torch.float64))

    def grown(self, stage: int, more: int) -> _Draft:
        """With the longest steps of a stage halved, one after the other."""
        draft = self
        for _ in range(more):
            first = sum(draft.steps[:stage])
            last = first + draft.steps[stage]
            longest = first + int(draft.logits[first:last].argmax())
            half = draft.logits[longest : longest + 1] - math.log(2)
            logits = torch.cat([draft.logits[:longest], half, half, draft.logits[longest + 1 :]])
            steps = tuple(n + (k == stage) for k, n in enumerate(draft.steps))
            draft = _Draft(steps, logits)
        return draft


class _Bed:
    """The closed-form test bed on which drafts are measured."""

    def __init__(
        self, basis: Basis, schedule: Schedule, bands: Spectra, solver: Solver, quantiles: int
    ) -> None:
        self.schedule, self.solver = schedule, solver
        self.sizes = list(basis.blocks.sizes.values())
        counts = [min(quantiles, len(band)) for band in bands.values()]
        # a band is represented by the means of equal parts of its spectrum
        variances, weights = [], []
        for band, count, size in zip(bands.values(), counts, self.sizes, strict=True):
            for part in band.double().sort(descending=True).values.tensor_split(count):
                variances.append(part.mean())
                weights.append(len(part) * size / len(band))
        self.variances = torch.stack(variances)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.basis = Identity((sum(counts),), dict(zip(basis.blocks.sizes, counts, strict=True)))
        power = [band.double().mean() for band in bands.values()]
        floor = 1e-8 * max(power)
        self.scale = torch.stack([value.clamp(min=floor) for value in power]).sqrt()

    def cost(self, draft: _Draft) -> float:
        active = itertools.accumulate(self.sizes)
        return sum(n * a for n, a in zip(draft.steps, active, strict=True)) / sum(self.sizes)

    def sde(self, basis: Basis, draft: _Draft) -> tuple[DiagonalSDE, Tensor]:
        """The multi-scale SDE of a draft, and its times."""
        T, eps = self.schedule.T, self.schedule.eps
        # bounded, so that no step vanishes while times are moved
        lengths = (_LIMIT * (draft.logits / _LIMIT).tanh()).softmax(0) * (T - eps)
        times = torch.cat([lengths.new_tensor([T]), T - lengths.cumsum(0)])
        starts = list(itertools.accumulate(draft.steps, initial=0))[:-1]
        drop = [T, *times[starts[1:]].tolist()]
        speeds = torch.cat([lengths.new_ones(1), T / times[starts[1:]]])
        return DiagonalSDE(self.schedule, basis, speeds, self.scale, drop), times

    def error(self, draft: _Draft) -> Tensor:
        """``W2^2 / trace`` of the samples, differentiable in the lengths of the steps."""
        sde, times = self.sde(self.basis, draft)
        solver = attrs.evolve(self.solver, steps=sum(draft.steps), grid=lambda *_: times)
        estimator = _Independent(sde, self.variances)
        spread = solver.rsample(estimator, generator=_Ones(), dtype=torch.float64)
        gap = self.weights * (spread - self.variances.sqrt()) ** 2
        return gap.sum() / (self.weights * self.variances).sum()

    def tune(self, draft: _Draft, iterations: int = 8) -> _Draft:
        """The same steps, at better times."""
        best = draft

        def loss(logits: Tensor) -> Tensor:
            nonlocal best
            error = self.error(attrs.evolve(draft, logits=logits))
            if (value := error.item()) < best.error:
                best = attrs.evolve(draft, logits=logits.detach().clone(), error=value)
            # neighbours of very different length are tuned to the bed, not to the data
            return error.log() + _SMOOTH * (logits.diff() ** 2).sum()

        _minimise(loss, draft.logits, iterations)
        return best

    def plan(self, basis: Basis, draft: _Draft) -> Plan:
        sde, times = self.sde(basis, draft)
        bed, _ = self.sde(self.basis, draft)
        handover = 0.0
        for stage, block in zip(
            sde.stages()[1:], list(bed.blocks.slices.values())[1:], strict=True
        ):
            at = bed.at(torch.tensor([stage.start], dtype=torch.float64))
            snr = bed.blocks.expand(at.log_snr.exp())
            handover += float((snr * self.weights * self.variances)[block].sum() / 2)
        return Plan(sde, times, draft.steps, self.cost(draft), draft.error, handover)


class _Independent(ScoreEstimator):
    """The exact estimator of independent Gaussian components with mean 0."""

    def __init__(self, sde: SDE, variances: Tensor) -> None:
        super().__init__(sde)
        self.register_buffer("variances", variances)

    variances: Tensor

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``alpha v / (alpha^2 v + sigma^2) z``."""
        alpha, sigma = (v.to(z) for v in self.sde.kernel(self.sde.time(t, z), z.shape[-1]))
        noisy = sigma.masked_fill(sigma == 0, 1.0)
        variance = self.variances[: z.shape[-1]].to(z)
        return noiseless(sigma, z, shrinkage(alpha, noisy, variance) * z)


class _Ones(Noise):
    """Ones for noise: samples of a linear map become its standard deviations."""

    def __call__(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)
