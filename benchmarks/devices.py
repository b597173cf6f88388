"""Whether an accelerator answers as the CPU does, in single precision and double.

Every row is one thing that users ask for, done on both with the same noise, from generators of the
CPU, and the largest difference of the answers, in units of the largest of them. What fails says so
and costs no other row. Without an accelerator the CPU is compared with itself, which shows that
everything here runs. Data are random: nothing is downloaded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from torch import Tensor

from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    GaussianMixture,
    Guidance,
    MultiScale,
    ResidualMLP,
    cmde,
)
from scoresde import (
    CLD,
    EDM,
    HOLD,
    PCA,
    PSLD,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    LogLinear,
    RectifiedFlow,
    ScoreDistribution,
    ScoreEstimator,
    SubVP,
    Wavelet,
    bound,
    condition,
    log_prob,
    plugins,
)
from scoresde.app import devices
from scoresde.data import Dataset
from scoresde.training import Training
from solvers import DDIM, ExponentialMultistep

Row = dict[str, Any]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Sums have another order, and matrix products other kernels; a wrong formula, or other noise, is
off by much more."""
SCHEDULES = (VP, VE, SubVP, EDM, Cosine, LogLinear, RectifiedFlow)
PAIRS = (CLD, PSLD, HOLD)
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


@attrs.frozen
class Place:
    """Where something is asked for, and in what.

    Args:
        device: Of models and events.
        dtype: Of both.
    """

    device: torch.device
    dtype: torch.dtype

    def put(self, model: Any) -> Any:
        """A model, or events, there."""
        return model.to(self.device, self.dtype)

    def events(self, count: int, *shape: int) -> Tensor:
        """The same everywhere."""
        x = torch.randn(count, *shape, generator=noise(), dtype=torch.float64)
        return x.to(self.device, self.dtype)


Ask = Callable[[Place], Tensor]


def noise() -> torch.Generator:
    """Of the CPU, and so the same for all devices."""
    return torch.Generator().manual_seed(0)


def gaussian(sde: Any) -> Gaussian:
    """An exact estimator of three correlated numbers."""
    n = sde.basis.event_shape.numel()
    return Gaussian(sde, torch.linspace(-1, 1, n), 0.5 * torch.eye(n) + 0.5)


def plain() -> DiagonalSDE:
    """A speed for each of two blocks."""
    return DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}), [1.0, 0.7])


def network_model(sde: DiagonalSDE | None = None, **options: Any) -> Denoising:
    """Untrained, the same everywhere."""
    torch.manual_seed(0)
    sde = sde or plain()
    network = ResidualMLP(tuple(sde.basis.event_shape), 32, 2, **options)
    return Denoising(sde, network)


def staged() -> MultiScale:
    """Three stages of images."""
    torch.manual_seed(0)
    basis = Wavelet((1, 16, 16), 2, "db2")
    sde = DiagonalSDE(LogLinear(), basis, drop=[1.0, 0.7, 0.5])
    return MultiScale(sde, lambda shape: ResidualMLP(tuple(shape), 32, 1))


def _drawn(make: Callable[[], ScoreEstimator], solver: Any, place: Place) -> Tensor:
    model = place.put(make())
    return torch.as_tensor(solver.sample(model, (64,), dtype=place.dtype, generator=noise()))


def _compiled(solver: Any, place: Place) -> Tensor:
    """As `Solver.sample` on the same device, to the last bit; and after other weights."""
    model = place.put(network_model())
    sampler = solver.compiled(model, (64,))
    samples = []
    for _ in range(2):
        x = sampler(noise())
        _expect_equal(x, solver.sample(model, (64,), generator=noise()))
        samples.append(x)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
    return torch.stack(samples)


def _expect_equal(one: Tensor, other: Tensor) -> None:
    if not torch.equal(one, other):
        gap = float((one - other).abs().max())
        raise AssertionError(f"expected the same to the last bit, got a difference of {gap:.2g}")


def _density(make: Callable[[], ScoreEstimator], options: dict[str, Any], place: Place) -> Tensor:
    model = place.put(make())
    x = place.events(16, *model.sde.basis.event_shape)
    density = log_prob(model, x, generator=noise(), **options)
    return torch.as_tensor(getattr(density, "value", density)).detach()


def _bound(make: Callable[[], ScoreEstimator], place: Place) -> Tensor:
    model = place.put(make())
    return bound(model, place.events(16, *model.sde.basis.event_shape), generator=noise()).detach()


def _loss(make: Callable[[], Any], place: Place) -> Tensor:
    model = place.put(make())
    loss = model.loss(place.events(16, *model.sde.basis.event_shape), generator=noise())
    loss.backward()
    gradients = [p.grad.flatten()[:4] for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach().reshape(1), *gradients])


def _conditional(place: Place) -> Tensor:
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    model = place.put(gaussian(sde))
    given = condition(model, y=place.events(64, 1))
    return DDIM(16, eta=1.0).sample(given, (64,), generator=noise())


