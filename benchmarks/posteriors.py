"""Posterior inference: tasks with reference posteriors, and how far samples are from them.

The tasks are those of Lueckmann et al. 2021, *Benchmarking Simulation-Based Inference*
(arXiv 2101.04653, appendix T): priors and simulators are written here; ten observations of each,
their true parameters and 10,000 draws of each posterior are read from the wheel of `sbibm`.
"""

from __future__ import annotations

import bz2
import io
import itertools
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    Uniform,
)
from torch.nn.functional import binary_cross_entropy_with_logits, conv1d
from torchdiffeq import odeint

WHEEL = "sbibm==1.1.0"


@attrs.frozen
class Observation:
    """One observation of a task.

    Attributes:
        x: What was observed, ``(data,)``.
        truth: The parameters it was simulated with, ``(parameters,)``.
        reference: Draws of the posterior, ``(10000, parameters)``.
    """

    x: Tensor
    truth: Tensor
    reference: Tensor


@attrs.frozen
class Task:
    """A prior and a simulator.

    Args:
        name: As in the wheel.
        prior: Of the parameters.
        simulate: Parameters ``(batch, parameters)`` to data ``(batch, data)``; random numbers are
            those of torch's global generator.
    """

    name: str
    prior: Distribution
    simulate: Callable[[Tensor], Tensor]

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Parameters and data of simulations."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theta = self.prior.sample((count,))
            return theta, self.simulate(theta)

    def observations(self, wheel: Path) -> list[Observation]:
        """All ten of them."""
        folder = f"sbibm/tasks/{self.name}/files/num_observation_"
        with zipfile.ZipFile(wheel) as archive:

            def read(number: int, name: str) -> Tensor:
                raw = archive.read(f"{folder}{number}/{name}")
                text = bz2.decompress(raw) if name.endswith(".bz2") else raw
                table = np.loadtxt(io.BytesIO(text), np.float32, delimiter=",", skiprows=1, ndmin=2)
                return torch.from_numpy(table)

            return [
                Observation(
                    read(number, "observation.csv")[0],
                    read(number, "true_parameters.csv")[0],
                    read(number, "reference_posterior_samples.csv.bz2"),
                )
                for number in range(1, 11)
            ]


def find(folder: Path | None = None) -> Path:
    """The wheel with the observations, downloaded by pip if it is not there yet.

    Args:
        folder: Where it is, or is put; a temporary folder if None.

    Raises:
        subprocess.CalledProcessError: If pip cannot download it.
    """
    folder = folder or Path(tempfile.gettempdir()) / "scoresde-benchmarks"
    pattern = f"{WHEEL.replace('==', '-')}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", str(folder)]
        subprocess.run(pip, check=True)
    return next(folder.glob(pattern))


def _box(bound: float, dim: int) -> Distribution:
    return Independent(Uniform(torch.full((dim,), -bound), torch.full((dim,), bound)), 1)


