"""Images from what is left of them: the four conditional estimators on the same footing.

Photographs at 32x32: four-fold super-resolution, a missing quarter, and edges. CDE, CDiffE, CMDE
and VS-CMDE have the same U-Net, data, preconditioning, objective, batch size, number of updates,
solver and seeds; only the diffusion of ``y`` differs. Variance exploding with the paper's scales:
``sigma_x`` to ``sqrt(dim x)``, ``sigma_y`` to .5 (super-resolution) or 1.

PSNR and SSIM are of single samples against the truth, other images for every seed. Distances
between sets are in the features of EfficientNet-Lite0: KID, an unbiased one, for every seed; FD, a
Frechet distance, of all seeds' samples together; FD joint, that of pairs with ``y``. The perceptual
distance is a mean over the same network's normalised feature maps, in the manner of LPIPS.
Diversity is the mean standard deviation of a pixel over four samples, consistency the root mean
square distance between ``y`` and what the sample would give. The curve is the PSNR of 64 samples
after a quarter, a half, three quarters and all of the updates; seconds of training are processor
time, the drawing of these samples included.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.equal_time import over_seeds, shades
from benchmarks.unets import parameters
from estimators import MultiScale, UNet, cde, cdiffe, cmde, measure, vs_cmde
from scoresde import VE, DiagonalSDE, Joint, Wavelet, condition
from scoresde.app import plots
from scoresde.conditioning import ResampleObserved
from scoresde.data import Dataset, Downsample, Edges, Mask, load
from scoresde.metrics import EfficientNetLite0, extract, frechet_distance, kernel_distance
from scoresde.training import History, Training
from scoresde.training.precisions import autocast, autocast_dtype
from solvers import ExponentialMultistep

SIZE = 32
WIDTHS = (48, 96)
"""Of the U-Net, on pixels packed two by two."""
SIGMA_MIN = 5e-3
DEGRADED: dict[str, Callable[[Tensor], Tensor]] = {
    "super-resolution": Downsample(4),
    "inpainting": Mask(),
    "edges": Edges(),
}
SIGMA_Y = {"super-resolution": 0.5, "inpainting": 1.0, "edges": 1.0}
METHODS = ("CDE", "CDiffE", "CMDE", "VS-CMDE")


def run(
    quick: bool = False,
    data: Path | None = None,
    pictures: Path | None = None,
    seeds: int = 3,
    first: int = 0,
    updates: int = 700,
    count: int = 500,
    methods: str = ",".join(METHODS),
    tasks: str = "super-resolution,inpainting,edges",
    sigma_y: float | None = None,
) -> dict[str, Any]:
    """Rows and their means over seeds.

    Args:
        quick: Trains for a moment only.
        data: Folder or zip file of photographs.
        pictures: Where to write samples.
        seeds: Of models, each with faces of its own.
        first: The first of them.
        updates: Of every model.
        count: Held-out faces per seed.
        methods: Names in `METHODS`, separated by commas.
        tasks: Names in `DEGRADED`, separated by commas.
        sigma_y: Largest noise on ``y`` in CMDE, and where VS-CMDE ends; None: the paper's.
    """
    if data is None:
        raise ValueError("data: expected a folder or a zip file of photographs, got none")
    if quick:
        seeds, first, updates, count = 1, 0, 4, 16
    torch.set_num_threads(1)
    images = shades(load(data, size=SIZE).read(slice(600 if quick else 10_000)))
    held = (first + seeds) * count
    train, tests, others = images.split([len(images) - 2 * held, held, held])
    tests = tests[first * count :]
    features = Features()
    looked = [features(part) for part in tests.split(count)]
    real = torch.cat([real_features for real_features, _ in looked])
    floor = frechet_distance(features(others)[0], real)
    print(f"real against real: FD {floor:.1f} at {len(tests)} images", flush=True)
    rows: list[dict[str, Any]] = []
    generated_features: dict[tuple[str, str], list[Tensor]] = {}
    panels: dict[str, dict[str, Tensor]] = {
        task: {"observed": _visible(degrade(tests[:8])), "real": _visible(tests[:8])}
        for task, degrade in DEGRADED.items()
    }
    chosen = itertools.product(range(first, first + seeds), tasks.split(","), methods.split(","))
    for seed, task, method in chosen:
        torch.manual_seed(seed)
        place = seed - first
        degrade, part = DEGRADED[task], slice(place * count, (place + 1) * count)
        test = tests[part]
        y, curve = degrade(test), []
        model, joint = _model(method, train, degrade, updates, sigma_y or SIGMA_Y[task])

        def watch(
            step: int, model: Any, history: History, y: Tensor = y, test: Tensor = test,
            curve: list[float] = curve, seed: int = seed,
        ) -> None:  # fmt: skip
            curve.append(round(_psnr(_sample(model, y[:64], seed), test[:64]), 2))

        pairs = Dataset(task, joint.join(y=degrade(train), x=train))
        training = Training(
            steps=updates, batch_size=32, lr=2e-3, precision="auto", measurements=4, warmup=0.1
        )
        start = time.process_time()
        training.fit(model, pairs, seed=seed, progress=False, on_measure=watch)
        trained = time.process_time()
        samples = _sample(model, y, seed)
        sampled = time.process_time()
        four = torch.stack([_sample(model, y[:16], seed + k) for k in range(1, 5)])
        generated, maps = features(samples)
        generated_features.setdefault((task, method), []).append(generated)
        row = {
            "task": task,
            "method": method,
            "seed": seed,
            "parameters": parameters(model),
            "seconds_train": round(trained - start, 1),
            "seconds_sample": round(sampled - trained, 1),
            **_quality(samples, test, y, degrade),
            "perceptual": round(_gap(maps, looked[place][1]), 4),
            "kid": round(1e3 * kernel_distance(generated, real[part]).value, 3),
            "diversity": round(float(four.std(0).mean()), 4),
            "curve": curve,
        }
        rows.append(row)
        print(row, flush=True)
        if seed == first:
            panels[task][method] = _visible(samples[:8])
            panels[task][f"{method}:\nmean of four"] = _visible(four.mean(0)[:8])
            panels[task][f"{method}:\ndeviation"] = _visible(2 * four.std(0)[:8] - 1)
        if pictures is not None:  # a long run shows what there is
            target = pictures.with_stem(f"{pictures.stem}-{task}")
            plots.save(plots.image_grid(panels[task], columns=1), target)
    summary = _summary(rows)
    degraded_features = {task: features(degrade(tests))[0] for task, degrade in DEGRADED.items()}
    for entry in summary:
        generated, y = (
            torch.cat(generated_features[entry["task"], entry["method"]]),
            degraded_features[entry["task"]],
        )
        entry["fd"] = round(frechet_distance(generated, real), 1)
        pair = torch.cat([generated, y], 1), torch.cat([real, y], 1)
        entry["fd_joint"] = round(frechet_distance(*pair), 1)
        print(entry, flush=True)
    return {"floor": round(floor, 1), "count": len(tests), "summary": summary, "rows": rows}


class _Packed(nn.Module):
    """A U-Net of images whose pixels are packed two by two."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = UNet((4 * channels, height // 2, width // 2), WIDTHS, blocks=1)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Events ``(batch, channels, height, width)`` in and out."""
        output = self.body(nn.functional.pixel_unshuffle(x, 2), noise_level)
        return nn.functional.pixel_shuffle(output, 2)