def _multi_speed(place: Place) -> Tensor:
    torch.manual_seed(0)
    sde = DiagonalSDE(VP(), Joint(y=(2,), x=(2,)))
    model = place.put(cmde(sde, lambda shape: ResidualMLP(shape, 32, 1)))
    given = condition(model, y=place.events(64, 2))
    return DDIM(16).sample(given, (64,), generator=noise())


def _guided(place: Place) -> Tensor:
    operator = torch.tensor([[1.0, 1.0, 0.0]], device=place.device, dtype=place.dtype)
    seen = place.events(64, 1)
    guided = Guidance(
        place.put(gaussian(plain())), lambda x: x @ operator.to(x).mT, seen, noise=0.1
    )
    return DDIM(16).sample(guided, (64,), generator=noise())


def _classes(place: Place) -> Tensor:
    model = ClassifierFree(place.put(network_model(classes=3)), 2, guidance=2.0)
    labels = torch.arange(64, device=place.device) % 2
    return DDIM(16).sample(model, (64,), condition=labels, generator=noise())


def _trained(options: dict[str, Any], place: Place) -> Tensor:
    """Mean loss of the last updates: noise is the device's own, and so it is not the same."""
    model = place.put(network_model())
    training = Training(steps=300, batch_size=64, measurements=3, lr=3e-3, **options)
    history = training.fit(model, place.events(4096, 3), progress=False, seed=1)
    return torch.as_tensor([history.losses[-1]])


def _resumed(place: Place) -> Tensor:
    """A run that was interrupted, beside one that was not: the same to the last bit."""
    events, weights = place.events(512, 3).cpu(), []
    for stop in (None, 25):
        with TemporaryDirectory() as folder:
            model, training = place.put(network_model()), Training(steps=40, batch_size=32)
            fit = partial(training.fit, data=events, folder=Path(folder), progress=False, seed=3)
            if stop is not None:

                def between(step: int, stop: int = stop) -> None:
                    if step == stop:
                        raise KeyboardInterrupt

                try:
                    fit(model, on_step=between, save_every=10)
                except KeyboardInterrupt:
                    model = place.put(network_model())
            fit(model)
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    _expect_equal(*weights)
    return weights[0][:0]


def _captured_gradients(place: Place) -> Tensor:
    """As without capturing, to the last bit; a run that was interrupted, too."""
    weights = []
    for capture in (False, True):
        model = place.put(staged())
        training = Training(steps=20, batch_size=32, capture=capture)
        training.fit(model, place.events(512, 1, 16, 16), progress=False, seed=3)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    _expect_equal(*weights)
    return weights[0][:0]


def _from_the_disk(place: Place) -> Tensor:
    """Batches of processes that read ahead, beside events that are on the device."""
    shades = (place.events(256, 1, 4, 4).cpu() * 40 + 128).clamp(0, 255).to(torch.uint8)
    losses = []
    for workers in (0, 2):
        model = place.put(network_model(DiagonalSDE(VP(), Identity((1, 4, 4)))))
        training = Training(steps=20, batch_size=32, workers=workers)
        losses.append(
            training.fit(model, Dataset("shades", shades, bins=256), progress=False).losses[-1]
        )
    _expect_equal(*(torch.tensor(v) for v in losses))
    return torch.zeros(0)


def _default_device(place: Place) -> Tensor:
    with torch.device(place.device):
        model = network_model().to(place.dtype)
        Training(steps=4, batch_size=8).fit(model, torch.randn(64, 3), progress=False)
        x = DDIM(4).sample(model, (8,))
        log_prob(model, x, trace=Hutchinson(1))
    if x.device.type != place.device.type:
        raise AssertionError(f"expected samples on {place.device}, got them on {x.device}")
    return x[:0]


def _moved(place: Place) -> Tensor:
    """A sampler whose weights go elsewhere and come back."""
    model = place.put(network_model())
    sampler = DDIM(8).compiled(model, (16,))
    first = sampler(noise())
    model.cpu()
    model.to(place.device)
    _expect_equal(first, sampler(noise()))
    return first


def _copied(place: Place) -> Tensor:
    model = place.put(network_model())
    return DDIM(8).sample(copy.deepcopy(model), (16,), generator=noise())


