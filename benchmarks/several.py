"""Posteriors of 1, 8, 30 and 100 observations of two tasks of `sbibm`, against exact ones.

Single posteriors are exact, or those of one network that has seen simulations with an observation
each, with the settings of `benchmarks.simulators`. What they say together is compared with draws
of the true posterior: .5 if a classifier cannot tell them apart. Three sets of observations each.
"""

from __future__ import annotations

import math
import time
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.posteriors import TASKS, Task, c2st
from estimators.posterior_fit import default_training, fit_posterior
from scoresde import VP, DiagonalSDE, Identity
from scoresde.conditioning import Composition, Particles
from scoresde.estimator import KernelEstimator
from scoresde.inference import Coordinates, Posterior, PriorEstimator, SeveralObservations
from scoresde.sdes.sde_coefficients import Kernel
from solvers import ExponentialMultistep

VARIANCES = {"gaussian_linear": [0.1], "gaussian_mixture": [1.0, 0.01]}
"""Of the errors of an observation, which are equally probable."""

PRIOR = 0.1
"""Variance of the normal one; the other is wide."""


def run(
    quick: bool = False,
    tasks: str = "gaussian_linear,gaussian_mixture",
    counts: tuple[int, ...] = (1, 8, 30, 100),
    methods: str = "exact particles,exact jacobian,particles,samples",
    simulations: int = 10_000,
    steps: int | None = None,
    draws: int = 1000,
    sets: int = 3,
) -> dict[str, Any]:
    """Rows; ``quick`` has exact single posteriors, one set and fewer observations.

    Args:
        quick: See above.
        tasks: Names, separated by commas.
        counts: Numbers of observations.
        methods: Of ``"particles"``, ``"samples"`` and ``"jacobian"``, of networks or ``"exact"``.
        simulations: That a network sees.
        steps: Updates; by default those of `estimators.posterior_fit`.
        draws: Samples of every posterior.
        sets: Of observations.
    """
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    chosen = methods.split(",")
    if quick:
        chosen, counts, sets = [m for m in chosen if m.startswith("exact")], counts[:2], 1
    for task in (TASKS[name] for name in tasks.split(",")):
        model = None
        if not all(m.startswith("exact") for m in chosen):
            model = _trained(task, simulations, steps)
        for n in counts:
            known = [_drawn(task.name, n, seed) for seed in range(sets)]
            references = torch.stack([_reference(task.name, x, draws) for x in known])
            for method in chosen:
                start = time.process_time()
                samples = torch.stack([_samples(task, method, model, x, draws) for x in known])
                seconds = (time.process_time() - start) / sets
                scores = c2st(references, samples)
                row = {
                    "task": task.name,
                    "n": n,
                    "method": method,
                    "c2st": [round(v, 3) for v in scores.tolist()],
                    "c2st_mean": round(float(scores.mean()), 3),
                    "seconds": round(seconds, 1),
                }
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def _drawn(name: str, n: int, seed: int) -> Tensor:
    """Observations ``(n, m)`` of parameters of their own."""
    chance = torch.Generator().manual_seed(seed)
    if name == "gaussian_linear":
        theta = math.sqrt(PRIOR) * torch.randn(10, generator=chance)
    else:  # far from the bounds, so that the exact posterior is a mixture of Gaussians
        theta = 12 * torch.rand(2, generator=chance) - 6
    std = torch.tensor(VARIANCES[name]).sqrt()
    which = torch.randint(len(std), (n, 1), generator=chance)
    return theta + std[which] * torch.randn(n, len(theta), generator=chance)


def _reference(name: str, x: Tensor, draws: int) -> Tensor:
    """Draws of the posterior: in closed form, or from a grid."""
    if name == "gaussian_linear":
        precision = (len(x) + 1) / PRIOR
        return x.sum(0) / PRIOR / precision + torch.randn(draws, x.shape[1]) / precision**0.5
    low, high = x.amin(0) - 4.5, x.amax(0) + 4.5
    for _ in range(3):  # where there is any of it, finer
        axes = [torch.linspace(float(a), float(b), 700) for a, b in zip(low, high, strict=True)]
        grid = torch.cartesian_prod(*axes).double()
        log = sum((_density(grid - one) for one in x.double()), torch.zeros(len(grid)).double())
        weight = (log - log.logsumexp(0)).exp()
        seen = grid[weight > 1e-7 * weight.max()]
        cell = ((high - low) / 699).double()
        low, high = (seen.amin(0) - 2 * cell).float(), (seen.amax(0) + 2 * cell).float()
    edges = weight.cumsum(0)
    rows = torch.searchsorted(edges, torch.rand(draws).double() * edges[-1])
    return (grid[rows] + cell * (torch.rand(draws, 2).double() - 0.5)).float()


def _density(error: Tensor) -> Tensor:
    """Logarithm of that of the second task's errors."""
    square = error.square().sum(-1)
    each = [-square / v / 2 - math.log(v) for v in VARIANCES["gaussian_mixture"]]
    return torch.stack(each).logsumexp(0)


class Exact(KernelEstimator):
    """Single posteriors: around an observation, a mixture of isotropic Gaussians.

    Args:
        sde: Of parameters.
        means: Of every posterior, ``(n, m)``.
        variances: Of the parts of the mixture, equally probable.
    """

    def __init__(self, sde: DiagonalSDE, means: Tensor, variances: list[float]) -> None:
        super().__init__(sde)
        self.register_buffer("means", means)
        self.variances = variances

    @property
    def batch_shape(self) -> torch.Size:
        """One for every observation."""
        return torch.Size([len(self.means)])

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        alpha, sigma = kernel
        far, logs, gains = z - alpha * self.means, [], []
        for variance in self.variances:
            marginal = alpha**2 * variance + sigma**2
            logs.append(-(far**2 / marginal + marginal.log()).sum(-1, keepdim=True) / 2)
            gains.append(alpha * variance / marginal)
        share = torch.stack(logs).softmax(0)
        gain = sum(s * g for s, g in zip(share, gains, strict=True))
        return self.means + gain * far


def _samples(task: Task, method: str, model: Any, x: Tensor, draws: int) -> Tensor:
    torch.manual_seed(1)
    how = method.split()[-1]
    if not method.startswith("exact"):
        way = Particles(draws) if how == "particles" else how
        several = SeveralObservations(model.estimator, model.coordinates, model.solver, method=way)
        return several(x).sample((draws,))
    zero = torch.zeros(x.shape[1])
    to = Coordinates(task.prior, zero, zero + 1, zero, torch.diag(zero), zero + 1, zero)
    sde = DiagonalSDE(VP(), Identity((x.shape[1],)))
    linear = task.name == "gaussian_linear"
    means, variances = (x / 2, [PRIOR / 2]) if linear else (x, VARIANCES[task.name])
    both = Composition(Exact(sde, means, variances), PriorEstimator(to, sde))
    if how == "particles":
        return Particles(draws).sample(both, (draws,))
    return ExponentialMultistep(64).sample(both, (draws,))


def _trained(task: Task, simulations: int, steps: int | None) -> Posterior:
    theta, x = task.draw(simulations, 0)
    training = default_training(simulations)
    if steps is not None:
        training = attrs.evolve(training, steps=steps)
    return fit_posterior(task.prior, theta, x, training=training, progress=False)
