"""Inverse problems whose posteriors are known: ours, deepinv's DPS, DDRM and DiffPIR, azula's MMPS.

Pictures of 4 x 4 numbers, Gaussian or a mixture of four Gaussians, of which all know the exact
score; half of the pixels seen, all of them blurred, four counts, four squares. Error: sliced
Wasserstein-2 distance between 1,000 samples and as many exact ones, in units of the posterior's
standard deviation, the mean over observations; ``floor`` is that of other exact samples. A step
counts as one evaluation of the network, whatever derivatives are taken of it, and where a peer asks
twice. Ours has the same settings everywhere. Peers get the best of several settings for every
problem and budget, chosen by this very error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, Poisson

from estimators import GaussianMixture, Guidance
from scoresde import VP, DiagonalSDE, Identity
from solvers import ExponentialMultistep

SHAPE = (1, 4, 4)
SAMPLES, DRAWS = 1000, 20_000
"""Of the posterior; and of those that have no closed form, before they are weighted."""
SOLVER = {"order": 2, "eta": 1.0}


class Problem(NamedTuple):
    """``y`` of what a matrix makes of a flattened picture.

    Attributes:
        matrix: ``(m, 16)``.
        noise: As of `estimators.Guidance`.
        mean: Of ``y`` given ``matrix @ x``: what libraries see that know Gaussian noise alone.
        std: Of that noise; None where it is that of counts.
    """

    matrix: Tensor
    noise: Any
    mean: Callable[[Tensor], Tensor]
    std: float | None

    def likelihood(self, u: Tensor) -> Any:
        """Of ``y`` given ``matrix @ x``."""
        return self.noise(u) if callable(self.noise) else Normal(u, self.noise)


def problems() -> dict[str, Problem]:
    """By name."""
    unit = torch.eye(16)
    place = torch.arange(16)
    seen = (place // 4 + place % 4) % 2 == 0
    ring = torch.tensor([0.5, 0.25, 0.0, 0.25])
    circulant = torch.stack([ring.roll(i) for i in range(4)])
    blocks = (place // 8 * 2 + place % 4 // 2 == torch.arange(4).unsqueeze(-1)) / 2.0
    return {
        "inpainting": Problem(unit[seen], 0.1, lambda u: u, 0.1),
        "blur": Problem(torch.kron(circulant, circulant), 0.1, lambda u: u, 0.1),
        "counts": Problem(
            blocks,
            lambda u: Poisson((1 + 2 * u).exp(), validate_args=False),
            lambda u: (1 + 2 * u).exp(),
            None,
        ),
        "squares": Problem(blocks, lambda u: Normal(u**2, 0.1), lambda u: u**2, 0.1),
    }


def priors() -> dict[str, GaussianMixture]:
    """Within -1 and 1, but for rare pixels."""
    sde = DiagonalSDE(VP(), Identity(SHAPE))
    place = torch.arange(16)
    at = torch.stack([place // 4, place % 4], -1).double()
    smooth = (-torch.cdist(at, at).square() / 8).exp() + 1e-3 * torch.eye(16)
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(smooth)
    means = 0.35 * torch.randn(4, 16, generator=generator) @ root.mT
    std = torch.tensor([0.08, 0.12, 0.15, 0.2])
    covariances = std[:, None, None] ** 2 * smooth
    return {
        "Gaussian": GaussianMixture(sde, [1.0], torch.zeros(1, *SHAPE), [0.09 * smooth]),
        "mixture": GaussianMixture(
            sde, [0.3, 0.3, 0.2, 0.2], means.reshape(4, *SHAPE), covariances
        ),
    }


def draw(prior: GaussianMixture, count: int, generator: torch.Generator) -> Tensor:
    """``(count, 16)`` from the prior."""
    return _normal(prior.means, prior.covariances, prior, count, generator)[1]


def posterior(
    prior: GaussianMixture, problem: Problem, y: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Exact samples: of Gaussian noise by conjugacy, else by weights.

    One of the four numbers after the other is drawn given the ones before, by quadrature, with the
    density of what was seen for a weight; the other dimensions are Gaussian given these.
    """
    if not callable(problem.noise):
        a, power = problem.matrix, problem.noise**2 * torch.eye(len(problem.matrix))
        seen = a @ prior.covariances @ a.mT + power
        gain = prior.covariances @ a.mT @ torch.linalg.inv(seen)
        gap = y - prior.means @ a.mT
        weights = prior.log_weights + MultivariateNormal(torch.zeros(len(a)), seen).log_prob(gap)
        means = prior.means + (gain @ gap.unsqueeze(-1)).squeeze(-1)
        left = prior.covariances - gain @ a @ prior.covariances
        left = (left + left.mT) / 2 + 1e-12 * torch.eye(16)
        sde, events = prior.sde, means.reshape(-1, *SHAPE)
        return draw(GaussianMixture(sde, weights.softmax(0), events, left), count, generator)
    parts, effective = [_weighted(prior, problem, y, generator)], 0.0
    while len(parts) < 20:
        which, center, e, weights = (torch.cat(v) for v in zip(*parts, strict=True))
        weights = weights.softmax(0)
        effective = float(1 / weights.square().sum())
        if effective >= 2 * count:
            break
        parts.append(_weighted(prior, problem, y, generator))
    print(f"posterior: as good as {effective:.0f} draws", flush=True)
    a = problem.matrix
    root = torch.linalg.cholesky(a @ prior.covariances @ a.mT)[which]
    # as many of each as its weight says: no more chance than is needed
    points = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    rows = torch.searchsorted(weights.cumsum(0), points).clamp(max=len(weights) - 1)
    u = (center + (root @ e.unsqueeze(-1)).squeeze(-1))[rows]
    which = which[rows]
    gain = prior.covariances @ a.mT @ torch.linalg.inv(a @ prior.covariances @ a.mT)
    noise = torch.randn(count, 16, 1, generator=generator)
    root = torch.linalg.cholesky(prior.covariances)[which]
    x = prior.means[which] + (root @ noise).squeeze(-1)
    corrected: Tensor = x + (gain[which] @ (u - x @ a.mT).unsqueeze(-1)).squeeze(-1)
    return corrected


