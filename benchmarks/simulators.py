"""Posteriors of simulators: conditional estimators beside the NPE and NPSE of `sbi`.

Ten observations of each task (`benchmarks.posteriors`), 10,000 simulations that all methods
share, C2ST against draws of the true posterior, expected coverage on fresh simulations. All of
ours have one network, one set of settings and the same coordinates for every task:

- observations are standardised, and parameters are what is left of them after a linear
  regression on the observation, standardised: an affine map of the pair;
- samples outside the prior's support are drawn again, as `sbi` does, a hundred times.

Seconds are processor time of one thread, so that a busy machine does not favour a method. The
peers run where `sbi` is installed; with ``quick``, CDE alone, on three observations.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.posteriors import TASKS, Task, c2st, coverage, find
from estimators import Denoising, ResidualMLP
from scoresde import VE, DiagonalSDE, Joint, LogLinear, Redraw, Shrinking, Solver
from scoresde.data import Dataset
from scoresde.training import Training
from solvers import ExponentialMultistep

METHODS = ("CDE", "CDiffE", "CMDE", "VS-CMDE", "any conditional")
PEERS = ("NPE", "NPSE")
TRAINING = Training(steps=1800, batch_size=256, lr=3e-3, weight_decay=0.3)
WIDTH, DEPTH = 128, 4
SIGMA, SIGMA_Y = (0.005, 20.0), 0.1
LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])

Sampler = Callable[[Tensor, int], Tensor]
"""Observations ``(batch, data)`` and a count to draws ``(batch, count, parameters)``."""


def run(
    quick: bool = False,
    data: Path | None = None,
    tasks: str = "two_moons,gaussian_linear,gaussian_mixture",
    draws: int = 5000,
) -> dict[str, Any]:
    """Rows; ``quick`` trains a fifth as long and compares fewer samples of fewer observations.

    Args:
        quick: See above.
        data: Folder of the wheel with the observations, downloaded if it is not there.
        tasks: Names in `benchmarks.posteriors.TASKS`, separated by commas.
        draws: Samples of every posterior.
    """
    torch.set_num_threads(1)
    wheel = find(data)
    training = attrs.evolve(TRAINING, steps=TRAINING.steps // 5) if quick else TRAINING
    count, shown, checked = (1000, 3, 100) if quick else (draws, 10, 1000)
    methods = METHODS[:1] if quick else METHODS
    if not quick and importlib.util.find_spec("sbi"):
        methods += PEERS
    rows: list[dict[str, Any]] = []
    for task in (TASKS[name] for name in tasks.split(",")):
        theta, x = task.draw(10_000, seed=0)
        observations = task.observations(wheel)[:shown]
        reference = torch.stack([o.reference[:count] for o in observations])
        for method in methods:
            torch.manual_seed(0)
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
                "c2st_mean": round(float(scores.mean()), 4),
                "c2st_std": round(float(scores.std()), 4),
                "seconds_train": round(trained - start, 1),
                "seconds_sample": round(sampled - trained, 1),
            }
            if method != "NPSE":  # a simulation of thousands takes it hours
                truth, seen = task.draw(checked, seed=1)
                found = coverage(sampler(seen, 100), truth, LEVELS)
                row["coverage"] = [round(v, 3) for v in found.tolist()]
            rows.append(row)
            print(row, flush=True)
    return {"levels": LEVELS.tolist(), "rows": rows}


@attrs.frozen(eq=False)
class _Coordinates:
    """Parameters without what a linear regression on the observation says of them."""

    seen_mean: Tensor
    seen_std: Tensor
    mean: Tensor
    slope: Tensor
    std: Tensor

    @classmethod
    def fitted(cls, theta: Tensor, x: Tensor) -> _Coordinates:
        seen_mean, seen_std = x.mean(0), x.std(0).clamp(min=1e-6)
        mean, seen = theta.mean(0), (x - seen_mean) / seen_std
        slope = torch.linalg.lstsq(seen, theta - mean).solution
        return cls(seen_mean, seen_std, mean, slope, (theta - mean - seen @ slope).std(0))

    def observation(self, x: Tensor) -> Tensor:
        return (x - self.seen_mean) / self.seen_std

    def residual(self, theta: Tensor, x: Tensor) -> Tensor:
        return (theta - self.mean - self.observation(x) @ self.slope) / self.std

    def parameters(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual * self.std + self.mean + self.observation(x) @ self.slope


def _ours(task: Task, method: str, theta: Tensor, x: Tensor, training: Training) -> Sampler:
    """Trained."""
    to = _Coordinates.fitted(theta, x)
    joint = Joint(observation=tuple(x.shape[1:]), parameter=tuple(theta.shape[1:]))
    pairs = joint.join(observation=to.observation(x), parameter=to.residual(theta, x))
    held, hook = method == "any conditional", None
    solver: Solver = ExponentialMultistep(32)
    if method in ("CDE", "any conditional"):
        speed = 0.0 if method == "CDE" else 1.0
        sde = DiagonalSDE(LogLinear(), joint, joint.spread(observation=speed, parameter=1.0))
    else:
        largest = SIGMA_Y if method == "CMDE" else SIGMA[1]
        schedule = VE(SIGMA[0], joint.spread(observation=largest, parameter=SIGMA[1]))
        sde = DiagonalSDE(schedule, joint)
        solver = ExponentialMultistep(32, corrector=Redraw())
        if method == "VS-CMDE":
            hook = Shrinking(sde, "observation", SIGMA[1], SIGMA_Y, training.steps // 2)
    network = ResidualMLP((joint.dim,), WIDTH, DEPTH, levels=joint.dim if held else 1)
    model = Denoising(sde, network, observe="blocks" if held else None)
    training.fit(
        model,
        Dataset(task.name, pairs[500:]),
        Dataset(task.name, pairs[:500]),
        progress=False,
        on_step=hook,
    )

    @torch.no_grad()
    def sample(seen: Tensor, count: int) -> Tensor:
        """Draws anew those outside the support."""
        rows = seen.repeat_interleave(count, 0)
        found, todo = torch.empty(len(rows), theta.shape[1]), torch.arange(len(rows))
        generator = torch.Generator().manual_seed(0)
        for _ in range(100):
            if not len(todo):
                break
            for part in todo.split(20_000):
                known = model.condition(held=held, observation=to.observation(rows[part]))
                drawn = solver.sample(known, (len(part),), generator=generator)
                found[part] = to.parameters(drawn, rows[part])
            todo = todo[~task.prior.support.check(found[todo])]
        if len(todo):
            print(f"{len(todo)} of {len(rows)} draws stay outside the prior's support", flush=True)
        return found.reshape(len(seen), count, -1)

    return sample


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

    def sample(seen: Tensor, count: int) -> Tensor:
        draws = [posterior.sample((count,), x=o[None], show_progress_bars=False) for o in seen]
        return torch.stack(draws).detach()

    return sample
