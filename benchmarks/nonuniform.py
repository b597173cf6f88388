"""All recipes of diffusion in one table, under the same conditions.

Every recipe of `benchmarks.recipes` has the same grey photographs (``--data``, a folder or a zip
file; mirrored at random), family of networks, number of parameters, optimiser, batch size and time
of training: updates are timed side by side. With more and more evaluations, twice as many each
time, samples are drawn until their Frechet distance to held-out images stops falling, in the
features of EfficientNet-Lite0; it is given beside that of as many training images.

``--set table="bed"`` trains nothing: exact scores of the Gaussian that patches of two photographs
have, where the distribution of a sampler's results is known. Error: ``W2^2 / trace``; cost:
evaluations at full resolution. Every recipe is given the best of several grids, or a plan, and all
of it is used on the Gaussian of other images as well, where there are any (``--data``).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.beds import cost, relative_w2, sample_moments
from benchmarks.equal_time import (
    Photographs,
    bound_in_bits,
    draw,
    over_seeds,
    shades,
    training,
    updates,
)
from benchmarks.recipes import RECIPES, Recipe, learned, learned_stages, wavelets
from benchmarks.unets import parameters
from estimators import Gaussian
from scoresde import DiagonalSDE, LogLinear, Solver
from scoresde.app import plots
from scoresde.data import dequantize, load, patches
from scoresde.metrics import compare
from scoresde.planning import plan, replan, spectra
from solvers import ExponentialMultistep

EVALUATIONS = (8, 16, 32, 64)
"""With four, one for each band, delayed bands are their means: one face, again and again, which the
Frechet distance likes."""
FALLS = 0.97
"""What is above this part of the distance before has stopped falling: samples of other seeds differ
by as much."""

STAGES = {2.0: (8, 6, 2, 1), 3.0: (8, 6, 2, 2), 4.0: (8, 6, 2, 3), 8.0: (8, 6, 6, 6)}
"""Steps of stages whose paths are learned, at most at this cost: many of coarse ones are cheap."""

COSTS = tuple(STAGES)
SHOWN = 24
"""Samples of a recipe in a picture."""

KEYS = ("frechet", "evaluations", "seconds_sample", "seconds_train", "bits_per_dim_bound")


def run(
    quick: bool = False,
    data: Path | None = None,
    table: str = "trained",
    size: int = 32,
    seconds: float = 45.0,
    first: int = 0,
    seeds: int = 1,
    count: int = 500,
    recipes: str = "",
    pictures: Path | None = None,
) -> dict[str, Any]:
    """One of two tables, ``trained`` or ``bed``; ``recipes`` names some, with ``;`` between them.

    ``seeds`` are counted from ``first``. ``pictures`` shows samples of that one, with the
    evaluations of the table.
    ``quick`` trains for a moment only, or takes small patches, to show that it runs.
    """
    torch.set_num_threads(1)
    # of images that heat dissipation blurs the brightness is there to the end, and is sampled so
    warnings.filterwarnings("ignore", message="sde: data of 'band1' are not lost")
    named = [name.strip() for name in recipes.split(";") if name.strip()]
    unknown = {*named} - {*RECIPES}
    if unknown or table not in ("trained", "bed"):
        raise ValueError(f"recipes, table: expected some of {[*RECIPES]}; got {unknown or table}")
    chosen = {name: RECIPES[name] for name in named or RECIPES}
    if table == "bed":
        return bed(chosen, 16 if quick else size, data)
    if data is None:
        raise ValueError("data: expected --data, a folder or a zip file of photographs, got none")
    if quick:
        size, seconds, seeds, count = 16, 0.3, 1, 8
    numbers = range(first, first + seeds)
    return trained(chosen, data, size, seconds, numbers, count, quick, pictures)


def trained(
    recipes: dict[str, Recipe],
    data: Path,
    size: int,
    seconds: float,
    seeds: Sequence[int],
    count: int,
    quick: bool,
    pictures: Path | None,
) -> dict[str, Any]:
    """Rows of every recipe, seed and number of evaluations, and the best of each."""
    name_of_all, train, held_out, features, real, floor = Photographs.of(
        data, size, count, mode="L"
    )
    x = dequantize(train.read(slice(4000)), 256, torch.Generator().manual_seed(0))
    sdes = {name: recipe.sde(x) for name, recipe in recipes.items()}
    models = {name: recipe.model(sdes[name], x) for name, recipe in recipes.items()}
    steps = updates(models, train, seconds, 1 if quick else 5)
    rows: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    panels: dict[str, Tensor] = {"data": shades(held_out.read(slice(SHOWN)))}
    for seed, (name, recipe) in itertools.product(seeds, recipes.items()):
        torch.manual_seed(seed)
        model = recipe.model(sdes[name], x)
        history = training(steps[name]).fit(model, train, seed=seed, progress=False)
        known = {
            "recipe": name,
            "seed": seed,
            "parameters": parameters(model),
            "updates": steps[name],
            "seconds_train": round(history.seconds, 1),
            "bits_per_dim_bound": bound_in_bits(model, held_out, 8 if quick else 256),
        }
        last = math.inf
        for evaluations in EVALUATIONS[: 2 if quick else None]:
            solver = recipe.solver(evaluations)
            samples, elapsed = draw(model, solver, count, seed)
            quality = compare(real, features(samples))
            row = known | {
                "evaluations": evaluations,
                "cost": round(cost(model.sde, solver), 2),
                "seconds_sample": round(elapsed, 2),
                "frechet": round(quality.frechet, 1),
                "kernel": round(quality.kernel, 4),
                "recall": round(quality.recall, 3),
                "out_of_range": round(float((samples.abs() > 1).float().mean()), 3),
                "deviation": round(float(samples.std(0).mean() / x.std(0).mean()), 3),
            }
            rows.append(row)
            print(row, flush=True)
            if row["frechet"] > FALLS * last:
                break
            last, reached = row["frechet"], row
            if seed == seeds[0]:
                panels[name] = samples[:SHOWN]
        best.append(reached)
        if pictures is not None:
            plots.save(plots.image_grid(panels, columns=3), pictures)
    best.sort(key=lambda row: float(row["frechet"]))
    return {
        "data": name_of_all,
        "floor": round(floor, 2),
        "summary": over_seeds(best, ["recipe"], KEYS),
        "rows": rows,
    }


def bed(recipes: dict[str, Recipe], size: int, data: Path | None = None) -> dict[str, Any]:
    """Error at cost, with exact scores of the patches' Gaussian, and the best at every cost."""
    x = shades(patches(size, stride=4).values.double())
    others = None if data is None else shades(load(data, size=size, mode="L").values.double())
    rows: list[dict[str, Any]] = []
    for budget in COSTS:
        for name, sde, solver in candidates(recipes, x, budget):
            row = {
                "recipe": name,
                "budget": budget,
                "cost": round(cost(sde, solver), 2),
                "error": error(sde, x, solver),
                **({} if others is None else {"elsewhere": error(sde, others, solver)}),
                "steps": solver.steps,
                "grid": getattr(solver.grid, "__name__", "of its own"),
                "corrected": solver.corrected,
            }
            rows.append(row)
            text = "{recipe:34} {steps:3} steps, cost {cost:5.2f} error {error:.2e} on {grid}"
            there = "" if others is None else f", elsewhere {row['elsewhere']:.2e}"
            print(text.format(**row) + there, flush=True)
    at = {budget: [row for row in rows if row["budget"] == budget] for budget in COSTS}
    best = {f"{budget:g}": min(at[budget], key=lambda row: row["error"]) for budget in at}
    return {"best": best, "rows": rows}


