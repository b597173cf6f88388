"""Held-out log-likelihood on real data: diffusion models and normalising flows at equal time.

(a) Unconditional: 8x8 patches of photographs (BSDS300, 63 numbers after Uria et al. 2013), three
schedules against zuko's neural spline flow and masked autoregressive flow. (b) Conditional:
p(y given x) on UCI regression sets, on their standard splits, against a conditional spline flow
trained here and MC dropout's published figures; features are whitened for all arms. All arms get
the same processor time, optimiser, schedule of the learning rate, batch size and average of the
weights; ours are evaluated by the probability flow with an exact trace.

``--data`` names a folder with ``bsds300-patches.npz`` (arrays ``train`` and ``test`` of uint8,
``(N, 64)``) and ``uci-regression.npz`` (``NAME/x``, ``NAME/y``, ``NAME/trainK``, ``NAME/testK``).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from estimators import Denoising, ResidualMLP
from scoresde import (
    PCA,
    DiagonalSDE,
    Identity,
    Learned,
    LogLinear,
    Quadrature,
    ScoreDistribution,
    bound,
)
from scoresde.grid import Grid, grid
from solvers import ExponentialMultistep

PUBLISHED = {
    "patches": {"MADE": 148.85, "RealNVP": 153.28, "MAF": 155.69, "FFJORD": 157.40},
    "MC dropout": {
        "bostonHousing": -2.40, "concrete": -2.93, "energy": -1.21, "kin8nm": 1.14,
        "naval-propulsion-plant": 4.45, "power-plant": -2.80,
        "protein-tertiary-structure": -2.87, "wine-quality-red": -0.93, "yacht": -1.25,
    },
}  # fmt: skip
"""Nats: of papers, on their own draw of the patches; Gal and Ghahramani 2016 on these splits."""

Loss = Callable[[Tensor], Tensor]
"""Nats of each of some rows, ``(batch,)``: a loss and, if exact, minus the log-likelihood."""


def run(
    quick: bool = False,
    data: Path | None = None,
    seconds: float = 120.0,
    seeds: int = 3,
    splits: int = 20,
    sets: str = "",
) -> dict[str, Any]:
    """All rows.

    Args:
        quick: Seconds of training, and few held-out rows.
        data: See the module.
        seconds: Processor time of training per model of patches; a sixth of it per conditional
            model.
        seeds: Of the patches' models.
        splits: Of each regression set, at most those that there are.
        sets: Names of regression sets, or ``patches``, separated by commas; all if empty.
    """
    if data is None or not (data / "bsds300-patches.npz").is_file():
        print("No data. Please give --data FOLDER:", __doc__)
        return {"rows": []}
    if quick:
        seconds, seeds, splits, sets = 2.0, 1, 1, sets or "patches,yacht"
    chosen = sets.split(",") if sets else ["patches", *PUBLISHED["MC dropout"]]
    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows += (
            patches(data, seconds, seeds, 64 if quick else 1000)
            if name == "patches"
            else regression(data, name, seconds / 6, range(splits))
        )
    return {"published": PUBLISHED, "ratios": summary(rows), "rows": rows}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean nats of every arm on every data set."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["data"], {}).setdefault(row["arm"], []).append(row["nats"])
    return {
        data: {arm: round(float(np.mean(v)), 3) for arm, v in arms.items()}
        for data, arms in found.items()
    }


def patches(data: Path, seconds: float, seeds: int, count: int) -> list[dict[str, Any]]:
    """Three schedules and two flows, trained alike."""
    with np.load(data / "bsds300-patches.npz") as file:
        train, test = (dequantised(file[k], k == "test") for k in ("train", "test"))
    basis = PCA.fit(train.double(), {f"pc{i}": 1 for i in range(63)})
    mean, std = basis.moments(train)
    held_out = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]]
    sdes = {
        "uniform": lambda: DiagonalSDE(
            LogLinear(20.0, -8.0), basis, scale=float(std.square().mean().sqrt())
        ),
        "per component": lambda: DiagonalSDE(LogLinear(8.0, -8.0), basis, scale=std),
        "learned": lambda: DiagonalSDE(
            Learned(63, log_snr_max=8.0, log_snr_min=-8.0), basis, scale=std
        ),
    }
    rows = []
    for seed in range(seeds):
        for name, make in sdes.items():
            torch.manual_seed(seed)
            network = ResidualMLP((63,), width=256, depth=3)
            view = Identity((63,))
            model = Denoising(make(), network, data_mean=mean, data_std=std, view=view)
            times = prepared(model)

            def loss(x: Tensor, model: Denoising = model, times: Grid = times) -> Tensor:
                return bound(model, x, moments=(mean, std), times=times)

            rows.append({"data": "patches", "arm": name, "seed": seed})
            rows[-1] |= fit(model, loss, train, seconds, seed)
            start = time.process_time()
            model.eval()
            dist = ScoreDistribution(model, ExponentialMultistep(), method=Quadrature(30))
            with torch.no_grad():
                nats = torch.cat([dist.log_prob(x) for x in held_out.split(100)])
                many = held_out.repeat(16, 1)
                rows[-1]["bound"] = -float(bound(model, many, moments=(mean, std)).mean())
            rows[-1] |= measured(nats, time.process_time() - start)
        for name in ("NSF", "MAF"):
            torch.manual_seed(seed)
            flow, exact = zuko_flow(name, train)
            rows.append({"data": "patches", "arm": f"zuko {name}", "seed": seed})
            rows[-1] |= fit(flow, exact, train, seconds, seed)
            with torch.no_grad():
                rows[-1] |= measured(-exact(held_out), 0.0)
    return rows


def dequantised(values: Any, fixed: bool) -> Tensor:
    """Uniform noise, / 256, without the patch's mean and the last pixel (Uria et al. 2013)."""
    generator = torch.Generator().manual_seed(int(fixed))
    x = torch.from_numpy(values).float()
    x = (x + torch.rand(x.shape, generator=generator)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1]


