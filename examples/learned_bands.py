"""Noise schedules that are learned, one path for every band of an image.

`scoresde.Learned` is a monotone path of the log-SNR for each block of any basis, here of
frequencies or wavelets. Three ways to learn it:

- `by_bound`: the variational bound, together with the network (Kingma et al. 2021, arXiv
  2107.00630; per component, Sahoo et al. 2023, arXiv 2312.13236). It depends on paths only as far
  as denoised means are wrong: exact ones have the same bound on all of them.
- `by_quality`: what a few steps of a sampler miss. Of Gaussian data that is known without sampling:
  of independent coefficients what starts at one standard deviation should end at one
  (`few_steps_error`), and of others the distribution of samples is known (`whole_error`). All that
  counts are noise levels at the times of the steps, and those are what `Knots` learns.
- `Contexts`: MuLAN's paths that depend on the data. A context, which an encoder reads from the
  event, chooses the path; the bound averages over it and pays for it. The paper has fifty binary
  contexts, relaxed, and polynomials for paths; here are a few, summed over, with `Learned`.

Two subspaces of low and high frequencies with a path of noise variance for each, ``M_t = g(t) V +
h(t) (1 - V)``, are the anisotropic schedules of Liu et al. 2026 (arXiv 2602.19512): up to the scale
of the state, ``g`` and ``h`` are the ``exp(-lambda)`` of `learned_bands` over two blocks, as of
``DCT(shape, bands=2)`` or of principal components. Its objective weighs errors along the
trajectory; that of `by_quality` measures where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from report import digits, moments, report
from torch import Tensor, nn

from estimators import Gaussian
from scoresde import (
    DCT,
    Basis,
    DiagonalSDE,
    FixedStep,
    Identity,
    Learned,
    LogLinear,
    ScoreEstimator,
    bound,
)
from scoresde.planning.draft_evaluator import ScaleMixtures
from scoresde.planning.independent_gaussian import UnitNoise
from scoresde.testing import Impulses
from solvers import ExponentialMultistep


def learned_bands(
    basis: Basis, data: Tensor, sigma_min: float = 0.005, sigma_max: float = 150.0
) -> DiagonalSDE:
    """A path for every block, in units of the block's own deviation.

    Args:
        basis: Has a block for every path.
        data: ``(N, *event_shape)``, to measure blocks with.
        sigma_min: First ``sigma / alpha``, in those units.
        sigma_max: Last one.
    """
    mean, std = basis.moments(data)
    power = basis.blocks.mean(basis.blocks.expand(std.square()))
    ends = {"log_snr_max": -2 * math.log(sigma_min), "log_snr_min": -2 * math.log(sigma_max)}
    schedule = Learned(len(basis.blocks), **ends)
    return DiagonalSDE(schedule, basis, scale=power.sqrt(), mean=mean)


_FAR = 60.0
"""A log-SNR that no knot leaves: beyond it neither signal nor noise has a digit left."""


class Knots(LogLinear):
    """Paths of log-SNR through knots that are learned, equally apart in time, straight in between.

    Args:
        steps: How many pieces: the steps that a sampler takes, equal in time.
        starts: Of every path, the step before which it starts, from noise (coarse bands: 0).
        log_snr_max: Log-SNR at ``eps`` before anything is learned.
        log_snr_min: At the start.
        eps: First time used.

    Example:
        >>> import torch
        >>> from learned_bands import Knots
        >>> Knots(4, [0, 2], 8.0, -4.0).log_snr(torch.tensor([[1.0], [0.5005], [1e-3]])).round()
        tensor([[ -4., -16.],
                [  2.,  -4.],
                [  8.,   8.]], grad_fn=<RoundBackward0>)
    """

    top: Tensor
    falls: Tensor

    def __init__(
        self,
        steps: int,
        starts: Sequence[int],
        log_snr_max: float = 10.0,
        log_snr_min: float = -8.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min, eps)
        lengths = steps - torch.tensor(starts, dtype=torch.float64)
        falls = ((log_snr_max - log_snr_min) / lengths).log().expand(steps, -1)
        top = torch.full((1, len(starts)), log_snr_max, dtype=torch.float64)
        self.top, self.falls = nn.Parameter(top), nn.Parameter(falls.clone())

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top, falls = self.constants(t, "top", "falls")
        knots = torch.cat([top, top - falls.exp().cumsum(0)])
        knots = _FAR * torch.tanh(knots / _FAR)
        count, paths = falls.shape
        place = ((t - self.eps) / (1 - self.eps)).clamp(min=0).expand(*t.shape[:-1], paths) * count
        first = place.detach().long().clamp(max=count - 1).reshape(-1, paths)
        low, high = (knots.gather(0, first + k).reshape(place.shape) for k in (0, 1))
        part = place - first.reshape(place.shape)
        fall = (high - low) * count / (1 - self.eps)
        return torch.lerp(low, high, part), fall, torch.sigmoid(-knots[0]) / self.eps


def descend(loss: Callable[[], Tensor], weights: Sequence[nn.Parameter], steps: int) -> float:
    """Takes steps of Adam, and says what is left of the loss."""
    optimizer, value = torch.optim.Adam(weights, lr=0.03), torch.tensor(torch.nan)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(value.detach())


def by_bound(model: ScoreEstimator, x: Tensor, steps: int, draws: int = 1) -> float:
    """Trains a model and the schedule of its SDE on events, in nats of one."""
    noise = torch.Generator().manual_seed(0)
    weights = [w for w in model.parameters() if w.requires_grad]
    return descend(lambda: bound(model, x, generator=noise, draws=draws).mean(), weights, steps)


def _centred(sde: DiagonalSDE, basis: Basis) -> DiagonalSDE:
    """Of data without their mean, in a basis that has the blocks of the SDE's own."""
    return DiagonalSDE(sde.schedule, basis, sde.clock, scale=sde.scale, drop=sde.drop, std=sde.std)


