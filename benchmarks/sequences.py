"""One network of a series, trained at independent times: samples, forecasts and gaps by any path.

On a linear series against the exact Gaussian answer: the largest errors of means and covariances,
in units of the series' deviation and variance. On a nonlinear one against a network of the same
size, trained as long for that task alone: the energy score of what is drawn, of events that nobody
has been trained on, and by what share of the other's it is larger.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import attrs
import torch
from torch import Tensor

from estimators import Denoising, ResidualMLP
from estimators.times import Independent
from scoresde import DiagonalSDE, Identity, LogLinear, Noise, ScoreEstimator
from scoresde.conditioning import ConditionalEstimator, Observation
from scoresde.fronts import along, front
from solvers import ExponentialMultistep

WINDOW = 8
TASKS = {
    "joint": [],
    "forecast": [0, 1, 2, 3],
    "gap": [0, 1, 6, 7],
    "backcast": [5, 6, 7],
}
"""What is known of a window."""
PATHS = {"together": 1.0, "pyramid": 0.7, "one by one": 0.0}
"""Overlaps of fronts along the series."""


@attrs.frozen
class OftenTogether(Independent):
    """Independent times of components, and one for all of them of half of the events.

    Where times are independent those of many components are hardly ever near each other, as on the
    path that draws them together they all are.
    """

    def quantiles(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """See `estimators.times.TrainingTimes.quantiles`."""
        apart = super().quantiles(sde, z, noise)
        return torch.where(noise.uniform(z[:, :1]) < 0.5, apart[:, :1], apart)


ANY_ORDER = {"times": OftenTogether(over="components"), "observe": "components"}
"""Of the network that does everything: components are shown clean, too, each other time."""


def run(quick: bool = False, updates: int = 5000, steps: int = 64) -> dict[str, Any]:
    """A row per series, task and path."""
    updates, count, steps = (100, 300, 16) if quick else (updates, 20_000, steps)
    rows, start = list[dict[str, Any]](), perf_counter()
    linear, nonlinear = _linear(updates, count, steps), _nonlinear(updates, count // 20, steps)
    for row in itertools.chain(linear, nonlinear):
        rows.append(row)
        shown = (f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items())
        print(", ".join(shown), flush=True)
    figures = ("mean_error", "covariance_error", "excess")
    worst = {name: max(row[name] for row in rows if name in row) for name in figures}
    return {"rows": rows, "worst": worst, "seconds": perf_counter() - start}


def _linear(updates: int, count: int, steps: int) -> Iterator[dict[str, Any]]:
    rho = [1.0, 0.9 / 1.2]  # x_k = 0.9 x_(k-1) - 0.2 x_(k-2) + e
    while len(rho) < WINDOW:
        rho.append(0.9 * rho[-1] - 0.2 * rho[-2])
    lags = (torch.arange(WINDOW)[:, None] - torch.arange(WINDOW)).abs()
    truth = torch.tensor(rho)[lags]
    root = torch.linalg.cholesky(truth)
    model = _trained(lambda n: torch.randn(n, WINDOW) @ root.mT, updates, **ANY_ORDER)
    for task, known in TASKS.items():
        rest = [i for i in range(WINDOW) if i not in known]
        values = torch.linspace(-1, 1, WINDOW)
        gain = truth[rest][:, known] @ torch.linalg.inv(truth[known][:, known])
        mean, covariance = gain @ values[known], truth[rest][:, rest] - gain @ truth[known][:, rest]
        for path in PATHS:
            x = _drawn(_given(_on(model, path), known, values), (count,), steps)[:, rest]
            errors = {
                "mean_error": float((x.mean(0) - mean).abs().max()),
                "covariance_error": float((torch.cov(x.mT) - covariance).abs().max()),
            }
            yield {"series": "linear", "task": task, "path": path, **errors}


def _nonlinear(updates: int, count: int, steps: int) -> Iterator[dict[str, Any]]:
    model = _trained(_logistic, updates, **ANY_ORDER)
    torch.manual_seed(1)
    events = _logistic(count)
    for task, known in TASKS.items():
        mask = torch.zeros(WINDOW, dtype=torch.bool)
        mask[known] = True

        def shown(sde: DiagonalSDE, z: Tensor, noise: Noise, mask: Tensor = mask) -> Tensor:
            return mask.expand(z.shape)

        def score(model: ScoreEstimator, known: list[int] = known, mask: Tensor = mask) -> float:
            return _energy(_drawn(_given(model, known, events), (16, count), steps), events, ~mask)

        own = score(_trained(_logistic, updates, observe=shown))
        names = {"series": "logistic", "task": task}
        yield {**names, "path": "a model of its own", "energy_score": own}
        for path in PATHS:
            energy = score(_on(model, path))
            yield {**names, "path": path, "energy_score": energy, "excess": energy / own - 1}


def _logistic(count: int) -> Tensor:
    """A chaotic map with noise, far from its start; of mean 0 and deviation about 1."""
    x = torch.rand(count)
    series = []
    for _ in range(32 + WINDOW):
        x = (3.8 * x * (1 - x) + 0.02 * torch.randn(count)).clamp(0.01, 0.99)
        series.append(x)
    return (torch.stack(series[-WINDOW:], -1) - 0.65) / 0.24


def _trained(draw: Callable[[int], Tensor], updates: int, **options: Any) -> Denoising:
    torch.manual_seed(0)
    sde = DiagonalSDE(LogLinear(), Identity((WINDOW,)))
    network = ResidualMLP((WINDOW,), width=128, depth=3, noise_levels=WINDOW)
    model = Denoising(sde, network, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - update / updates)
        optimizer.zero_grad()
        model.loss(draw(256)).backward()
        optimizer.step()
    return model


def _on(model: Denoising, path: str) -> Denoising:
    return model.along(front(along((WINDOW,), axis=0), PATHS[path]))


def _given(model: ScoreEstimator, known: list[int], values: Tensor) -> ScoreEstimator:
    if not known:
        return model
    mask = torch.zeros(WINDOW, dtype=torch.bool)
    mask[known] = True
    return ConditionalEstimator(model, Observation(mask, values), clean=True)


def _drawn(model: ScoreEstimator, shape: tuple[int, ...], steps: int) -> Tensor:
    seed = torch.Generator().manual_seed(0)
    return ExponentialMultistep(steps).sample(model, shape, generator=seed)


def _energy(x: Tensor, events: Tensor, rest: Tensor) -> float:
    """``E|X - y| - E|X - X'|/2`` of draws ``(draws, batch, n)``, averaged over events."""
    x, y = x[..., rest], events[:, rest]
    apart = (x[:, None] - x).norm(dim=-1).sum((0, 1)) / (len(x) * (len(x) - 1))
    return float(((x - y).norm(dim=-1).mean(0) - apart / 2).mean())