def error(sde: DiagonalSDE, x: Tensor, solver: Solver) -> float:
    """Of a sampler with the exact scores of a Gaussian that has the moments of events."""
    mean, covariance = x.mean(0), torch.cov(x.flatten(1).mT)
    moments = sample_moments(Gaussian(sde, mean, covariance), solver)
    return relative_w2(mean.flatten(), covariance, moments)


def candidates(
    recipes: dict[str, Recipe], x: Tensor, budget: float
) -> Iterator[tuple[str, DiagonalSDE, ExponentialMultistep]]:
    """What every recipe is sampled with at a cost.

    One stage: with the best of several grids, with and without corrections.
    Several: with steps that are planned. Paths are learned for their steps.
    """
    second = ExponentialMultistep(int(budget), order=2)
    for name, recipe in recipes.items():
        if recipe.learns:
            continue  # of exact scores the bound is the same on every path
        sde = recipe.sde(x)
        if len(sde.stages()) == 1:
            named = {recipe.grid, "log_snr", "arctan_log_snr", "uniform_time"}
            pairs = itertools.product(sorted(named, key=str), (False, True))
            tried = [attrs.evolve(second, grid=grid, corrected=c) for grid, c in pairs]
            yield name, sde, min(tried, key=partial(error, sde, x))
        elif budget >= sum(stage.dim for stage in sde.stages()) / sde.basis.dim:
            staged = replan(sde, spectra(sde.basis, x), second, cost=budget)
            yield name, sde, attrs.evolve(second, steps=sum(staged.steps), grid=staged.grid)
    for wavelet in ("db1", "db4"):
        basis = wavelets(x, wavelet)
        staged = plan(basis, LogLinear(), spectra(basis, x), second, cost=budget)
        solver = attrs.evolve(second, steps=sum(staged.steps), grid=staged.grid)
        yield f"multi-scale, planned, {wavelet}", staged.sde, solver
    equal = attrs.evolve(second, grid="uniform_time")
    yield f"learned per band, for {second.steps} steps", learned(x, second.steps), equal
    yield "learned per scale, in stages", *learned_stages(x, STAGES[budget])
    own = learned_stages(x, STAGES[budget], components=True)
    yield "learned per scale, its components", *own
