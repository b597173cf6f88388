"""Train, sample and evaluate two diffusion models of handwritten digits.

One is uniform, the other diffuses every band of a Haar pyramid at its own speed; network,
budget and data are the same. Leaves pictures and ``report.json`` in ``demo-output/``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from estimators import Denoising, ResidualMLP, measure
from scoresde import Cosine, DiagonalSDE, Haar, Identity, Solver
from scoresde.app import plots
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset, dequantize, load, quantize, split
from scoresde.data.events import events
from scoresde.training import Training
from solvers import DDIM, ExponentialMultistep

SHAPE = (1, 8, 8)
SDES = {
    "uniform": DiagonalSDE(Cosine(log_snr_min=-10), Identity(SHAPE)),
    "non-uniform (Haar bands)": DiagonalSDE(
        Cosine(log_snr_min=-10), Haar(SHAPE, levels=3), speeds=[1.0, 1.05, 1.15, 1.3]
    ),
}
SOLVERS: dict[str, Solver] = {
    "ODE, 24 multistep": ExponentialMultistep(24),
    "SDE, 96 DDIM": DDIM(96, eta=1.0),
}


class Judge(nn.Module):
    """A classifier of digits, whose features measure how real samples are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, padding=1), nn.SiLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 32), nn.SiLU(),
        )  # fmt: skip
        self.classes = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] to logits."""
        return self.classes(self.features(x))

    def study(self, x: Tensor, classes: Tensor, steps: int) -> None:
        """Trains on the training split."""
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            loss = nn.functional.cross_entropy(self(x[rows]), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval()


@torch.no_grad()
def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features."""
    gap = (a.mean(0) - b.mean(0)).square().sum()
    ca, cb = torch.cov(a.mT), torch.cov(b.mT)
    cross = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt().sum()
    return float(gap + ca.trace() + cb.trace() - 2 * cross)


@torch.no_grad()
def quality(judge: Judge, x: Tensor, held_out: Tensor, train: Tensor) -> dict[str, float]:
    """How samples compare with held-out digits, in the 17 bins of the data."""
    x = (2 * quantize(x, 17) + 1) / 17 - 1
    confidence, digit = judge(x).softmax(-1).max(-1)
    counts = digit.bincount(minlength=10) / len(x)
    nearest = torch.cdist(x.flatten(1), train.flatten(1)).amin(1)
    return {
        "frechet_distance": frechet(judge.features(x), judge.features(held_out)),
        "confidence": float(confidence.mean()),
        "rarest_class_share": float(counts.min()),
        "distance_to_training_digits": float(nearest.mean()),
    }


def centres(data: Dataset) -> Tensor:
    """Integer images as the middles of their cells, in [-1, 1]."""
    return (2 * data.values + 1) / 17 - 1


def classes() -> Dataset:
    """The digits' classes, as a data set: the same seed splits them as it splits the images."""
    from sklearn.datasets import load_digits

    return Dataset("classes", torch.from_numpy(load_digits().target)[:, None], bins=10)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--quick", action="store_true", help="a few steps, to try it out")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    data = load("digits")
    train, held_out = split(data, 0.8)
    fit, validation = split(train, 0.9)
    training = Training(steps=60 if arguments.quick else 4000)
    count = 20 if arguments.quick else len(held_out.values)

    print("a judge of quality: a classifier of digits")
    judge = Judge()
    train_classes, held_out_classes = (part.values[:, 0] for part in split(classes(), 0.8))
    judge.study(centres(train), train_classes, 50 if arguments.quick else 600)
    accuracy = (judge(centres(held_out)).argmax(-1) == held_out_classes).float().mean()
    reference = quality(judge, centres(held_out), centres(held_out), centres(train)) | {
        # held-out digits are at distance 0 of themselves: as many training digits instead
        "frechet_distance": frechet(
            judge.features(centres(train)[: len(held_out.values)]).detach(),
            judge.features(centres(held_out)).detach(),
        ),
        "accuracy": float(accuracy),
    }

    report: dict[str, Any] = {
        "data": f"scikit-learn digits, {len(fit.values)} to train, {len(validation.values)} to "
        f"choose the step, {len(held_out.values)} held out",
        "reference": {"name": "held-out digits", "quality": reference},
        "models": [],
        "pictures": [],
    }

    def picture(name: str, figure: plots.Figure) -> None:
        plots.save(figure, output / name)
        report["pictures"].append(name)

    panels = {"real, held out": centres(held_out)[:64]}
    clean = dequantize(fit.values, 17, torch.Generator().manual_seed(0))
    for name, sde in SDES.items():
        print(f"\n{name}")
        torch.manual_seed(0)
        network = ResidualMLP(SHAPE, width=192, depth=4, dropout=0.05)
        model = Denoising(sde, network, **measure(sde, clean))
        history = training.fit(model, fit, validation)
        likelihood = evaluate(
            model,
            held_out,
            ExponentialMultistep(32, grid="log_snr"),
            count=count,
            generator=torch.Generator().manual_seed(0),
            progress=True,
        )
        samples: dict[str, Any] = {}
        for solver_name, solver in SOLVERS.items():
            generator = torch.Generator().manual_seed(0)
            start = time.perf_counter()
            x = solver.sample(model, (len(held_out.values),), generator=generator, progress=True)
            seconds = time.perf_counter() - start
            samples[solver_name] = {
                "evaluations": solver.steps,
                "seconds_sample": seconds,
                "quality": quality(judge, x, centres(held_out), centres(train)),
            }
            panels[f"{name}\n{solver_name}"] = x[:64]
        first = next(iter(samples.values()))
        report["models"].append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "bits_per_dim": likelihood["bits_per_dim"],
                "bits_per_dim_stderr": likelihood["bits_per_dim_stderr"],
                "likelihood": likelihood,
                "evaluations": first["evaluations"],
                "seconds_train": history.seconds,
                "seconds_sample": first["seconds_sample"],
                "quality": first["quality"],
                "solvers": samples,
            }
        )
        slug = name.split()[0]
        picture(f"schedules-{slug}.png", plots.schedules(sde, f"Schedules per block: {name}"))
        generator = torch.Generator().manual_seed(1)
        picture(
            f"trajectory-{slug}.png",
            plots.trajectory(
                model, ExponentialMultistep(48, grid="uniform_time"), generator=generator
            ),
        )
    picture("samples.png", plots.image_grid(panels))
    picture(
        "forward-noising.png",
        plots.forward_noising(
            SDES, events(held_out)[0], generator=torch.Generator().manual_seed(0)
        ),
    )
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    for row in report["models"]:
        print(
            f"{row['name']}: {row['bits_per_dim']:.3f} +- {row['bits_per_dim_stderr']:.3f} bits/dim"
        )
    print(f"see {output}/")


if __name__ == "__main__":
    main()
