"""Plans against plans twice as long, by the Frechet distance of samples of a trained model.

A multi-scale model is trained on photographs, with the stages and units of a plan. It is sampled at
the times of that plan; at those of one that also knows what the trained networks miss, level by
level; and at twice as many, every step cut in two, or planned anew for twice the cost. All start
from the same noise. Quality is the Frechet distance to held-out images in the features of
EfficientNet-Lite0, beside that of as many training images: a plan that can be trusted is no worse
than one that is twice as long, by more than seeds differ.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.equal_time import Photographs, draw, shades, training, updates
from estimators import MultiScale, UNet, measure
from scoresde import LogLinear, Wavelet
from scoresde.app import plots
from scoresde.data import dequantize
from scoresde.metrics import compare
from scoresde.planning import DenoisingErrors, Plan, kurtosis, plan, replan, spectra
from solvers import ExponentialMultistep

WIDTHS = ((48, 96), (48, 96), (32, 64), (24, 48))
"""Of every stage's network, coarse first: stages of the ``trained`` benchmark, and one more."""

SOLVER = ExponentialMultistep(order=2, corrected=False)


def _network(widths: tuple[int, ...], shape: torch.Size) -> UNet:
    return UNet(shape, widths, blocks=1)


def halved(made: Plan) -> Plan:
    """With every step cut in two, at the middle of its time: of a log-SNR that is linear in it."""
    middles = (made.times[1:] + made.times[:-1]) / 2
    times = torch.stack([made.times[:-1], middles], 1).flatten()
    steps = tuple(2 * count for count in made.steps)
    return attrs.evolve(
        made, times=torch.cat([times, made.times[-1:]]), steps=steps, cost=2 * made.cost
    )


def run(
    quick: bool = False,
    data: Path | None = None,
    pictures: Path | None = None,
    seconds: float = 300.0,
    count: int = 1500,
    size: int = 32,
    cost: float = 4.0,
    seeds: int = 3,
    lr: float = 2e-3,
) -> dict[str, Any]:
    """Rows of one model; every plan with each of several seeds of the noise.

    Args:
        quick: Trains for a moment only, to show that it runs.
        data: Folder or zip file of photographs.
        pictures: Where to write samples.
        seconds: Processor time that training may take.
        count: How many samples are compared.
        size: Of the images, to which they are resized.
        cost: Of the plan, in evaluations at full resolution.
        seeds: Of the noise.
        lr: Of the training.
    """
    if quick:
        seconds, count, seeds = 2.0, 20, 1
    torch.set_num_threads(1)
    name_of_all, train, held_out, features, real, floor = Photographs.of(data, size, count)
    x, y = (_events(part.read(slice(2000))) for part in (train, held_out))
    basis = Wavelet(x.shape[1:], 3, "db4", colour=True)
    bands = spectra(basis, x)
    known: dict[str, Any] = {"kurtosis": kurtosis(basis, x)}
    made = plan(basis, LogLinear(), bands, SOLVER, cost=cost, **known)
    torch.manual_seed(0)
    makers = [partial(_network, widths) for widths in WIDTHS]
    options: dict[str, Any] = {"weighting": "balanced", "network_bases": "events"}
    model = MultiScale(made.sde, makers, **options, **measure(made.sde, x))
    steps = updates({"model": model}, train, seconds, 2 if quick else 8)["model"]
    training(steps, lr).fit(model, train, progress=False)
    known["learned"] = DenoisingErrors.of(model, y, generator=torch.Generator().manual_seed(0))
    again = partial(replan, made.sde, bands, SOLVER, **known)
    plans = {"planned": made, "planned, learned": again(cost=cost)}
    plans |= {f"{name}, steps halved": halved(each) for name, each in plans.items()}
    plans["planned, learned, for twice the cost"] = again(cost=2 * cost)
    rows: list[dict[str, Any]] = []
    panels = {"photographs": shades(held_out.read(slice(32)))}
    for name, each in plans.items():
        solver = attrs.evolve(SOLVER, steps=sum(each.steps), grid=each.grid)
        distances, elapsed = [], 0.0
        for seed in range(seeds):
            samples, taken = draw(model, solver, count, seed)
            distances.append(compare(real, features(samples)).frechet)
            panels.setdefault(name, samples[:32])
            elapsed += taken / seeds
        rows.append(
            {
                "plan": name,
                "steps": "+".join(map(str, each.steps)),
                "cost": round(each.cost, 2),
                "frechet": [round(value, 2) for value in distances],
                "seconds_sample": round(elapsed, 2),
            }
        )
        print(rows[-1], flush=True)
    if pictures is not None:
        plots.save(plots.image_grid(panels, columns=4), pictures)
    return {"data": name_of_all, "updates": steps, "floor": round(floor, 2), "rows": rows}


def _events(values: Tensor) -> Tensor:
    return dequantize(values, 256, torch.Generator().manual_seed(0))
