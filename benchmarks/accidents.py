"""What else happens to trainings: other settings or data, another trainer, a full disk, threads.

Every run is interrupted by SIGKILL first. Going on must end with the weights of a run that was left
alone, or be refused by a message that names what is in the way, with all files as they were.
"""

from __future__ import annotations

import copy
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoresde.app.model import Model
from scoresde.data import digits
from scoresde.training import checkpoint
from scoresde.training.lock import FolderLocked

Settings = dict[str, Any]

EDITS: dict[str, Any] = {
    "data.held_out": 0.3,
    "data.seed": 1,
    "sde.schedule.name": "vp",
    "sde.schedule.eps": 2e-3,
    "sde.basis": "haar",
    "sde.speeds": 1.5,
    "sde.scale": 0.5,
    "estimator.parametrization": "noise",
    "estimator.weighting": "noise",
    "estimator.times": "uniform_time",
    "estimator.data_std": 0.7,
    "estimator.network.width": 24,
    "estimator.network.depth": 2,
    "estimator.network.dropout": 0.0,
    "training.seed": 1,
    "training.steps": 200,
    "training.batch_size": 32,
    "training.lr": 3e-3,
    "training.warmup": 0.2,
    "training.weight_decay": 0.0,
    "training.clip": 2.0,
    "training.ema": 0.9,
    "training.measurements": 5,
    "training.precision": "bfloat16",
    "training.patience": 3,
}
"""Keys of a configuration, and what they become between two parts of a run."""


def settings(source: Path) -> Settings:
    """A small model with dropout, written every ten updates."""
    network = {"name": "residual-mlp", "width": 16, "depth": 1, "dropout": 0.1}
    return {
        "data": {"source": str(source), "held_out": 0.1, "seed": 0},
        "sde": {"name": "diagonal", "schedule": {"name": "cosine"}, "basis": "identity"},
        "estimator": {"name": "denoising", "network": network},
        "solver": {"name": "ddim", "steps": 4},
        "training": {"steps": 300, "batch_size": 64, "save_every": 10, "seed": 0},
    }


def edited(config: Settings, key: str, value: Any) -> Settings:
    """Settings of which one is another."""
    new = copy.deepcopy(config)
    *path, last = key.split(".")
    place = new
    for name in path:
        place = place[name]
    place[last] = value
    return new


def run(folder: Path, quick: bool = False) -> dict[str, Any]:
    """How many accidents of every kind there were, and how many were lost."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    source, other = folder / "data.npy", folder / "other.npy"
    values = digits().values.float().numpy() / 8 - 1
    np.save(source, values)
    values[1000, 0, 3, 3] += 1e-3
    np.save(other, values)
    config = settings(source)
    uninterrupted = _weights(_trained(config, folder / "whole"))
    cut = folder / "cut"
    _killed(config, cut)

    def resumed(new: Settings, keep: Path | None = None) -> str:
        """What comes of going on: the same weights, what was said, or what is wrong."""
        place = folder / "again" if keep is None else keep
        shutil.copytree(cut, place, dirs_exist_ok=True)
        before = _files(place)
        try:
            outcomes = _weights(_trained(new, place))
        except ValueError as error:
            return str(error) if _files(place) == before else "files have changed"
        finally:
            if keep is None:
                shutil.rmtree(place)
        return "the same" if _equal(outcomes, uninterrupted) else "other weights"

    keys = [*EDITS][:: 5 if quick else 1]
    messages = {key: resumed(edited(config, key, EDITS[key])) for key in keys}
    messages["data.source"] = resumed(edited(config, "data.source", str(other)))
    for key, text in messages.items():
        print(f"{key}: {text}", flush=True)
    longer = _trained(
        edited(config, "training.steps", 330), shutil.copytree(cut, folder / "longer")
    )
    return {
        "edits": _named(messages),
        "unedited": _count(["the same"], [resumed(config)]),
        "extended": _count([330], [longer.history.steps[-1] if longer.history else None]),
        "two_trainers": _two(config, folder / "two", uninterrupted, 2 if quick else 10),
        "full_disk": _full(resumed, config, cut, folder / "full", 2 if quick else 20),
        "threads": _threads(folder / "whole", uninterrupted, 24 if quick else 120),
    }


def _trained(config: Settings, folder: Path) -> Model:
    model = Model.train(config, folder=folder, progress=False)
    model.save(folder)
    return model


def _train(config: Settings, folder: Path) -> None:
    Model.train(config, folder=folder, progress=False)


def _weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.estimator.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def _count(accepted: list[Any], outcomes: list[Any]) -> dict[str, int]:
    """Tries, and those that were lost."""
    return {"tries": len(outcomes), "lost": sum(value not in accepted for value in outcomes)}


def _named(messages: dict[str, str]) -> dict[str, int]:
    """An edit is lost if what was said of it does not have its name."""
    names = {key: key.split(".")[-2 if key.endswith(".name") else -1] for key in messages}
    names["data.source"] = "data"
    lost = [key for key, text in messages.items() if names[key] not in text]
    return {"tries": len(messages), "lost": len(lost)}


def _start(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def _killed(config: Settings, folder: Path) -> None:
    process = _start(_train, config, folder)
    while not (folder / "config.json").exists() or checkpoint.load(folder)[1]["step"] < 50:
        time.sleep(0.02)
    process.kill()
    process.join()


def _two(config: Settings, folder: Path, uninterrupted: Any, count: int) -> dict[str, int]:
    """A second trainer hears who has the folder, and the first one does not hear of it."""
    outcomes = []
    for i in range(count):
        place = folder / str(i)
        process = _start(_train, config, place)
        while not (place / "config.json").exists():
            time.sleep(0.02)
        try:
            _train(config, place)
            refused = False
        except FolderLocked as error:
            refused = str(process.pid) in str(error)
        process.join()
        outcomes.append(
            refused
            and process.exitcode == 0
            and _equal(_weights(_trained(config, place)), uninterrupted)
        )
    return _count([True], outcomes)


def _full(
    resumed: Callable[..., str], config: Settings, cut: Path, folder: Path, count: int
) -> dict[str, int]:
    """A disk on which files of some size only have room; then one with room for all."""
    chance, outcomes = random.Random(0), []
    size = max(path.stat().st_size for path in cut.iterdir())
    for i in range(count):
        place, room = folder / str(i), chance.randrange(size)
        shutil.copytree(cut, place)
        before = _files(place)
        process = _start(_cramped, config, place, room)
        process.join()
        left = {name: data for name, data in _files(place).items() if not name.endswith(".tmp")}
        unchanged = process.exitcode != 0 and left == before
        outcomes.append(unchanged and resumed(config, place) == "the same")
    return _count([True], outcomes)


def _cramped(config: Settings, folder: Path, room: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        _train(config, folder)
    except OSError as error:
        raise SystemExit(1) from error


def _threads(folder: Path, uninterrupted: Any, count: int) -> dict[str, int]:
    """Loads of one model by eight threads at a time."""

    def load(_: int) -> bool:
        try:
            return _equal(_weights(Model.load(folder)), uninterrupted)
        except Exception:
            return False

    with ThreadPoolExecutor(8) as pool:
        return _count([True], list(pool.map(load, range(count))))
