"""What a GPU is kept waiting for: updates and samples, beside loops written by hand.

On an accelerator rows are times: medians, of jobs that take turns in one process. Where there is
none, the same code runs on torch's device without values, and rows count what it asks of it
(`scoresde.testing.DeviceCalls`), all that networks ask for included; some jobs, small enough for a
processor, are timed there. Weights and data are random: nothing is downloaded.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import updates
from benchmarks.overhead import Network, bare_ddim
from benchmarks.unets import PlainUNet, parameters, scaled
from benchmarks.updates import Case
from estimators import Denoising, MultiScale
from scoresde import VP, Basis, DiagonalSDE, Haar, Identity, LogLinear, Packed, Solver
from scoresde.app import devices
from scoresde.planning import equal
from scoresde.testing import DeviceCalls
from solvers import DDIM, ExponentialMultistep

Row = dict[str, Any]
Jobs = dict[str, Callable[[], object]]
Device = torch.device

UNET = (64, 128, 256, 256)
"""Widths of 15 million parameters."""
UNIFORM = (72, 144, 216)
STAGES = {
    128: ((40, 80, 120), (40, 80), (40, 80), (48, 96, 144)),
    256: ((56, 104), (48, 88), (40, 80), (32, 64), (48, 96, 144)),
}
"""Coarse first: 7.7 million parameters in all, as the uniform one has."""
TRAINED, SAMPLED = 1.6, 4.0
"""How much wider networks are: 20 and 124 million parameters."""
OVERHEAD = {"small": (256, 8, 64), "large": (256, 3072, 4096)}
"""Batch, dimension and width of networks that cost little."""
STEPS = 20
EACH = 8
"""Steps of every stage; uniform diffusion takes as many in all."""
TOO_SHORT = 3
UPDATES = ("float32", "bfloat16", "bfloat16, captured", "bfloat16, compiled, channels last")
CASES = ((128, 4), (128, 1), (128, 32), (256, 4))
"""Sizes and numbers of samples."""


class Look(Protocol):
    """How jobs are looked at: in time, or by what they ask for."""

    device: torch.device

    def jobs(self, jobs: Jobs) -> dict[str, Row]:
        """Of every job."""

    def updates(self, case: Case) -> dict[str, Row]:
        """Of an update of `Training.fit`, and of one by hand unless the case is none of that."""


@attrs.frozen
class Times:
    """Milliseconds.

    Args:
        device: Where jobs run.
        seconds: For how long each of them takes its turns.
    """

    device: torch.device
    seconds: float

    def jobs(self, jobs: Jobs) -> dict[str, Row]:
        """See `Look`."""
        rows = {name: _tried(partial(_once, job)) for name, job in jobs.items()}  # slower at first
        ready = {name: job for name, job in jobs.items() if "error" not in rows[name]}
        taken: dict[str, list[float]] = {name: [] for name in ready}
        end = time.perf_counter() + self.seconds * len(ready)
        while time.perf_counter() < end or any(len(v) < TOO_SHORT for v in taken.values()):
            for name, job in ready.items():
                start = self._clock()
                job()
                taken[name].append(self._clock() - start)
        return {**rows, **{k: {"ms": 1e3 * statistics.median(v)} for k, v in taken.items()}}

    def updates(self, case: Case) -> dict[str, Row]:
        """See `Look`."""
        if case.estimator is None:
            medians = updates.compare(case, 2 * self.seconds)
            return {name: {"ms": 1e3 * medians[name]} for name in ("fit", "bare")}
        taken: list[float] = []
        start, end = self._clock(), time.perf_counter() + self.seconds

        def between(step: int) -> None:
            nonlocal start
            if step % 4:
                return
            now = self._clock()
            if step > 4:  # what is first is slower
                taken.append((now - start) / 4)
            start = now
            if time.perf_counter() > end and len(taken) >= TOO_SHORT:
                raise StopIteration

        with suppress(StopIteration):
            updates.fit_updates(case, 2**20, between)
        return {"fit": {"ms": 1e3 * statistics.median(taken)}}

    def _clock(self) -> float:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)  # type: ignore[no-untyped-call]
        return time.perf_counter()


@attrs.frozen
class Counts:
    """What is asked of a device, by kind."""

    device: torch.device

    def jobs(self, jobs: Jobs) -> dict[str, Row]:
        """See `Look`; the second time, as the first may look at what is new."""
        return {name: _tried(partial(self._second, job)) for name, job in jobs.items()}

    def updates(self, case: Case) -> dict[str, Row]:
        """See `Look`; means over 32 updates, as some things are done now and then.

        Over four where there is nothing to compare with.
        """
        seen: list[dict[str, int]] = []
        last = 36 if case.estimator is None else 8
        # of losses that were not finite there are none
        with DeviceCalls({float: 0.0}) as calls, suppress(StopIteration):

            def between(step: int) -> None:
                seen.append(calls.summary())
                if step == last:
                    raise StopIteration

            updates.fit_updates(case, 2**20, between)
        fit = {name: (seen[last][name] - seen[4][name]) / (last - 4) for name in seen[4]}
        if case.estimator is not None:
            return {"fit": fit}
        with DeviceCalls():  # in which there are fused optimisers
            bare = updates.bare_update(case)
        return {"fit": fit, "bare": self._second(bare)}

    def _second(self, job: Callable[[], object]) -> Row:
        with DeviceCalls():
            job()
        with DeviceCalls() as calls:
            job()
        return dict(calls.summary())


def run(
    quick: bool = False,
    device: str = "auto",
    json: Path | None = None,
    limit: float = 200.0,
    only: str = "",
) -> dict[str, Any]:
    """Rows, and ratios; ``quick`` leaves out what is compiled, and large images.

    What fails, as for want of memory, is a row that says so and costs no other; a section that
    would begin after ``limit`` seconds is left out. With ``json`` all rows so far are in a file.
    What is in ``only``, words between semicolons, are parts of the names of what is not left out.
    """
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*step.*lr_scheduler.*")
    where = devices.device("--set device", device)
    accelerated = where.type != "cpu"
    look: Look = (
        Times(where, 1.0 if quick else 2.0) if accelerated else Counts(torch.device("meta"))
    )
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else str(look.device)
    print(f"{name}: {'milliseconds' if accelerated else 'what is asked of it'}", flush=True)
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "ratios": {}, "rows": []}
    end = time.perf_counter() + limit
    wanted = only.split(";")
    for section, rows in _sections(look, quick).items():
        if not any(word in section for word in wanted):
            continue
        for row in _guarded(section, rows, end):
            report["rows"].append(row)
            if "ratio" in row:
                report["ratios"][f"{row['section']}, {row['name']}"] = row["ratio"]
            print(_line(row), flush=True)
            if json is not None:
                json.write_text(dumps(report, indent=2) + "\n")
    return report


def _sections(look: Look, quick: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """All of them, by name, those first that say most."""
    counted = look.device.type == "meta"
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "waits": partial(waits, look),
        "overhead": partial(overhead, look),
    }
    for kind in UPDATES[: 1 if counted else 2 if quick else None]:  # meta knows no autocast
        sections[f"update, {kind}"] = partial(by_hand, look, kind)
    sections["stages"] = partial(stages, look)
    if not counted:
        sections["stages, captured"] = partial(stages, look, options={"capture": True})
    for case in CASES[: 1 if counted else 2 if quick else None]:
        sections[f"samples, {case}"] = partial(samples, look, *case)
    if not (counted or quick):
        sections["overhead, compiled"] = partial(fused, look)
        for case in CASES[:2]:
            sections[f"samples, {case}, compiled"] = partial(samples, look, *case, compiled=True)
    if counted:
        torch.set_num_threads(1)
        processor = Times(torch.device("cpu"), 1.0 if quick else 3.0)
        sections["overhead, on the CPU"] = partial(overhead, processor)
        sections["updates, on the CPU"] = partial(on_a_processor, processor)
        sections["stages, on the CPU"] = partial(stages, processor, factor=0.3, batch=2)
    return sections


def _guarded(section: str, rows: Callable[[], Iterator[Row]], end: float) -> Iterator[Row]:
    if time.perf_counter() > end:
        yield {"section": section, "name": "left out", "error": "there was no time left"}
        return
    try:
        yield from rows()
    except Exception as error:  # whatever it is, the others are measured
        yield {"section": section, "name": "failed", "error": f"{type(error).__name__}: {error}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what a section has held is the next one's


def _tried(job: Callable[[], Row]) -> Row:
    """What a job finds, or why there is nothing."""
    try:
        return job()
    except Exception as error:  # whatever it is, the others are measured
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _once(job: Callable[[], object]) -> Row:
    job()
    return {}


def by_hand(look: Look, kind: str) -> Iterator[Row]:
    """An update of `Training.fit` beside one written by hand."""
    x = torch.randn(512, 3, 64, 64)
    dtype = None if kind == "float32" else torch.bfloat16
    options = {"compile": True, "channels_last": True} if "compiled" in kind else {}
    options |= {"capture": True} if "captured" in kind else {}
    case = Case(lambda: PlainUNet((3, 64, 64), UNET), x, 64, look.device, dtype, options)
    yield from _beside("update, U-Net of 15 M, 3x64x64, batch 64", look.updates(case), kind)


def on_a_processor(look: Times) -> Iterator[Row]:
    """The same of networks that are small enough."""
    for name, case in updates.cases().items():
        yield from _beside(f"update, {name}", look.updates(case), "on the CPU")


def stages(
    look: Look, factor: float = TRAINED, batch: int = 64, options: dict[str, Any] | None = None
) -> Iterator[Row]:
    """An update of multi-scale diffusion beside uniform ones, of as many parameters."""
    device, x = look.device, torch.randn(128, 3, 128, 128)
    makers: dict[str, Callable[[], Any]] = {
        "uniform": lambda: uniform(128, factor, device),
        "uniform, packed": lambda: uniform(128, factor, device, packed=True),
        "multi-scale": lambda: multiscale(128, factor, device)[0],
    }
    sizes = {name: _size(make()) for name, make in makers.items()}
    dtype = torch.bfloat16 if device.type not in ("cpu", "meta") else None

    def measured(name: str) -> Row:
        case = Case(torch.nn.Identity, x, batch, device, dtype, options or {}, makers[name])
        return {**look.updates(case)["fit"], **sizes[name]}

    costs = {name: _tried(partial(measured, name)) for name in makers}
    section = f"update, {sizes['uniform']['M']:.2g} M, 3x128x128, batch {batch}, {device.type}"
    section = ", ".join([section, *(options or {})])
    yield from _compared(section, costs, "uniform")


def samples(look: Look, size: int, batch: int, compiled: bool = False) -> Iterator[Row]:
    """Sampling with as many evaluations of as many parameters."""
    one = uniform(size, SAMPLED, look.device)
    several, solver = multiscale(size, SAMPLED, look.device)
    if compiled:
        for model in (one, *several.stages):
            model.network.compile()  # type: ignore[operator, union-attr]
    evaluations = EACH * len(STAGES[size])
    # one takes as long as any other
    few = evaluations if look.device.type == "meta" else evaluations // 4
    walk = ExponentialMultistep(few, order=2)
    jobs = {
        f"{name}, {way}": job
        for name, pair in {"uniform": (walk, one), "multi-scale": (solver, several)}.items()
        for way, job in _ways(*pair, batch).items()
    }
    costs = look.jobs(jobs)
    for name, row in costs.items():
        if name.startswith("uniform") and "error" not in row:
            costs[name] = {k: v * evaluations / few for k, v in row.items()}
    section = f"samples, {round(parameters(one) / 1e6)} M, 3x{size}x{size}, {batch} of them"
    section += ", compiled networks" * compiled
    for way in ("eager", "prepared"):
        parts = {name: costs[f"{name}, {way}"] for name in ("uniform", "multi-scale")}
        yield from _compared(f"{section}, {way}", parts, "uniform", over=True)


def overhead(look: Look) -> Iterator[Row]:
    """A walk of 20 steps beside a loop by hand."""
    for name, (batch, dim, width) in OVERHEAD.items():
        if look.device.type in ("cpu", "meta") and name == "large":  # too large, and the same
            continue
        sde = DiagonalSDE(VP(), Identity((dim,)))
        network, ts = Network(dim, width).to(look.device), DDIM(STEPS).times(sde)

        def start(shape: tuple[int, int] = (batch, dim)) -> Tensor:
            return torch.randn(shape, device=look.device)

        jobs: Jobs = {"by hand": bare_ddim(network, sde, ts, start)}
        model = Denoising(sde, network, parametrization="noise").to(look.device)
        for solver in (DDIM(STEPS), ExponentialMultistep(STEPS)):
            ways = _ways(solver, model, batch)
            jobs |= {f"{type(solver).__name__}, {way}": job for way, job in ways.items()}
        section = f"{STEPS} steps, {name} network, on {look.device.type}"
        yield from _compared(section, look.jobs(jobs), "by hand")


def fused(look: Look) -> Iterator[Row]:
    """The same of a small network, the whole walk compiled."""
    batch, dim, width = OVERHEAD["small"]
    sde = DiagonalSDE(VP(), Identity((dim,)))
    network, ts = Network(dim, width).to(look.device), DDIM(STEPS).times(sde)
    model = Denoising(sde, network, parametrization="noise").to(look.device)
    start = partial(torch.randn, batch, dim, device=look.device)
    jobs: Jobs = {"by hand": bare_ddim(network, sde, ts, start)}
    for solver in (DDIM(STEPS), ExponentialMultistep(STEPS)):
        name = f"{type(solver).__name__}, prepared and compiled"
        jobs[name] = _prepared(solver, model, batch, compile=True)
    section = f"{STEPS} steps, small network, compiled, on {look.device.type}"
    yield from _compared(section, look.jobs(jobs), "by hand")


def waits(look: Look) -> Iterator[Row]:
    """What a loss and samples ask of a device, counted there whatever it is."""
    counts = Counts(look.device)
    basis = Haar((3, 64, 64), 3)
    sde = DiagonalSDE(LogLinear(), basis, [1.0, 1.3, 1.7, 2.2], [4.0, 2.0, 1.0, 0.5])
    banded = Denoising(sde, PlainUNet((3, 64, 64), (8,))).to(look.device)
    staged, solver = multiscale(128, 0.2, look.device)
    events = torch.randn(64, 3, 64, 64, device=look.device)
    large = torch.randn(8, 3, 128, 128, device=look.device)
    jobs: Jobs = {
        "loss, a speed per band": lambda: banded.loss(events),
        "loss, multi-scale": lambda: staged.loss(large),
        "20 steps of DDIM": _sampled(DDIM(STEPS), banded),
        "40 steps of DDIM": _sampled(DDIM(2 * STEPS), banded),
        "20 steps of the default": _sampled(ExponentialMultistep(STEPS), banded),
        "20 steps of the default, eta 1": _sampled(ExponentialMultistep(STEPS, eta=1.0), banded),
        "multi-scale, 32 steps": _sampled(solver, staged),
    }
    for name, row in counts.jobs(jobs).items():
        extra: Row = {}
        if look.device.type == "cuda" and "error" not in row:
            extra = _tried(partial(_synchronisations, jobs[name]))
        yield {"section": "asked of the device", "name": name, **row, **extra}


def uniform(size: int, factor: float, device: Device, packed: bool = False) -> Denoising:
    """A model whose network sees everything at all times."""
    basis = Haar((3, size, size), len(STAGES[size]) - 1)
    seen: Basis = Packed(basis) if packed else basis
    with torch.device(device):
        network = PlainUNet(seen.event_shape, scaled(UNIFORM, factor))
    return Denoising(DiagonalSDE(LogLinear(), basis), network, network_basis=seen).to(device)


def multiscale(size: int, factor: float, device: Device) -> tuple[MultiScale, Solver]:
    """A model with a network for every stage, and a solver with as many steps in each."""
    levels = len(STAGES[size]) - 1
    basis = Haar((3, size, size), levels)
    plan = equal(basis, LogLinear(), EACH)
    seen = [basis.coarse(levels), *(Packed(basis.coarse(k)) for k in reversed(range(levels)))]
    with torch.device(device):
        networks = [
            PlainUNet(view.event_shape, scaled(widths, factor))
            for view, widths in zip(seen, STAGES[size], strict=True)
        ]
    solver = ExponentialMultistep(len(plan.times) - 1, order=2, grid=plan.grid)
    return MultiScale(plan.sde, networks, network_bases=seen).to(device), solver


def _ways(solver: Solver, model: Any, batch: int) -> Jobs:
    """Samples, and samples of a walk that is prepared once: on a GPU it is captured."""
    return {"eager": _sampled(solver, model, batch), "prepared": _prepared(solver, model, batch)}


def _prepared(
    solver: Solver, model: Any, batch: int, compile: bool = False
) -> Callable[[], object]:
    """A sampler that is made when it is first asked: capturing may fail."""
    made: list[Callable[[], object]] = []

    def sample() -> object:
        made[:] = made or [solver.compiled(model, (batch,), compile=compile)]
        return made[0]()

    return sample


def _sampled(solver: Solver, model: Any, batch: int = 4) -> Callable[[], object]:
    return lambda: solver.sample(model, (batch,))


def _synchronisations(job: Callable[[], object]) -> Row:
    """How often CUDA says that a job has waited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            job()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [str(each.message) for each in caught]
    # torch says once that this way of looking is a prototype
    return {"synchronisations": sum("synchroniz" in s and "prototype" not in s for s in said)}


