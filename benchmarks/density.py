"""Held-out log-likelihood on real data: diffusion models and normalising flows at equal time.

(a) Unconditional: 8x8 patches of photographs (BSDS300, 63 numbers after Uria et al. 2013), three
schedules against zuko's neural spline flow and masked autoregressive flow. (b) Conditional:
p(y given x) on UCI regression sets, on their standard splits, against a conditional spline flow
trained here and MC dropout's published figures; features are whitened for all arms. All arms get
the same processor time, optimiser, schedule of the learning rate, batch size and average of the
weights; ours are evaluated by the probability flow with an exact trace.

"Around a mixture" corrects the denoised mean of a mixture (`benchmarks.references`), fitted in the
same time by expectation-maximisation or, given features, by its likelihood; "around a scale
mixture" is in `benchmarks.scale_mixtures`. How good that mixture is by itself is a column of the
results, ``reference``; a network that held-out rows do not speak for is left out.

``--data`` names a folder with ``bsds300-patches.npz`` (arrays ``train``, ``validation`` and
``test`` of uint8, ``(N, 64)``) and ``uci-regression.npz`` (``NAME/x``, ``NAME/y``,
``NAME/trainK``, ``NAME/testK``).
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.references import (
    ConditionalMixture,
    FixedMixture,
    MixtureBaseline,
    expectation_maximisation,
)
from benchmarks.scale_mixtures import around_scale_mixture
from estimators import Denoising, ResidualMLP
from scoresde import (
    PCA,
    DiagonalSDE,
    Identity,
    Learned,
    LogLinear,
    Quadrature,
    ScoreDistribution,
    ScoreEstimator,
    bound,
)
from scoresde.sampling.grid import Grid, grid
from scoresde.tables.cells import Cells
from scoresde.tables.column import FEW, column
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

PATCHES_LR = {
    "uniform": 3e-3, "per component": 3e-3, "learned": 3e-3, "around a mixture": 1e-3,
    "NSF": 3e-3, "MAF": 3e-3,
}  # fmt: skip
PATCHES_ARMS = (*PATCHES_LR, "around a scale mixture")
FLOW = 100
"""Held-out patches on which the bound is compared with the probability flow."""

Loss = Callable[[Tensor], Tensor]
"""Nats of each of some rows, ``(batch,)``: a loss and, if exact, minus the log-likelihood."""


def run(
    quick: bool = False,
    data: Path | None = None,
    seconds: float = 40.0,
    seeds: int = 3,
    splits: int = 3,
    sets: str = "",
    arms: str = "",
) -> dict[str, Any]:
    """All rows.

    Args:
        quick: Seconds of training, and few held-out rows.
        data: See the module.
        seconds: Processor time of training per model of patches; three eighths of it per arm
            on a regression set.
        seeds: Of the patches' models.
        splits: Of each regression set, at most those that there are.
        sets: Names of regression sets, or ``patches``, separated by commas; all if empty.
        arms: Names of arms of the patches, as in `PATCHES_ARMS`, separated by commas; all if empty.
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
            patches(data, seconds, seeds, 64 if quick else 2000, arms)
            if name == "patches"
            else regression(data, name, seconds * 3 / 8, range(splits))
        )
    return {"published": PUBLISHED, "ratios": summary(rows), "rows": rows}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean nats of every arm on every data set."""
    by_arm: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        by_arm.setdefault(row["data"], {}).setdefault(row["arm"], []).append(row["nats"])
    return {
        data: {arm: round(float(np.mean(v)), 3) for arm, v in arms.items()}
        for data, arms in by_arm.items()
    }


def patches(
    data: Path, seconds: float, seeds: int, count: int, arms: str = ""
) -> list[dict[str, Any]]:
    """Diffusion models and two flows, trained alike."""
    chosen = arms.split(",") if arms else PATCHES_ARMS
    if unknown := sorted({*chosen} - {*PATCHES_ARMS}):
        raise ValueError(f"arms: expected some of {', '.join(PATCHES_ARMS)}, got {unknown}")
    with np.load(data / "bsds300-patches.npz") as file:
        parts = ("train", "validation", "test")
        train, valid, test = (dequantised(file[k], k != "train") for k in parts)
    basis = PCA.fit(train.double(), {f"pc{i}": 1 for i in range(63)})
    mean, std = basis.moments(train)
    valid = valid[:count]
    held_out = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]]
    noise = 1 / 256 / 12**0.5  # of the dequantisation, below which nothing is to be told
    sdes = {
        "uniform": lambda: DiagonalSDE(
            LogLinear(20.0, -8.0), basis, scale=float(std.square().mean().sqrt())
        ),
        "per component": lambda: DiagonalSDE(LogLinear(high, -8.0), basis, scale=std),
        "learned": lambda: DiagonalSDE(
            Learned(63, log_snr_max=high, log_snr_min=-8.0), basis, scale=std
        ),
        "around a mixture": lambda: DiagonalSDE(LogLinear(14.0, -8.0), basis, scale=std),
    }
    high = 2 * (std / (0.5 * noise)).log()
    rows: list[dict[str, Any]] = []
    values: dict[tuple[str, int], Tensor] = {}
    for seed in range(seeds):
        for name, make in sdes.items():
            if name not in chosen:
                continue
            torch.manual_seed(seed)
            model, used = patch_model(name, make(), train, (mean, std), seconds, seed)
            times = prepared(model)

            def loss(x: Tensor, model: ScoreEstimator = model, times: Grid = times) -> Tensor:
                return bound(model, x, moments=(mean, std), times=times)

            rows.append({"data": "patches", "arm": name, "seed": seed})
            rows[-1] |= fit(model, loss, train, seconds - used, seed, lr=PATCHES_LR[name])
            rows[-1]["training_seconds"] += used
            model.eval()
            start = time.process_time()
            with torch.no_grad():
                if isinstance(model, MixtureBaseline):
                    gained = gain(model, loss, valid).mean()
                    rows[-1]["validation"] = float(gained)
                    if gained <= 0:
                        model = model.without_network()
                    white = (basis(held_out).float() - model.shift) / model.scale
                    reference = model.mixture().log_prob(white) - float(std.log().sum())
                    rows[-1]["reference"] = float(reference.mean())
                    log_probs = reference + (gain(model, loss, held_out) if gained > 0 else 0)
                else:
                    log_probs = torch.stack([-loss(held_out) for _ in range(16)]).mean(0)
                rows[-1] |= measured(log_probs, time.process_time() - start)
                dist = ScoreDistribution(model, ExponentialMultistep(), method=Quadrature(30))
                few = held_out[:FLOW]
                flow = torch.cat([dist.log_prob(x) for x in few.split(50)])
                rows[-1]["flow_minus_bound"] = float((flow - log_probs[:FLOW]).mean())
            values[name, seed] = log_probs
        if (name := "around a scale mixture") in chosen:
            row, values[name, seed] = around_scale_mixture(
                train, valid, held_out, seconds, seed, fit
            )
            rows.append({"data": "patches", "arm": name, "seed": seed} | row)
            rows[-1] |= measured(values[name, seed], 0.0)
        for name in ("NSF", "MAF"):
            if name not in chosen:
                continue
            torch.manual_seed(seed)
            flow, exact = zuko_flow(name, train)
            rows.append({"data": "patches", "arm": f"zuko {name}", "seed": seed})
            rows[-1] |= fit(flow, exact, train, seconds, seed, lr=PATCHES_LR[name])
            with torch.no_grad():
                values[name, seed] = -exact(held_out)
                rows[-1] |= measured(values[name, seed], 0.0)
        for row in (row for row in rows if row["seed"] == seed and "MAF" in chosen):
            # on the same patches: much less noise
            gap = values[row["arm"].removeprefix("zuko "), seed] - values["MAF", seed]
            row |= {"above_MAF": float(gap.mean()), "above_MAF_stderr": float(gap.std())}
            row["above_MAF_stderr"] /= len(gap) ** 0.5
    return rows


def gain(model: MixtureBaseline, loss: Callable[..., Tensor], x: Tensor) -> Tensor:
    """By how much the network raises the bound, ``(batch,)``, in nats.

    With the same random numbers for both, nearly all the noise cancels; of a mixture the bound is
    the log-density.
    """
    uncorrected, seed = model.without_network(), torch.initial_seed()
    gained = torch.zeros(len(x))
    for k in range(16):
        for estimator, sign in ((uncorrected, 1), (model, -1)):
            torch.manual_seed(seed + k)
            gained += sign * loss(x, estimator) / 16
    return gained


def patch_model(
    name: str,
    sde: DiagonalSDE,
    train: Tensor,
    moments: tuple[Tensor, Tensor],
    seconds: float,
    seed: int,
) -> tuple[ScoreEstimator, float]:
    """Untrained, but for a mixture, and the processor time that took."""
    mean, std = moments
    if name != "around a mixture":
        network, view = ResidualMLP((63,), width=256, depth=3), Identity((63,))
        return Denoising(sde, network, data_mean=mean, data_std=std, network_basis=view), 0.0
    start = time.process_time()
    white = ((sde.basis(train) - mean) / std).float()
    mixture = expectation_maximisation(white, 128, 0.8 * seconds, own_axes=True, seed=seed)
    network = ResidualMLP((63,), width=192, depth=3, condition_dim=128)
    return MixtureBaseline(
        sde, network, FixedMixture(mixture), std, mean
    ), time.process_time() - start


def dequantised(values: Any, fixed: bool) -> Tensor:
    """Uniform noise, / 256, without the patch's mean and the last pixel (Uria et al. 2013)."""
    generator = torch.Generator().manual_seed(int(fixed))
    x = torch.from_numpy(values).float()
    x = (x + torch.rand(x.shape, generator=generator)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1]