def zuko_flow(name: str, train: Tensor, context: int = 0) -> tuple[nn.Module, Loss]:
    """A flow on whitened (or standardised) rows ``(x, context)``, and minus its log-density."""
    import zuko

    x = train[:, context:]
    mean, n = x.mean(0), x.shape[1]
    values, vectors = torch.linalg.eigh((x - mean).mT.double().cov().reshape(n, n))
    white = (vectors / values.sqrt()).float()
    jump = float(values.log().sum()) / 2
    hidden = (64, 64) if context else (256, 256)
    options: dict[str, Any] = {"transforms": 3 if context else 5, "hidden_features": hidden}
    if name == "NSF":
        options["bins"] = 8
    flow: nn.Module = getattr(zuko.flows, name)(n, context, **options)

    def loss(rows: Tensor) -> Tensor:
        given, inner = rows[:, :context], (rows[:, context:] - mean) @ white
        found: Tensor = flow(given if context else None).log_prob(inner)
        return jump - found

    return flow, loss


def fit(
    model: nn.Module,
    loss: Loss,
    train: Tensor,
    seconds: float,
    seed: int,
    check: Callable[[], float] | None = None,
    batch: int = 256,
    lr: float = 3e-3,
) -> dict[str, float]:
    """Adam for a given processor time, cosine decay, average of the weights.

    Args:
        model: Trained in place; ends with the averaged weights.
        loss: In nats per row.
        train: Rows.
        seconds: Processor time, that of checks not counted.
        seed: Of the batches.
        check: Held-out loss: the weights with the lowest of ten are kept.
        batch: Rows per update.
        lr: Largest learning rate.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    average = copy.deepcopy(model.state_dict())
    best, kept, checked, updates = math.inf, average, 0, 0
    used, last = 0.0, time.process_time()
    while used < seconds:
        share = used / seconds
        for group in optimizer.param_groups:
            warm = min(1.0, (updates + 1) / 100)
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * share))
        rows = train[torch.randint(len(train), (batch,), generator=generator)]
        optimizer.zero_grad()
        loss(rows).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        updates += 1
        decay = min(0.998, (1 + updates) / (10 + updates))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        used += time.process_time() - last
        if check is not None and used / seconds * 10 >= checked + 1:
            checked += 1
            own = copy.deepcopy(model.state_dict())
            model.load_state_dict(average)
            if (value := check()) < best:
                best, kept = value, copy.deepcopy(average)
            model.load_state_dict(own)
        last = time.process_time()
    model.load_state_dict(average if check is None or best == math.inf else kept)
    return {"updates": updates, "training_seconds": used}


def measured(nats: Tensor, seconds: float) -> dict[str, float]:
    """Mean and standard error over held-out rows."""
    error = float(nats.std() / len(nats) ** 0.5)
    found = {"nats": float(nats.mean()), "stderr": error, "evaluation_seconds": seconds}
    print(f"  {found['nats']:.3f} +- {error:.3f}", flush=True)
    return found


def regression(
    data: Path, name: str, seconds: float, splits: Sequence[int]
) -> list[dict[str, Any]]:
    """Two schedules and a conditional flow on the standard splits, trained alike.

    A tenth of the training rows, at most 1,000, says when to stop.
    """
    with np.load(data / "uci-regression.npz") as file:
        x, y = (torch.from_numpy(file[f"{name}/{k}"]).float() for k in "xy")
        keys = [k for k in splits if f"{name}/train{k}" in file]
        parts = [
            [torch.from_numpy(file[f"{name}/{p}{k}"]) for p in ("train", "test")] for k in keys
        ]
    rows = []
    for split, (inside, outside) in zip(keys, parts, strict=True):
        centre, unit = y[inside].mean(), y[inside].std()
        table = torch.cat([whitened(x, inside), ((y - centre) / unit).unsqueeze(1)], 1)
        order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(split))
        held = min(len(inside) // 10, 1000)
        train, valid, test = (
            table[inside[order[held:]]],
            table[inside[order[:held]]],
            table[outside],
        )
        for arm in ("diffusion", "diffusion, learned", "zuko NSF"):
            torch.manual_seed(split)
            model, loss, exact = conditional(arm, train)
            model.train()

            def check(loss: Loss = loss, model: nn.Module = model, valid: Tensor = valid) -> float:
                torch.manual_seed(0)
                model.eval()
                with torch.no_grad():
                    many = valid.repeat(1 + 4096 // len(valid), 1)
                    value = float(loss(many).mean())
                model.train()
                return value

            rows.append({"data": name, "arm": arm, "split": split})
            rows[-1] |= fit(model, loss, train, seconds, split, check)
            model.eval()
            with torch.no_grad():
                rows[-1] |= measured(-exact(test) - unit.log(), 0.0)
    return rows


def prepared(model: Denoising) -> Grid:
    """Times equidistant in log-SNR, found once where no learned schedule moves them."""
    function = grid("log_snr")
    if next(model.sde.parameters(), None) is not None:
        return function
    knots = function(model.sde, 1024)
    return lambda *_: knots


def whitened(x: Tensor, inside: Tensor) -> Tensor:
    """Features along the principal axes of the training rows, directions they lack left small."""
    rows = x.double()
    scaled = (rows - rows[inside].mean(0)) / rows[inside].std(0).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(scaled[inside].T @ scaled[inside] / len(inside))
    return (scaled @ (vectors / (values + 1e-4).sqrt())).float()


def conditional(arm: str, train: Tensor) -> tuple[nn.Module, Loss, Loss]:
    """A model of the last column given the others, its loss and minus its log-density."""
    n = train.shape[1] - 1
    if arm.startswith("zuko"):
        flow, minus = zuko_flow("NSF", train, n)
        return flow, minus, minus
    kind = Learned if arm.endswith("learned") else LogLinear
    sde = DiagonalSDE(kind(log_snr_max=10.0, log_snr_min=-8.0), Identity((1,)))
    network = ResidualMLP((1,), width=64, depth=2, dropout=0.05, condition_dim=n)
    model = Denoising(sde, network)
    times = prepared(model)

    def loss(rows: Tensor) -> Tensor:
        return bound(model, rows[:, n:], condition=rows[:, :n], times=times)

    def exact(rows: Tensor) -> Tensor:
        solver = ExponentialMultistep()
        dist = ScoreDistribution(model, solver, condition=rows[:, :n], method=Quadrature(40))
        return -dist.log_prob(rows[:, n:])

    return model, loss, exact
