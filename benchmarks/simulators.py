"""Posteriors of simulators: conditional estimators beside the NPE and NPSE of `sbi`.

Ten observations of each task (`benchmarks.posteriors`), 10,000 simulations that all methods
share, C2ST against draws of the true posterior, expected coverage on fresh simulations. All of
ours have one network and one set of settings for every task, those of
`estimators.posterior_fit`, which CDE is; samples outside the prior's support are drawn again, as
`sbi` does.

Seconds are processor time of one thread, so that a busy machine does not favour a method. The
peers run where `sbi` is installed; with ``quick``, CDE alone, on three observations.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.posteriors import Task, c2st, coverage, find
from benchmarks.posteriors import tasks as known_tasks
from estimators import Denoising, ResidualMLP, Truncated
from estimators.posterior_fit import DEPTH, WIDTH, default_training, fit_posterior
from scoresde import VE, DiagonalSDE, LogLinear, Solver
from scoresde.conditioning import ResampleObserved, slowed
from scoresde.data import Dataset
from scoresde.inference import Coordinates, Posterior
from scoresde.training import Training
from solvers import ExponentialMultistep

METHODS = ("CDE", "CDiffE", "CMDE", "VS-CMDE", "any conditional")
PEERS = ("NPE", "FMPE", "NPSE")
SIGMA, SIGMA_Y = (0.005, 20.0), 0.1
LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])

Sampler = Callable[[Tensor, int], Tensor]
"""Observations ``(batch, data)`` and a count to draws ``(batch, count, parameters)``."""


def run(
    quick: bool = False,
    data: Path | None = None,
    tasks: str = "two_moons,gaussian_linear,gaussian_mixture",
    draws: int = 5000,
    steps: int | None = None,
    simulations: int = 10_000,
    seed: int = 0,
    methods: str = "",
) -> dict[str, Any]:
    """Rows; ``quick`` trains a fifth as long and compares fewer samples of fewer observations.

    Args:
        quick: See above.
        data: Folder of the wheel with the observations, downloaded if it is not there.
        tasks: Names in `benchmarks.posteriors.tasks`, separated by commas.
        draws: Samples of every posterior.
        steps: Updates of ours; by default those of `estimators.posterior_fit`.
        simulations: That all methods share.
        seed: Of simulations, training and samples.
        methods: Of `METHODS` and `PEERS`, separated by commas; all that run if empty.
    """
    torch.set_num_threads(1)
    wheel = find(data)
    training = default_training(simulations)
    steps = steps or training.steps
    training = attrs.evolve(training, steps=steps // 5 if quick else steps)
    count, pictured, checked = (1000, 3, 100) if quick else (draws, 10, 1000)
    chosen: tuple[str, ...] = METHODS[:1] if quick else METHODS
    if not quick and importlib.util.find_spec("sbi"):
        chosen += PEERS
    chosen = tuple(methods.split(",")) if methods else chosen
    known = known_tasks(wheel)
    rows: list[dict[str, Any]] = []
    for task in (known[name] for name in tasks.split(",")):
        theta, x = task.draw(simulations, seed)
        observations = task.observations(wheel)[:pictured]
        reference = torch.stack([o.reference[:count] for o in observations])
        for method in chosen:
            torch.manual_seed(seed)
            start = time.process_time()
            if method in PEERS:
                sampler = _peer(task, method, theta, x)
            else:
                sampler = _ours(task, method, theta, x, training)
            trained = time.process_time()
            samples = sampler(torch.stack([o.x for o in observations]), count)
            sampled = time.process_time()
            scores = c2st(reference, samples)
            row = {
                "task": task.name,
                "method": method,
                "simulations": simulations,
                "seed": seed,
                "c2st_mean": round(float(scores.mean()), 4),
                "c2st_std": round(float(scores.std()), 4),
                "c2st_worst": round(float(scores.max()), 4),
                "seconds_train": round(trained - start, 1),
                "seconds_sample": round(sampled - trained, 1),
            }
            if method not in ("NPSE", "FMPE"):  # a simulation of thousands takes it hours
                truth, observed = task.draw(checked, seed + 1000)
                covered = coverage(sampler(observed, 100), truth, LEVELS)
                row["coverage"] = [round(v, 3) for v in covered.tolist()]
            rows.append(row)
            print(row, flush=True)
    return {"levels": LEVELS.tolist(), "rows": rows}


def _ours(task: Task, method: str, theta: Tensor, x: Tensor, training: Training) -> Sampler:
    """Trained."""
    if method == "CDE":
        posterior = fit_posterior(task.prior, theta, x, training=training, progress=False)
    else:
        posterior = _joint(task, method, theta, x, training)

    def sample(observed: Tensor, count: int) -> Tensor:
        torch.manual_seed(0)
        some = observed.split(max(1, 20_000 // count))
        return torch.cat([posterior(part).sample((count,)).movedim(0, 1) for part in some])

    return sample


def _joint(task: Task, method: str, theta: Tensor, x: Tensor, training: Training) -> Posterior:
    """Trained where observations diffuse, or are shown clean at random."""
    to = Coordinates.fit(task.prior, theta, x)
    joint, clean = to.joint, method == "any conditional"
    solver: Solver = ExponentialMultistep(32)
    if clean:
        sde = DiagonalSDE(LogLinear(), joint)
    else:
        noise, updates = (math.inf if method == "CDiffE" else SIGMA_Y), None
        if method == "VS-CMDE":
            updates = training.steps // 2
        sde = slowed(DiagonalSDE(VE(*SIGMA), joint), ["observation"], noise, updates)
        solver = ExponentialMultistep(32, corrector=ResampleObserved())
    network = ResidualMLP((joint.dim,), WIDTH, DEPTH, noise_levels=joint.dim if clean else 1)
    known = Truncated.from_coordinates(to, sde)
    model = Denoising(sde, network, observe="blocks" if clean else None, baseline=known)
    pairs = to.joint_events(theta, x)
    training.fit(
        model,
        Dataset(task.name, pairs[len(pairs) // 20 :]),
        Dataset(task.name, pairs[: len(pairs) // 20]),
        progress=False,
    )
    return Posterior(model, to, solver, clean)


def _peer(task: Task, method: str, theta: Tensor, x: Tensor) -> Sampler:
    """Trained, with its defaults."""
    from sbi import inference

    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it leaves a folder of logs behind
        try:
            trainer = getattr(inference, method)(task.prior, show_progress_bars=False)
            posterior = trainer.build_posterior(trainer.append_simulations(theta, x).train())
        finally:
            os.chdir(home)

    def sample(observed: Tensor, count: int) -> Tensor:
        draws = [posterior.sample((count,), x=o[None], show_progress_bars=False) for o in observed]
        return torch.stack(draws).detach()

    return sample