def zuko_flow(name: str, train: Tensor) -> tuple[nn.Module, Loss]:
    """A flow on whitened rows, and minus its log-density."""
    import zuko

    mean, n = train.mean(0), train.shape[1]
    values, vectors = torch.linalg.eigh((train - mean).mT.double().cov())
    white = (vectors / values.sqrt()).float()
    jump = float(values.log().sum()) / 2
    options: dict[str, Any] = {"bins": 8} if name == "NSF" else {}
    kind = getattr(zuko.flows, name)
    flow: nn.Module = kind(n, transforms=5, hidden_features=(256, 256), **options)

    def loss(rows: Tensor) -> Tensor:
        log_prob: Tensor = flow().log_prob((rows - mean) @ white)
        return jump - log_prob

    return flow, loss


def fit(
    model: nn.Module,
    loss: Loss,
    train: Tensor,
    seconds: float,
    seed: int,
    check: Callable[[], Tensor] | None = None,
    batch: int = 256,
    lr: float = 3e-3,
    decay: float = 0.0,
    most: int = 10**9,
) -> dict[str, float]:
    """AdamW for a given processor time, cosine decay, average of the weights.

    Args:
        model: Trained in place; ends with the averaged weights.
        loss: In nats per row.
        train: Rows, or those of each of several networks that the model is made of, whose
            parameters lead with their number.
        seconds: Processor time, that of checks not counted.
        seed: Of the batches.
        check: Held-out loss, of every network: the weights with the lowest of ten are kept.
        batch: Rows per update, and per network.
        lr: Largest learning rate.
        decay: Of the weights.
        most: Number of updates, if that is sooner.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    average = [p.detach().clone() for p in parameters]
    best_weights, best = [v.clone() for v in average], torch.tensor(math.inf)
    checked, updates = 0, 0
    used, last = 0.0, time.process_time()
    while used < seconds and updates < most:
        share = max(used / seconds, updates / most)
        for group in optimizer.param_groups:
            warm = min(1.0, (updates + 1) / 100)
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * share))
        shape = (*train.shape[:-2], batch)
        places = torch.randint(train.shape[-2], shape, generator=generator)
        rows = train.take_along_dim(places.unsqueeze(-1), -2)
        optimizer.zero_grad()
        loss(rows).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        updates += 1
        keep = min(0.995, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
        used += time.process_time() - last
        if check is not None and max(used / seconds, updates / most) * 10 >= checked + 1:
            checked += 1
            current = [p.detach().clone() for p in parameters]
            torch._foreach_copy_([p.detach() for p in parameters], average)
            value = check()
            torch._foreach_copy_([p.detach() for p in parameters], current)
            better = value < best
            best = torch.minimum(best, value)
            for old, new in zip(best_weights, average, strict=True):
                old.copy_(new.where(better.reshape(-1, *[1] * (new.ndim - 1)), old))
        last = time.process_time()
    torch._foreach_copy_([p.detach() for p in parameters], best_weights if checked else average)
    return {"updates": updates, "training_seconds": used, "validation": float(best.mean())}


def measured(nats: Tensor, seconds: float) -> dict[str, float]:
    """Mean and standard error over held-out rows."""
    error = float(nats.std() / len(nats) ** 0.5)
    row = {"nats": float(nats.mean()), "stderr": error, "evaluation_seconds": seconds}
    print(f"  {row['nats']:.3f} +- {error:.3f}", flush=True)
    return row


def regression(
    data: Path, name: str, seconds: float, splits: Sequence[int]
) -> list[dict[str, Any]]:
    """A diffusion model and a conditional flow on the standard splits, trained alike.

    Of each arm the densities of at most five models are averaged. Each stops early by another
    tenth of the training rows, at most 1,000, and after `EPOCHS` at the latest. Targets that have a
    few whole values (wine's grades) are categories in their order (`scoresde.tables.column`), of
    which what is measured is a probability.
    """
    with np.load(data / "uci-regression.npz") as file:
        x, y = (torch.from_numpy(file[f"{name}/{k}"]).float() for k in "xy")
        keys = [k for k in splits if f"{name}/train{k}" in file]
        parts = [
            [torch.from_numpy(file[f"{name}/{p}{k}"]) for p in ("train", "test")] for k in keys
        ]
    rows = []
    for split, (inside, outside) in zip(keys, parts, strict=True):
        target, variants = targets(y, inside, split)
        table = torch.cat([whitened(x, inside), target.unsqueeze(1)], 1)
        order = inside[torch.randperm(len(inside), generator=torch.Generator().manual_seed(split))]
        fold = functools.partial(folded, table, order)
        nats = functools.partial(measure_of, table[outside, :-1], [v[:, outside] for v in variants])
        for arm, train in (("around a mixture", diffusions), ("zuko NSF", flows)):
            torch.manual_seed(split)
            start = time.process_time()
            members = train(fold, seconds)
            row: dict[str, Any] = {"data": name, "arm": arm, "split": split}
            row["training_seconds"] = time.process_time() - start
            row["updates"] = [member.updates for member in members]
            print(name, split, arm, row["updates"], end="")
            with torch.no_grad():
                row |= measured(averaged([nats(m.exact) for m in members]), 0.0)
                references = [nats(m.reference) for m in members if m.reference]
            if references:
                row["reference"] = float(averaged(references).mean())
            rows.append(row)
    return rows


def targets(y: Tensor, inside: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Standardised targets to learn from; and others to measure at, with the density of each.

    Returns:
        ``(N,)``; and ``(2, N)``, a target and the log-density factor of it, for each of the points
        over which a density is averaged: one, or `POINTS` in the interval of a category.
    """
    if len(y.unique()) > FEW or not bool((y == y.round()).all()):
        centre, unit = y[inside].mean(), y[inside].std()
        standard = (y - centre) / unit
        return standard, [torch.stack([standard, -unit.log().expand_as(y)])]
    grades = column("y", Cells(y[inside].double().numpy()), "category")
    cells, u = Cells(y.double().numpy()), np.random.default_rng(seed).random(len(y))

    def coded(u: Any) -> Tensor:
        return torch.from_numpy(np.stack(grades.encode(cells, u))).float()

    return coded(u)[0], [coded(np.full(len(y), (k + 0.5) / POINTS)) for k in range(POINTS)]


def measure_of(features: Tensor, variants: list[Tensor], loss: Loss) -> Tensor:
    """Log-density, or log-probability, of every target."""
    tests = [(torch.cat([features, v[0].unsqueeze(1)], 1), v[1]) for v in variants]
    return averaged([factor - loss(rows) for rows, factor in tests])


def folded(table: Tensor, order: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and held-out ones, of the ``k``-th model of a number."""
    held_out_loss = min(max(len(order) // 10, 30), 1000)
    part = order.roll(-held_out_loss * k)
    return table[part[held_out_loss:]], table[part[:held_out_loss]]


def averaged(log_probs: list[Tensor]) -> Tensor:
    """The logarithm of a mean density."""
    return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))


def prepared(model: ScoreEstimator) -> Grid:
    """Times equidistant in log-SNR, found once where no learned schedule moves them."""
    function = grid("log_snr")
    sde = model.sde
    if next(sde.parameters(), None) is not None:
        return function
    knots = function(sde, 1024)
    return lambda *_: knots


def whitened(x: Tensor, inside: Tensor) -> Tensor:
    """Features along the principal axes of the training rows, directions they lack left small."""
    rows = x.double()
    scaled = (rows - rows[inside].mean(0)) / rows[inside].std(0).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(scaled[inside].T @ scaled[inside] / len(inside))
    return (scaled @ (vectors / (values + 1e-4).sqrt())).float()


class Member(NamedTuple):
    """A trained conditional model: minus its log-density, and its first guess's if it has one."""

    exact: Loss
    updates: list[float]
    reference: Loss | None = None


Fold = Callable[[int], tuple[Tensor, Tensor]]
"""See `folded`."""
EPOCHS, MEMBERS, POINTS = 400, 5, 16


def options(rows: int) -> dict[str, Any]:
    """Of `fit`, for all arms."""
    batch = min(256, rows // 4)
    return {"batch": batch, "lr": 5e-3, "decay": 1e-2, "most": EPOCHS * rows // batch}


def held_out_loss(model: nn.Module, loss: Loss, valid: Tensor) -> Tensor:
    """Held-out loss, of every network of a model; a bound's by the same times and noise."""
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        losses = loss(valid.repeat(*[1] * (valid.ndim - 2), 1 + 2000 // valid.shape[-2], 1))
    model.train()
    return losses.mean(-1)


def flows(fold: Fold, seconds: float) -> list[Member]:
    """One after the other, as there is time."""
    members: list[Member] = []
    start = time.process_time()
    while True:
        train, valid = fold(len(members))
        left = seconds - (time.process_time() - start)
        flow, minus = encoded_flow(train)
        check = functools.partial(held_out_loss, flow, minus, valid)
        more = fit(flow, minus, train, left, 0, check, **options(len(train)))
        flow.eval()
        members.append(Member(minus, [more["updates"]]))
        used = time.process_time() - start
        if len(members) == MEMBERS or seconds - used < 0.3 * used / len(members):
            return members


def diffusions(fold: Fold, seconds: float) -> list[Member]:
    """Estimators around mixtures, which learn together and have four fifths of the time.

    The networks that correct them have the rest; one is kept if the bound says of the held-out
    rows that it is better than none. Of more than 2,000 rows, for which there is little time, only
    two models learn.
    """
    count = MEMBERS if len(fold(0)[0]) < 2000 else 2
    train, valid = (torch.stack(rows) for rows in zip(*map(fold, range(count)), strict=True))
    n = train.shape[-1] - 1
    all_mixtures = ConditionalMixture(count, n)

    def alone(rows: Tensor, mixture: ConditionalMixture = all_mixtures) -> Tensor:
        return -mixture(rows[..., :n]).log_prob(rows[..., n:])

    settings = options(train.shape[1])
    check = functools.partial(held_out_loss, all_mixtures, alone, valid)
    first = fit(all_mixtures, alone, train, 0.8 * seconds, 0, check, **settings)
    all_mixtures.requires_grad_(False).eval()
    members = []
    for k in range(count):
        mixture = all_mixtures.member(k)
        sde = DiagonalSDE(LogLinear(17.0, -8.0), Identity((1,)))
        network = ResidualMLP((1,), width=48, depth=1, dropout=0.15, condition_dim=n + 1)
        model = MixtureBaseline(sde, network, mixture)
        times = prepared(model)

        def loss(rows: Tensor, model: MixtureBaseline = model, times: Grid = times) -> Tensor:
            return bound(model, rows[:, n:], condition=rows[:, :n], times=times)

        def exact(rows: Tensor, model: MixtureBaseline = model) -> Tensor:
            solver = ExponentialMultistep()
            dist = ScoreDistribution(model, solver, condition=rows[:, :n], method=Quadrature(60))
            return -dist.log_prob(rows[:, n:])

        check = functools.partial(held_out_loss, model, loss, valid[k])
        before, untrained = float(check()), copy.deepcopy(network.state_dict())
        share = 0.25 * first["training_seconds"] / count
        more = fit(model, loss, train[k], share, 0, check, **settings)
        if more["validation"] >= before:
            network.load_state_dict(untrained)
        model.eval()
        updates = [first["updates"], more["updates"], before - more["validation"]]
        members.append(Member(exact, updates, functools.partial(alone, mixture=mixture)))
    return members


def encoded_flow(train: Tensor) -> tuple[nn.Module, Loss]:
    """A spline flow of a target given encoded features, and minus its log-density."""
    import zuko

    n, width = train.shape[1] - 1, 64
    encoder = nn.Sequential(nn.Linear(n, width), *(Residual(width, 0.15) for _ in range(2)))
    flow = zuko.flows.NSF(1, width + n, transforms=3, hidden_features=(64,), bins=16)

    def loss(rows: Tensor) -> Tensor:
        x = rows[:, :n]
        log_prob: Tensor = flow(torch.cat([x, encoder(x)], -1)).log_prob(rows[:, n:])
        return -log_prob

    return nn.ModuleList([encoder, flow]), loss


class Residual(nn.Module):
    """Hidden layers, added to what enters them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, width)``."""
        more: Tensor = self.body(hidden)
        return hidden + more