def _size(model: Any) -> Row:
    """Millions of parameters, and billions of multiplications of a loss of one event."""
    with FlopCounterMode(display=False) as counter, DeviceCalls(), torch.no_grad():
        model.to("meta").loss(torch.empty(1, *model.sde.basis.event_shape, device="meta"))
    return {"M": parameters(model) / 1e6, "GMACs": counter.get_total_flops() / 2e9}


def _cost(row: Row) -> float:
    return float(row["ms"] if "ms" in row else row["operations"])


def _compared(section: str, costs: dict[str, Row], base: str, over: bool = False) -> Iterator[Row]:
    """Rows, and their ratios to one of them: theirs over its, or its ``over`` theirs."""
    for name, row in costs.items():
        ratio = {}
        if "error" not in row and "error" not in costs[base]:
            times = _cost(row) / _cost(costs[base])
            ratio = {"ratio": 1 / times if over else times}
        yield {"section": section, "name": name, **row, **ratio}


def _beside(section: str, costs: dict[str, Row], name: str) -> Iterator[Row]:
    names = {"bare": f"by hand, {name.removesuffix(', captured')}", "fit": f"Training.fit, {name}"}
    yield from _compared(section, {names[k]: costs[k] for k in names}, names["bare"])


def _line(row: Row) -> str:
    if "error" in row:
        return f"{row['section']}: {row['name']}: {row['error']}"
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    said = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if v or k in ("reads", "copies"))
    return f"{row['section']}: {row['name']:34} {said}"