def few_steps_error(sde: DiagonalSDE, variances: Tensor, solver: FixedStep) -> Tensor:
    """``W2^2`` of a sampler over the power, of independent Gaussian coefficients, ``()``.

    Args:
        sde: Its schedule is what is learned.
        variances: Of the coefficients, ``(n,)``.
        solver: A deterministic one, whose times do not depend on the schedule (``uniform_time``).
    """
    alone = Identity((len(variances),), sde.blocks.sizes)
    model = ScaleMixtures(_centred(sde, alone), variances.unsqueeze(0), torch.ones(1))
    ends = solver.rsample(model, (1,), generator=UnitNoise(), dtype=torch.float64)
    return (ends - variances.sqrt()).square().sum() / variances.sum()


def whole_error(sde: DiagonalSDE, covariance: Tensor, solver: FixedStep) -> Tensor:
    """``W2^2`` of a sampler over the power, of Gaussian data that are not independent, ``()``.

    Samples are ``J xi``, and ``W2 = min_Q |J Q - C^(1/2)|`` over rotations: its gradient is that
    with the best one held.

    Args:
        sde: Its schedule is what is learned.
        covariance: Of the events, flat, ``(n, n)``.
        solver: As of `few_steps_error`.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    mean = torch.zeros(sde.basis.event_shape, dtype=covariance.dtype)
    model, rows = Gaussian(_centred(sde, sde.basis), mean, covariance), 1 + len(covariance)
    # the first is that of no noise: 0
    ends = solver.rsample(model, (rows,), generator=Impulses(), dtype=torch.float64)[1:].flatten(1)
    with torch.no_grad():
        left, _, right = torch.linalg.svd(ends @ root)
    return (ends.mT @ (left @ right) - root).square().sum() / values.sum()


def by_quality(sde: DiagonalSDE, loss: Callable[[], Tensor], steps: int) -> float:
    """Trains the schedule of an SDE for a few steps of a solver.

    Args:
        sde: Its schedule is learned.
        loss: Of `few_steps_error` or `whole_error`, a smooth function of few numbers.
        steps: Of L-BFGS.
    """
    options: dict[str, Any] = {"max_iter": steps, "history_size": 30}
    known = {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([*sde.schedule.parameters()], **options, **known)

    def left() -> Tensor:
        optimizer.zero_grad()
        value = loss().log()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(left)
    return float(loss().detach())


class Contexts(nn.Module):
    """A diffusion for every context, and who says which context an event has.

        -log p(x) <= sum_k q(k|x) [bound_k(x) + log q(k|x) - log p(k)]

    Args:
        models: One for each context, on schedules of their own. They may share a network, which is
            told the context as its condition.
        encoder: Events ``(batch, *event_shape)`` to logits ``(batch, contexts)``.
        told: Whether models are given the context as a condition, ``(batch,)``.
    """

    def __init__(
        self, models: Sequence[ScoreEstimator], encoder: nn.Module, told: bool = False
    ) -> None:
        super().__init__()
        self.models, self.encoder, self.told = nn.ModuleList(models), encoder, told
        self.prior = nn.Parameter(torch.zeros(len(models)))

    def bound(self, x: Tensor, generator: torch.Generator | None = None, draws: int = 1) -> Tensor:
        """Of ``(batch, *event_shape)``, in nats, ``(batch,)``; differentiable in everything."""
        log_q, log_p = self.encoder(x).log_softmax(-1), self.prior.log_softmax(-1)
        contexts = [x.new_full((len(x),), k, dtype=torch.long) for k in range(len(self.models))]
        nats = [
            bound(model, x, condition=k if self.told else None, generator=generator, draws=draws)
            for model, k in zip(self.models, contexts, strict=True)
        ]
        per_context = torch.stack(nats, -1) + log_q - log_p
        return (log_q.exp() * per_context).sum(-1)

    def sample(
        self, solver: FixedStep, count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Contexts by their prior, and events given those."""
        drawn = torch.multinomial(self.prior.softmax(-1), count, True, generator=generator)
        parts = []
        for k, model in enumerate(self.models):
            rows = int((drawn == k).sum())
            condition = torch.full((rows,), k) if self.told else None
            parts.append(solver.sample(model, (rows,), condition=condition, generator=generator))
        return torch.cat(parts)


def main() -> None:
    """Learns paths for eight steps on the digits' Gaussian, and samples it in 32."""
    images = digits()
    mean, covariance = moments(images)
    basis = DCT(images.shape[1:], bands=4)
    sde = learned_bands(basis, images)
    solver = ExponentialMultistep(8, order=2, grid="uniform_time")
    variances = basis(images.double()).var(0)
    before = float(few_steps_error(sde, variances, solver).detach())
    after = by_quality(sde, lambda: few_steps_error(sde, variances, solver), steps=60)
    print(f"eight steps on independent coefficients: error {before:.1e}, learned {after:.1e}")
    model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
    many = attrs.evolve(solver, steps=32)
    report("learned bands", model, many, (mean, covariance), 4096)


if __name__ == "__main__":
    main()