def asked() -> dict[str, Ask]:
    """What is asked, by name."""
    asks: dict[str, Ask] = {}
    for kind in SCHEDULES:
        made = partial(lambda kind: gaussian(DiagonalSDE(kind(), PCA(torch.eye(3)))), kind)
        asks[f"DDIM, {kind.__name__}"] = partial(_drawn, made, DDIM(16))
        asks[f"log_prob, {kind.__name__}"] = partial(_density, made, {})
    made = partial(gaussian, plain())
    for name in plugins.available("solvers"):
        solver = plugins.get("solvers", name)
        few = {} if name in ("adaptive", "torchdiffeq") else {"steps": 16}
        asks[f"solver {name}"] = partial(_drawn, made, solver(**few))
        if "eta" in signature(solver).parameters and solver(**few).weak_order is not None:
            asks[f"solver {name}, eta 1"] = partial(_drawn, made, solver(**few, eta=1.0))
    for pair in PAIRS:
        made = partial(lambda pair: gaussian(pair(VP(), Identity((3,)))), pair)
        asks[f"samples, {pair.__name__}"] = partial(_drawn, made, ExponentialMultistep(16))
        asks[f"log_prob, {pair.__name__}"] = partial(_density, made, {"method": DDIM(16)})
    mixture = partial(
        lambda: GaussianMixture(
            plain(),
            torch.ones(2),
            torch.tensor([[-1.0] * 3, [1.0] * 3]),
            0.1 * torch.eye(3).expand(2, 3, 3),
        )
    )
    asks |= {
        "samples of a mixture": partial(_drawn, mixture, ExponentialMultistep(16)),
        "samples of a network": partial(_drawn, network_model, ExponentialMultistep(16)),
        "samples in stages": partial(_drawn, staged, ExponentialMultistep(16)),
        "captured: DDIM": partial(_compiled, DDIM(16)),
        "captured: DDIM, eta 1": partial(_compiled, DDIM(16, eta=1.0)),
        "captured: the default": partial(_compiled, ExponentialMultistep(16)),
        "captured, then moved": _moved,
        "a copy": _copied,
        "log_prob, a network": partial(_density, network_model, {}),
        "log_prob, fixed steps": partial(_density, network_model, {"method": DDIM(16)}),
        "log_prob, in stages": partial(_density, staged, {"trace": Hutchinson(2)}),
        "bound": partial(_bound, network_model),
        "bound, in stages": partial(_bound, staged),
        "loss and gradient": partial(_loss, network_model),
        "loss and gradient, in stages": partial(_loss, staged),
        "loss and gradient, Haar": partial(
            _loss, lambda: network_model(DiagonalSDE(VP(), Haar((1, 8, 8), 2), [1.0, 1.2, 1.5]))
        ),
        "a conditional of a Gaussian": _conditional,
        "CMDE": _multi_speed,
        "guidance": _guided,
        "classifier-free guidance": _classes,
        "the distribution": lambda place: ScoreDistribution(
            place.put(gaussian(plain())), DDIM(16)
        ).log_prob(place.events(8, 3)),
        "default device": _default_device,
        "resumed": _resumed,
        "gradients that are captured": _captured_gradients,
        "from the disk": _from_the_disk,
    }
    return asks


def run(quick: bool = False, device: str = "auto", only: str = "") -> dict[str, Any]:
    """Rows, and how many of them differ.

    Args:
        quick: In single precision only.
        device: What is compared with the CPU.
        only: What is in the names of those that are asked.
    """
    there = devices.device("--set device", device)
    name = torch.cuda.get_device_name(there) if there.type == "cuda" else str(there)
    rows: list[Row] = []
    for dtype in [torch.float32] if quick else [torch.float32, torch.float64]:
        for what, ask in asked().items():
            if only in what:
                rows.append({"name": what, "dtype": str(dtype)[6:], **_compared(ask, there, dtype)})
                print(rows[-1], flush=True)
    for what, options in _trainings().items():
        if only in what:
            rows.append({"name": what, **_tried(options, there)})
            print(rows[-1], flush=True)
    differ = [f"{row['name']}, {row.get('dtype', '')}" for row in rows if not row["same"]]
    return {"device": name, "asked": len(rows), "differ": differ, "rows": rows}


def _trainings() -> dict[str, dict[str, Any]]:
    trainings: dict[str, dict[str, Any]] = {f"training, {p}": {"precision": p} for p in PRECISIONS}
    trainings["training, compiled"] = {"compile": True}
    trainings["training, captured"] = {"capture": True}
    trainings["training, accumulated"] = {"accumulation": 2}
    return trainings


def _compared(ask: Ask, there: torch.device, dtype: torch.dtype) -> Row:
    start = time.perf_counter()
    try:
        wanted, got = ask(Place(torch.device("cpu"), dtype)), ask(Place(there, dtype))
        gap = (got.cpu().double() - wanted.double()).abs()
        scale = float(wanted.abs().max()) if wanted.numel() else 1.0
        off = float(gap.max()) / max(scale, 1e-30) if gap.numel() else 0.0
    except Exception as error:  # whatever it is, the others are asked
        return {"same": False, "error": f"{type(error).__name__}: {error}"[:300]}
    took = round(time.perf_counter() - start, 2)
    return {"same": off < TOLERANCE[dtype], "difference": off, "seconds": took}


def _tried(options: dict[str, Any], there: torch.device) -> Row:
    """Losses with noise of a device's own: as the CPU's, up to what a mean of a batch varies by."""
    try:
        loss = float(_trained(options, Place(there, torch.float32)))
        wanted = float(_trained({}, Place(torch.device("cpu"), torch.float32)))
    except Exception as error:  # whatever it is, the others are asked
        return {"same": False, "error": f"{type(error).__name__}: {error}"[:300]}
    return {"same": abs(loss / wanted - 1) < 0.1, "loss": loss, "on the CPU": wanted}
