"""The closed-form test bed: solvers on data with independent Gaussian components.

There a deterministic solver is a linear map of each component, and the law of its samples, and
with it ``W2^2`` to the data, is known without sampling: started from one deviation, it ends at one
(`UnitNoise`). Times are moved by gradient descent on that (`minimise`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.bases import Basis, Identity
from scoresde.diagonal import DiagonalSDE
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Noise
from scoresde.parametrization import noiseless, shrinkage
from scoresde.schedules import Schedule
from scoresde.sde import SDE
from scoresde.solver import Solver

SMOOTH = 0.03
"""Weight of the squared differences between log-lengths of neighbouring steps: neighbours of very
different length are tuned to the bed, not to the data. Small beside a log-error of order one."""

_LIMIT = 5.0
"""Bound of the log-lengths, a factor of 150 either way: no step vanishes while times are moved."""

Spectra = Mapping[str, Tensor]
"""Eigenvalues of the covariance of every block, coarse first; or a sample of them."""


class IndependentGaussian(ScoreEstimator):
    """The exact estimator of independent Gaussian components with mean 0.

    Args:
        sde: How data are diffused.
        variances: Of the data, ``(n,)``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.planning.gaussian_bed import IndependentGaussian
        >>> sde = DiagonalSDE(EDM(), Identity((2,)))
        >>> model = IndependentGaussian(sde, torch.tensor([1.0, 3.0]))
        >>> model.denoise(torch.ones(1, 2), 1.0)  # v / (v + t^2)
        tensor([[0.5000, 0.7500]])
    """

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


class UnitNoise(Noise):
    """Ones for noise: samples of a linear map become its standard deviations.

    Example:
        >>> import torch
        >>> from scoresde.planning.gaussian_bed import UnitNoise
        >>> UnitNoise()(torch.empty(2))
        tensor([1., 1.])
    """

    def __call__(self, like: Tensor) -> Tensor:
        """See the class."""
        return torch.ones_like(like)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """The best point that a quasi-Newton method has seen.

    Example:
        >>> import torch
        >>> from scoresde.planning.gaussian_bed import minimise
        >>> minimise(lambda x: (x - 3).square().sum(), torch.zeros(1), iterations=5).round()
        tensor([3.])
    """
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
class Draft:
    """Steps per stage and the logarithms of their lengths, up to a common factor.

    Example:
        >>> from scoresde.planning.gaussian_bed import Draft
        >>> Draft.even([1, 2]).grown(0, more=2).steps
        (3, 2)
    """

    steps: tuple[int, ...]
    logits: Tensor
    error: float = math.inf

    @classmethod
    def even(cls, steps: Sequence[int]) -> Draft:
        """With steps of one length."""
        return cls(tuple(steps), torch.zeros(sum(steps), dtype=torch.float64))

    def grown(self, stage: int, more: int) -> Draft:
        """With the longest steps of a stage halved, one after the other."""
        draft = self
        for _ in range(more):
            first = sum(draft.steps[:stage])
            last = first + draft.steps[stage]
            longest = first + int(draft.logits[first:last].argmax())
            half = draft.logits[longest : longest + 1] - math.log(2)
            logits = torch.cat([draft.logits[:longest], half, half, draft.logits[longest + 1 :]])
            steps = tuple(n + (k == stage) for k, n in enumerate(draft.steps))
            draft = Draft(steps, logits)
        return draft


class Bed:
    """Where drafts of multi-scale plans are measured.

    Args:
        basis: Its blocks are the bands.
        schedule: Read by every band.
        bands: Eigenvalues of the covariance of every band.
        solver: A deterministic one.
        quantiles: Eigenvalues by which each band is represented.

    Example:
        >>> import torch
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning.gaussian_bed import Bed, Draft
        >>> from solvers import DDIM
        >>> bands = {"a1": torch.ones(4), "d1": torch.full((12,), 0.1)}
        >>> bed = Bed(Haar((1, 4, 4), 1), LogLinear(), bands, DDIM(), quantiles=2)
        >>> few, more = Draft.even([1, 1]), Draft.even([4, 4])
        >>> bed.cost(more) / bed.cost(few), bool(bed.error(more) < bed.error(few))
        (4.0, True)
    """

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

    def cost(self, draft: Draft) -> float:
        """Full-resolution evaluations: the sum over steps of active over all components."""
        active = itertools.accumulate(self.sizes)
        return sum(n * a for n, a in zip(draft.steps, active, strict=True)) / sum(self.sizes)

    def sde(self, basis: Basis, draft: Draft) -> tuple[DiagonalSDE, Tensor]:
        """The multi-scale SDE of a draft, and its times."""
        T, eps = self.schedule.T, self.schedule.eps
        lengths = (_LIMIT * (draft.logits / _LIMIT).tanh()).softmax(0) * (T - eps)
        times = torch.cat([lengths.new_tensor([T]), T - lengths.cumsum(0)])
        starts = list(itertools.accumulate(draft.steps, initial=0))[:-1]
        drop = [T, *times[starts[1:]].tolist()]
        speeds = torch.cat([lengths.new_ones(1), T / times[starts[1:]]])
        return DiagonalSDE(self.schedule, basis, speeds, self.scale, drop), times

    def error(self, draft: Draft) -> Tensor:
        """``W2^2 / trace`` of the samples, differentiable in the lengths of the steps."""
        sde, times = self.sde(self.basis, draft)
        solver = attrs.evolve(self.solver, steps=sum(draft.steps), grid=lambda *_: times)
        estimator = IndependentGaussian(sde, self.variances)
        spread = solver.rsample(estimator, generator=UnitNoise(), dtype=torch.float64)
        gap = self.weights * (spread - self.variances.sqrt()) ** 2
        return gap.sum() / (self.weights * self.variances).sum()

    def tune(self, draft: Draft, iterations: int = 8) -> Draft:
        """The same steps, at better times."""
        best = draft

        def loss(logits: Tensor) -> Tensor:
            nonlocal best
            error = self.error(attrs.evolve(draft, logits=logits))
            if (value := error.item()) < best.error:
                best = attrs.evolve(draft, logits=logits.detach().clone(), error=value)
            return error.log() + SMOOTH * (logits.diff() ** 2).sum()

        minimise(loss, draft.logits, iterations)
        return best

    def handover(self, draft: Draft) -> float:
        """What is lost where components enter: see `scoresde.planning.Plan`."""
        sde, _ = self.sde(self.basis, draft)
        total = 0.0
        for stage, block in zip(
            sde.stages()[1:], list(sde.blocks.slices.values())[1:], strict=True
        ):
            at = sde.at(torch.tensor([stage.start], dtype=torch.float64))
            snr = sde.blocks.expand(at.log_snr.exp())
            total += float((snr * self.weights * self.variances)[block].sum() / 2)
        return total
