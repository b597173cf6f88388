"""One network of a series, trained at independent times: samples, forecasts and gaps by any path.

On a linear series against the exact Gaussian answer: the largest errors of means and covariances,
in units of the series' deviation and variance; and those of an exact estimator on the same paths,
which are the sampler's. On a nonlinear one against networks of the same size for one task alone,
which all together have been trained as long: the energy score of what is drawn, of events that
nobody has been trained on, and by what share of the other's it is larger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.equal_time import over_seeds
from estimators import Denoising, Gaussian
from estimators.times import Fronts, Independent
from scoresde import DiagonalSDE, Identity, LogLinear, Noise, ScoreEstimator
from scoresde.conditioning import ConditionalEstimator, Observation
from scoresde.sdes.fronts import along, front
from solvers import ExponentialMultistep

WINDOW = 8
TASKS = {
    "forecast": [0, 1, 2, 3],
    "gap": [0, 1, 6, 7],
    "backcast": [5, 6, 7],
    "joint": [],
}
"""What is known of a window."""
PATHS = {"together": (1.0, 24), "pyramid": (0.7, 64), "one by one": (0.0, 160)}
"""Overlaps of fronts along the series; steps, with which an exact estimator is within 1%."""

TIMES = {
    "fronts": {"times": Fronts(over="components")},
    "independent": {
        "times": Independent(over="components", together=0.5),
        "observe": "components",  # components are shown clean, too
    },
}
"""Of the network that does everything."""


class Convolutions(nn.Module):
    """Residual convolutions along a series, every step of which hears its own level of noise.

    What is learned of one step's neighbours is learned of all.
    """

    def __init__(self, width: int = 32, depth: int = 4, reach: int = 2) -> None:
        super().__init__()
        self.register_buffer("octaves", 2.0 ** torch.arange(6) * math.pi / 8)
        self.hear = nn.Sequential(
            nn.Linear(13, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.linear_in = nn.Linear(1 + width, width)
        self.blocks = nn.ModuleList(_Neighbours(width, reach) for _ in range(depth))
        self.linear_out = nn.Linear(width, 1)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    octaves: Tensor

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Series and levels ``(batch, steps)``."""
        x, level = x.unsqueeze(-1), noise_level.unsqueeze(-1)
        phases = level * self.octaves
        heard = self.hear(torch.cat([level, phases.sin(), phases.cos()], -1))
        hidden = self.linear_in(torch.cat([x, heard], -1))
        for block in self.blocks:
            hidden = block(hidden, heard)
        out: Tensor = self.linear_out(hidden).squeeze(-1)
        return out