def _model(
    method: str, x: Tensor, degrade: Callable[[Tensor], Tensor], updates: int, sigma_y: float
) -> tuple[MultiScale, Joint]:
    """Untrained; and the joint basis."""
    bands = Wavelet((3, SIZE, SIZE), 3, "db4", colour=True)
    joint = Joint(y=tuple(degrade(x[:1]).shape[1:]), x=bands)
    sde = DiagonalSDE(VE(SIGMA_MIN, bands.dim**0.5), joint)
    scales = measure(sde, joint.join(y=degrade(x[:4000]), x=x[:4000]))
    options: dict[str, Any] = {"weighting": "balanced", "times": "log_normal", **scales}
    makers: dict[str, Callable[[], MultiScale]] = {
        "CDE": lambda: cde(sde, _Packed, **options),
        "CDiffE": lambda: cdiffe(sde, _Packed, **options),
        "CMDE": lambda: cmde(sde, _Packed, noise=sigma_y, **options),
        "VS-CMDE": lambda: vs_cmde(sde, _Packed, updates=updates // 2, noise=sigma_y, **options),
    }
    return makers[method](), joint


@torch.no_grad()
def _sample(model: MultiScale, y: Tensor, seed: int) -> Tensor:
    """One image for each ``y``."""
    solver = ExponentialMultistep(32, order=2, eta=1.0, corrector=ResampleObserved())
    cpu = torch.device("cpu")
    with autocast(autocast_dtype("auto", cpu), cpu):  # as in training
        parts = [
            solver.sample(
                condition(model, y=part),
                (len(part),),
                generator=torch.Generator().manual_seed(seed),
            )
            for part in y.split(100)
        ]
    return torch.cat(parts).clamp(-1, 1)


class Features:
    """What `EfficientNetLite0` says of images, and its normalised maps at four resolutions."""

    def __init__(self) -> None:
        self.last = EfficientNetLite0()
        self.maps: list[Tensor] = []
        blocks: Any = self.last.network._blocks
        for block in (0, 2, 4, 10):
            blocks[block].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: Any, output: Tensor) -> None:
        # halved twice: a map of all would be gigabytes
        small = nn.functional.avg_pool2d(output, 4, ceil_mode=True)
        self.maps.append(nn.functional.normalize(small, dim=1).half())

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features ``(N, 1280)``, and maps."""
        self.maps = []
        features = extract(self.last, x)
        return features, [torch.cat(self.maps[level::4]) for level in range(4)]


def _quality(
    samples: Tensor, truth: Tensor, observed: Tensor, degrade: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """What is measured of every sample beside its truth."""
    from skimage.metrics import structural_similarity

    pairs = list(zip(samples.numpy(), truth.numpy(), strict=True))
    ssim = [structural_similarity(a, b, data_range=2.0, channel_axis=0) for a, b in pairs]
    return {
        "psnr": round(_psnr(samples, truth), 3),
        "ssim": round(float(np.mean(ssim)), 4),
        "consistency": round(float((degrade(samples) - observed).square().mean().sqrt()), 4),
    }


def _gap(maps: list[Tensor], wanted: list[Tensor]) -> float:
    """Mean distance of feature maps."""
    gaps = [(a - b).float().square().sum(1).mean() for a, b in zip(maps, wanted, strict=True)]
    return float(torch.stack(gaps).mean())


def _psnr(samples: Tensor, truth: Tensor) -> float:
    """Decibels, averaged over images."""
    error = (samples - truth).square().mean((1, 2, 3))
    return float((10 * (4 / error).log10()).mean())


def _visible(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=SIZE, mode="nearest")


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and ranges over seeds, and the mean of their curves."""
    names = ["task", "method"]
    summary = over_seeds(rows, names, [k for k in rows[0] if k not in (*names, "seed", "curve")])
    for each in summary:
        curves = [row["curve"] for row in rows if all(row[n] == each[n] for n in names)]
        each["curve"] = [round(statistics.mean(v), 2) for v in zip(*curves, strict=True)]
    return summary