def _weighted(
    prior: GaussianMixture, problem: Problem, y: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Components, means and standardised draws of what is seen, and logarithms of their weights."""
    a = problem.matrix
    which = torch.multinomial(prior.log_weights.exp(), DRAWS, True, generator=generator)
    center = (prior.means @ a.mT)[which]
    root = torch.linalg.cholesky(a @ prior.covariances @ a.mT)[which]
    nodes, e = torch.linspace(-7, 7, 561), torch.zeros(DRAWS, len(y))
    weights = torch.zeros(DRAWS)
    for i in range(len(y)):
        mean = center[:, i] + (root[:, i] * e).sum(-1)
        u = mean.unsqueeze(-1) + root[:, i, i].unsqueeze(-1) * nodes
        logits = problem.likelihood(u).log_prob(y[i]) - nodes**2 / 2
        weights = weights + logits.logsumexp(-1)
        place = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        e[:, i] = nodes[place] + (torch.rand(DRAWS, generator=generator) - 0.5) * 14 / 560
    return which, center, e, weights


def _normal(
    means: Tensor,
    covariances: Tensor,
    prior: GaussianMixture,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Components of the prior, and draws from Gaussians ``(K, n)`` of theirs, ``(count, n)``."""
    which = torch.multinomial(prior.log_weights.exp(), count, True, generator=generator)
    xi = torch.randn(count, means.shape[-1], generator=generator)
    drawn = torch.empty_like(xi)
    for k, root in enumerate(torch.linalg.cholesky(covariances)):
        own = which == k
        drawn[own] = means[k] + xi[own] @ root.mT
    return which, drawn


def distance(x: Tensor, exact: Tensor) -> float:
    """Sliced Wasserstein-2 over 256 directions, in units of the exact samples' deviation."""
    directions = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).double()
    directions = directions / directions.norm(dim=0)
    a, b = ((v.double() @ directions).sort(0).values for v in (x, exact))
    gap: Tensor = (a - b).square().mean().sqrt()
    return float(gap / exact.var(0).mean().sqrt())


def ours(prior: GaussianMixture, problem: Problem, y: Tensor, budget: int) -> Tensor:
    """``(SAMPLES, 16)``."""

    def operator(x: Tensor) -> Tensor:
        return x.flatten(1) @ problem.matrix.mT.to(x)

    guided = Guidance(prior, operator, y, problem.noise, method="evidence")
    solver = ExponentialMultistep(budget, **SOLVER)
    x = solver.sample(guided, (SAMPLES,), generator=torch.Generator().manual_seed(7))
    return x.flatten(1)


def run(
    quick: bool = False, peers: bool = True, observations: int = 2, only: str = ""
) -> dict[str, Any]:
    """A row per prior, problem, budget and method."""
    torch.set_default_dtype(torch.float64)
    budgets = (20,) if quick else (20, 50)
    rows: list[dict[str, Any]] = []
    for name, prior in priors().items():
        for kind, problem in problems().items():
            if only not in f"{name} {kind}":
                continue
            beds = [_bed(prior, problem, seed) for seed in range(observations)]
            floor = statistics.fmean(distance(bed[2], bed[1]) for bed in beds)
            for budget in budgets:
                start = time.perf_counter()
                row: dict[str, Any] = {"prior": name, "problem": kind, "evaluations": budget}
                row["ours"] = _mean([ours(prior, problem, y, budget) for y, *_ in beds], beds)
                row["floor"] = floor
                if peers:
                    row.update(_best(prior, problem, beds, budget))
                rows.append({**row, "seconds": time.perf_counter() - start})
                print({k: _short(v) for k, v in rows[-1].items()}, flush=True)
    return {"rows": rows}


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _bed(prior: GaussianMixture, problem: Problem, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """An observation of a picture from the prior, and two sets of exact samples."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = draw(prior, 1, generator)[0]
    with torch.random.fork_rng():
        torch.manual_seed(200 + seed)
        y = problem.likelihood(problem.matrix @ x).sample()
    exact = posterior(prior, problem, y, 2 * SAMPLES, generator)
    shuffled = exact[torch.randperm(2 * SAMPLES, generator=generator)]
    return y, shuffled[:SAMPLES], shuffled[SAMPLES:]


def _mean(samples: list[Tensor], beds: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    return statistics.fmean(
        distance(x, bed[1]) if x.isfinite().all() else float("inf")
        for x, bed in zip(samples, beds, strict=True)
    )


def _best(prior: GaussianMixture, problem: Problem, beds: Any, budget: int) -> dict[str, Any]:
    """Of every peer, its best setting on the mean over observations."""
    from benchmarks import inverse_peers

    row: dict[str, Any] = {}
    torch.set_default_dtype(torch.float32)  # theirs mix with what they make themselves
    for name, settings in inverse_peers.methods(problem).items():
        scores = {}
        for label, sampler in settings.items():
            torch.manual_seed(7)
            samples = [sampler(prior, problem, y, budget, SAMPLES) for y, *_ in beds]
            scores[label] = _mean(samples, beds)
        label = min(scores, key=lambda key: scores[key])
        row[name], row[f"{name} setting"] = scores[label], label
    torch.set_default_dtype(torch.float64)
    return row
