"""Trainings that are killed at random moments, by a signal that nothing can catch, and go on.

Every one of them must end with the files of a training that was left alone, byte for byte but for
the seconds it took. What else can happen to them is in `benchmarks.accidents`.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import accidents
from estimators import Denoising, ResidualMLP
from scoresde import DCT, Cosine, DiagonalSDE
from scoresde.data import Dataset, digits, split
from scoresde.training import Training, checkpoint

PRECISIONS = ("float32", "bfloat16", "float16")


UPDATES = 100


def train(folder: Path, precision: str, data: Dataset, on_step: Callable[[int], None]) -> None:
    """A model with dropout, written after every update."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), width=64, depth=2, dropout=0.1)
    model = Denoising(DiagonalSDE(Cosine(), DCT((1, 8, 8))), network)
    training = Training(steps=UPDATES, batch_size=32, precision=precision, patience=5)
    options = {"on_step": on_step, "folder": folder, "save_every": 1}
    training.fit(model, *split(data, 0.9), progress=False, **options)


def run(quick: bool = False) -> dict[str, Any]:
    """A row for every training that was killed."""
    chance, data, rows = random.Random(0), digits(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = {p: _whole(folder / p, p, data) for p in PRECISIONS}
        for i in range(8 if quick else 30):
            precision = PRECISIONS[i % len(PRECISIONS)]
            wanted, seconds = whole[precision]
            update, delay = chance.randrange(UPDATES), chance.uniform(0, seconds / UPDATES)
            outcome = _killed(folder / str(i), precision, data, update, delay, wanted)
            rows.append({"precision": precision, "update": update, "delay_s": delay, **outcome})
            print(json.dumps(rows[-1]), flush=True)
        others = accidents.run(folder / "accidents", quick)
    return {
        "killed": sum(row["killed"] for row in rows),
        "while_writing": sum(row["leftovers"] > 0 for row in rows),
        "the_same": sum(row["the_same"] for row in rows),
        "accidents": others,
        "rows": rows,
    }


def _start(folder: Path, precision: str, data: Dataset) -> tuple[Any, Any]:
    """A process, and where the number of updates that it has done can be read."""
    # a fork has imported everything: what takes time is the training
    context = multiprocessing.get_context("fork")
    steps, sender = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(folder, precision, data, sender.send))
    process.start()
    return process, steps


def _whole(folder: Path, precision: str, data: Dataset) -> tuple[dict[str, Any], float]:
    """What is written in the end, and how long it takes."""
    start = time.perf_counter()
    process, _ = _start(folder, precision, data)
    process.join()
    assert process.exitcode == 0
    return _content(folder), time.perf_counter() - start


def _killed(
    folder: Path, precision: str, data: Dataset, update: int, delay: float, wanted: dict[str, Any]
) -> dict[str, Any]:
    """What becomes of a training that is killed some time after an update has begun."""
    process, steps = _start(folder, precision, data)
    while steps.recv() < update:
        pass
    time.sleep(delay)
    process.kill()
    process.join()
    killed = process.exitcode != 0
    leftovers = len(list(folder.glob(".*.tmp")))
    saved = checkpoint.load(folder)[1]["step"] if (folder / "config.json").exists() else 0
    process, _ = _start(folder, precision, data)
    process.join()
    same = process.exitcode == 0 and _content(folder) == wanted
    return {"saved": saved, "killed": killed, "leftovers": leftovers, "the_same": same}


def _content(folder: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(files.pop("config.json"))
    # the one of them is another every time, and the digest of all depends on it
    del manifest["config"]["seconds"], manifest["own_sha256"]
    return {"manifest": manifest, **files}