def _two_moons(theta: Tensor) -> Tensor:
    """A crescent, its place the absolute value of one combination of the parameters (T.8)."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)
    a, b = theta.unbind(-1)
    return crescent + torch.stack([-(a + b).abs(), b - a], -1) / math.sqrt(2)


def _gaussian_linear(theta: Tensor) -> Tensor:
    """``theta`` and noise of variance .1 (T.1)."""
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def _gaussian_mixture(theta: Tensor) -> Tensor:
    """``theta`` and noise, of standard deviation 1 or .1 with equal probabilities (T.7)."""
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


def _slcp(theta: Tensor) -> Tensor:
    """Four points of a Gaussian whose mean, scales and correlation the parameters are (T.3)."""
    mean, first, second = theta[:, None, :2], theta[:, 2:3] ** 2, theta[:, 3:4] ** 2
    noise, correlation = torch.randn(len(theta), 4, 2), theta[:, 4:].tanh()
    tilted = correlation * noise[..., 0] + (1 - correlation**2).sqrt() * noise[..., 1]
    both = torch.stack([first * noise[..., 0], second * tilted], -1)
    return (mean + both).flatten(1)


def _solved(
    slope: Callable[[Tensor], Tensor], start: list[float], count: int, times: Tensor, step: float
) -> Tensor:
    """States of an ODE for every one of ``count`` parameters, ``(times, count, n)``."""
    begin = torch.tensor(start, dtype=torch.float64).expand(count, len(start))
    states: Tensor = odeint(
        lambda t, u: slope(u), begin, times.double(), method="rk4", options={"step_size": step}
    )
    return states


def _epidemic(theta: Tensor) -> Tensor:
    """Infected among 1,000 of a million, every 17 days, of an SIR model (T.9)."""
    contact, recovery = theta.double().unbind(-1)

    def slope(u: Tensor) -> Tensor:
        new = contact * u[:, 0] * u[:, 1] / 1e6
        return torch.stack([-new, new - recovery * u[:, 1]], -1)

    days = 17.0 * torch.arange(10)
    infected = _solved(slope, [1e6 - 1, 1.0], len(theta), days, 0.1)[..., 1].mT
    return Binomial(1000, (infected / 1e6).clamp(0, 1).float()).sample()


def _predators(theta: Tensor) -> Tensor:
    """Prey and predators of Lotka and Volterra ten times in 20 days, with noise of 10% (T.10)."""
    born, eaten, dying, fed = theta.double().unbind(-1)

    def slope(u: Tensor) -> Tensor:
        prey, predators = u.unbind(-1)
        meeting = prey * predators
        return torch.stack([born * prey - eaten * meeting, fed * meeting - dying * predators], -1)

    days = 2.1 * torch.arange(10, dtype=torch.float64)
    seen = _solved(slope, [30.0, 1.0], len(theta), days, 0.005).movedim(0, -1).flatten(1)
    mean = seen.clamp(1e-10, 1e4).log().float()
    return (mean + 0.1 * torch.randn_like(mean)).exp()


def _log_normal(means: list[float], stds: list[float]) -> Distribution:
    return Independent(LogNormal(torch.tensor(means), torch.tensor(stds)), 1)


TASKS = {
    task.name: task
    for task in (
        Task("two_moons", _box(1.0, 2), _two_moons),
        Task(
            "gaussian_linear",
            MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10)),
            _gaussian_linear,
        ),
        Task("gaussian_mixture", _box(10.0, 2), _gaussian_mixture),
        Task("gaussian_linear_uniform", _box(1.0, 10), _gaussian_linear),
        Task("slcp", _box(3.0, 5), _slcp),
        Task("sir", _log_normal([math.log(0.4), math.log(0.125)], [0.5, 0.2]), _epidemic),
        Task("lotka_volterra", _log_normal([-0.125, -3.0] * 2, [0.5] * 4), _predators),
    )
}
"""By name."""


def tasks(wheel: Path) -> dict[str, Task]:
    """`TASKS`, and the one whose stimulus is a file of the wheel."""
    with zipfile.ZipFile(wheel) as archive:

        def stored(name: str) -> Tensor:
            raw = archive.read(f"sbibm/tasks/bernoulli_glm/files/{name}.pt")
            values: Tensor = torch.load(io.BytesIO(raw), weights_only=True)
            return values

        design, stimulus = stored("design_matrix"), stored("stimulus_I")

    def spikes(theta: Tensor) -> Tensor:
        """Spikes of a neuron, and the stimulus around them, of a generalised linear model (T.5)."""
        fired = torch.bernoulli((theta @ design.mT).sigmoid())
        seen = conv1d(fired.unsqueeze(1), stimulus.reshape(1, 1, -1), padding=8).squeeze(1)
        return torch.cat([fired.sum(1, keepdim=True), seen[:, -9:]], 1)

    # filters are smooth: their second differences are small
    count = 9
    steps = torch.eye(count) - torch.diag(torch.ones(count - 1), -1)
    rough = steps @ steps + torch.diag(torch.arange(count) / count).sqrt()
    precision = torch.zeros(count + 1, count + 1)
    precision[0, 0], precision[1:, 1:] = 0.5, rough.mT @ rough
    prior = MultivariateNormal(torch.zeros(count + 1), precision_matrix=precision)
    return {**TASKS, "bernoulli_glm": Task("bernoulli_glm", prior, spikes)}


def c2st(references: Tensor, samples: Tensor, seed: int = 1) -> Tensor:
    """How well a classifier tells samples from a reference: .5 not at all, 1 always.

    Accuracy of a perceptron with two hidden layers of ten times the dimension, averaged over
    five folds, both sets standardised by the reference (Lopez-Paz & Oquab 2017), as in
    ``sbibm.metrics.c2st``: initial weights, Adam, penalty and stopping are those of scikit-learn's
    ``MLPClassifier``, but the classifiers of all folds and observations are trained side by
    side.

    Args:
        references: ``(observations, N, parameters)``.
        samples: ``(observations, N, parameters)``.
        seed: Of folds and classifiers.

    Returns:
        Accuracies, ``(observations,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = references.mean(1, keepdim=True), references.std(1, keepdim=True)
    x = ((torch.cat([references, samples], 1) - mean) / std).float()
    observations, count, dim = x.shape
    y = (torch.arange(count) >= references.shape[1]).float()
    splits = list(KFold(5, shuffle=True, random_state=seed).split(y))
    train = torch.stack([torch.from_numpy(kept) for kept, _ in splits])
    test = torch.stack([torch.from_numpy(left[: count // 5]) for _, left in splits])
    nets, sizes, weights = observations * len(splits), (dim, 10 * dim, 10 * dim, 1), []
    for a, b in itertools.pairwise(sizes):
        draws = torch.rand(nets, a + 1, b, generator=generator)
        weights.append(((2 * draws - 1) * (6 / (a + b)) ** 0.5).requires_grad_())
    # those still trained: an observation and a fold each
    going = torch.arange(nets)

    def classify(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels for the rows of every fold, ``(going, rows)`` each."""
        own = rows[going % len(splits)]
        h = x[(going // len(splits)).unsqueeze(1), own]
        for i, weight in enumerate(weights):
            h = torch.baddbmm(weight[:, -1:], h.relu() if i else h, weight[:, :-1])
        return h.squeeze(-1), y[own]

    optimizer = torch.optim.Adam(weights)
    best, stale = torch.full((nets,), math.inf), torch.zeros(nets)
    accuracy = torch.zeros(nets)
    while len(going):
        losses = torch.zeros(len(going))
        for rows in train[:, torch.randperm(train.shape[1], generator=generator)].split(200, 1):
            logits, labels = classify(rows)
            loss = binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
            penalty = sum(weight[:, :-1].square().sum((1, 2)) for weight in weights)
            loss = loss + 0.5e-4 / rows.shape[1] * penalty
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses += loss.detach() * rows.shape[1] / train.shape[1]
        stale = torch.where(losses > best - 1e-4, stale + 1, 0.0)
        best, left = torch.minimum(best, losses), stale <= 10
        if left.all():
            continue
        with torch.no_grad():
            logits, labels = classify(test)
        accuracy[going] = ((logits > 0) == (labels > 0)).float().mean(1)
        going, best, stale = going[left], best[left], stale[left]
        before, weights = weights, [weight.detach()[left].requires_grad_() for weight in weights]
        states = [optimizer.state[weight] for weight in before]
        optimizer = torch.optim.Adam(weights)
        for weight, state in zip(weights, states, strict=True):
            moments = {name: state[name][left] for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": state["step"], **moments}
    return accuracy.reshape(observations, -1).mean(1)


def coverage(samples: Tensor, truth: Tensor, levels: Tensor, references: int = 10) -> Tensor:
    """How often credible regions hold the true parameters: at each level, were all well.

    Regions are balls around random points, each as large as holds the level's share of the
    samples, averaged over the points (TARP: Lemos et al. 2023, arXiv 2302.03026). They find
    samples too wide, too narrow or shifted, given enough simulations.

    Args:
        samples: Of the posterior of every simulation, ``(simulations, draws, parameters)``.
        truth: ``(simulations, parameters)``.
        levels: Nominal, in (0, 1).
        references: Random points per simulation.

    Returns:
        Expected coverage at every level.
    """
    low, high = truth.amin(0), truth.amax(0)
    points = low + (high - low) * torch.rand(references, *truth.shape)
    scale = high - low

    def distance(values: Tensor) -> Tensor:
        return ((values - points.unsqueeze(-2)) / scale).norm(dim=-1)

    rank = (distance(samples) < distance(truth.unsqueeze(1))).float().mean(-1)
    return torch.stack([(rank < level).float().mean() for level in levels])