class _Neighbours(nn.Module):
    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.body = nn.Sequential(
            nn.Linear((1 + 2 * reach) * width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, hidden: Tensor, heard: Tensor) -> Tensor:
        scale, shift = self.modulate(heard).chunk(2, -1)
        each = self.norm(hidden) * (1 + scale) + shift
        padded = nn.functional.pad(each, (0, 0, self.reach, self.reach))
        update: Tensor = self.body(padded.unfold(1, 1 + 2 * self.reach, 1).flatten(-2))
        return hidden + update


class Whitened(Noise):
    """Normal numbers with the mean and the covariance that they should have, exactly.

    A distribution that is nearly a linear map of them is seen in a few thousand draws.
    """

    def __call__(self, like: Tensor) -> Tensor:
        """Of states ``(batch, n)``."""
        xi = super().__call__(like).double()
        xi = xi - xi.mean(0)
        return torch.linalg.solve_triangular(
            torch.linalg.cholesky(torch.cov(xi.mT)), xi.mT, upper=False
        ).mT.to(like)


def run(
    quick: bool = False,
    updates: int = 10_000,
    series: str = "both",
    seeds: int = 1,
    times: str = "independent",
) -> dict[str, Any]:
    """A row per series (``both``, ``linear`` or ``logistic``), seed of networks, task and path.

    ``times`` are ``independent``, half of the events at one for all, or along ``fronts``.
    """
    torch.set_num_threads(1)
    updates, count = (50, 100) if quick else (updates, 4000)
    kinds = {"linear": _linear, "logistic": _nonlinear}
    chosen = kinds.values() if series == "both" else [kinds[series]]
    rows, start = list[dict[str, Any]](), process_time()
    tried = itertools.product(chosen, range(1 if quick else seeds))
    for row in itertools.chain.from_iterable(
        kind(updates, count, seed, TIMES[times]) for kind, seed in tried
    ):
        rows.append(row)
        shown = (f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items())
        print(", ".join(shown), flush=True)
    figures = ("mean_error", "covariance_error", "excess")
    worst = {name: max((row[name] for row in rows if name in row), default=0.0) for name in figures}
    summary = [
        row
        for figure in figures
        for row in over_seeds(
            [row for row in rows if figure in row], ("series", "task", "path"), (figure,)
        )
    ]
    return {"rows": rows, "summary": summary, "worst": worst, "seconds": process_time() - start}


def _linear(updates: int, count: int, seed: int, times: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rho = [1.0, 0.9 / 1.2]  # x_k = 0.9 x_(k-1) - 0.2 x_(k-2) + e
    while len(rho) < WINDOW:
        rho.append(0.9 * rho[-1] - 0.2 * rho[-2])
    lags = (torch.arange(WINDOW)[:, None] - torch.arange(WINDOW)).abs()
    truth = torch.tensor(rho)[lags]
    root = torch.linalg.cholesky(truth)
    model = _trained(lambda n: torch.randn(n, WINDOW) @ root.mT, updates, seed, **times)
    exact = Gaussian(model.sde, torch.zeros(WINDOW), truth)
    for (task, known), path in itertools.product(TASKS.items(), PATHS):
        rest = [i for i in range(WINDOW) if i not in known]
        values = torch.linspace(-1, 1, WINDOW)
        gain = truth[rest][:, known] @ torch.linalg.inv(truth[known][:, known])
        mean, covariance = gain @ values[known], truth[rest][:, rest] - gain @ truth[known][:, rest]
        row: dict[str, Any] = {"series": "linear", "seed": seed, "task": task, "path": path}
        for name, estimator in (("", model), ("sampler_", exact)):
            noise = Whitened(torch.Generator().manual_seed(0))
            x = _drawn(estimator, path, known, values, noise, count)[:, rest]
            row[name + "mean_error"] = float((x.mean(0) - mean).abs().max())
            row[name + "covariance_error"] = float((torch.cov(x.mT) - covariance).abs().max())
        yield row


def _nonlinear(
    updates: int, count: int, seed: int, times: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    model, each = _trained(_logistic, updates, seed, **times), updates // len(TASKS)
    torch.manual_seed(1000 + seed)
    events = _logistic(count // 4)  # with eight draws for each
    for task, known in TASKS.items():
        mask = torch.zeros(WINDOW, dtype=torch.bool)
        mask[known] = True

        def shown(sde: DiagonalSDE, z: Tensor, noise: Noise, mask: Tensor = mask) -> Tensor:
            return mask.expand(z.shape)

        def score(
            model: ScoreEstimator, path: str, known: list[int] = known, mask: Tensor = mask
        ) -> float:
            noise = Noise(torch.Generator().manual_seed(0))
            return _energy(_drawn(model, path, known, events, noise, 8, len(events)), events, ~mask)

        own = score(_trained(_logistic, each, seed, observe=shown), "together")
        names = {"series": "logistic", "seed": seed, "task": task}
        yield {**names, "path": "a model of its own", "energy_score": own}
        for path in PATHS:
            energy = score(model, path)
            yield {**names, "path": path, "energy_score": energy, "excess": energy / own - 1}


def _logistic(count: int) -> Tensor:
    """A chaotic map with noise, far from its start; of mean 0 and deviation about 1."""
    x = torch.rand(count)
    series = []
    for _ in range(32 + WINDOW):
        x = (3.8 * x * (1 - x) + 0.02 * torch.randn(count)).clamp(0.01, 0.99)
        series.append(x)
    return (torch.stack(series[-WINDOW:], -1) - 0.65) / 0.24


def _trained(draw: Callable[[int], Tensor], updates: int, seed: int, **options: Any) -> Denoising:
    torch.manual_seed(seed)
    sde = DiagonalSDE(LogLinear(), Identity((WINDOW,)))
    model = Denoising(sde, Convolutions(), **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / updates)
        optimizer.zero_grad()
        model.loss(draw(256)).backward()
        optimizer.step()
    return model


def _drawn(
    model: ScoreEstimator, path: str, known: list[int], values: Tensor, noise: Noise, *batch: int
) -> Tensor:
    overlap, steps = PATHS[path]
    if path != "together":
        model = model.with_clock(front(along((WINDOW,), axis=0), overlap))
    if known:
        mask = torch.zeros(WINDOW, dtype=torch.bool)
        mask[known] = True
        model = ConditionalEstimator(model, Observation(mask, values), clean=True)
    return ExponentialMultistep(steps).sample(model, batch, generator=noise)


def _energy(x: Tensor, events: Tensor, rest: Tensor) -> float:
    """``E|X - y| - E|X - X'|/2`` of draws ``(draws, batch, n)``, averaged over events."""
    x, y = x[..., rest], events[:, rest]
    apart = (x[:, None] - x).norm(dim=-1).sum((0, 1)) / (len(x) * (len(x) - 1))
    return float(((x - y).norm(dim=-1).mean(0) - apart / 2).mean())
