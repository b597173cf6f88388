"""Conditional samplers with exact scores, against posteriors in closed form.

What is left is the bias of the method: of diffusing ``y`` (CMDE, CDiffE), of the path of ``y_t``
and of guiding an unconditional model. Error: Wasserstein-2 distance to exact samples, averaged
over 64 directions, in units of the posterior's standard deviation there; ``floor`` is that of
other exact samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from estimators import GaussianMixture, Guidance
from scoresde import VE, DiagonalSDE, Identity, Joint, ScoreEstimator, Solver, condition
from scoresde.conditioning import ResampleObserved
from solvers import DDIM, ExponentialMultistep

SIGMA = 50.0


def run(quick: bool = False) -> dict[str, Any]:
    """A row per task, estimator and path of the condition."""
    torch.manual_seed(0)
    steps, count = (100, 2000) if quick else (400, 20_000)
    rows: list[dict[str, Any]] = []
    for name, (weights, means, covariances, noise, y) in _tasks().items():
        truth = _posterior(weights, means, covariances, noise, y)
        exact, other = truth.sample((count,)), truth.sample((count,))
        floor = _distance(other, exact)
        for method, path, model, solver in _methods(weights, means, covariances, noise, y, steps):
            x = solver.sample(model, (count,))
            row = {"task": name, "method": method, "path": path, "error": _distance(x, exact)}
            row["mean_error"] = float((x.mean(0) - exact.mean(0)).abs().amax())
            rows.append({**row, "floor": floor})
            print("{task:18} {method:28} {path:9} error {error:.3f}".format(**row), flush=True)
    return {"rows": rows}


def _tasks() -> dict[str, tuple[Tensor, Tensor, Tensor, float, Tensor]]:
    """Weights, means and covariances of ``x``, the noise on ``y = x + e``, and ``y``."""
    one = torch.ones(1)
    return {
        "two numbers": (one, torch.zeros(1, 1), torch.ones(1, 1, 1), 0.75, torch.ones(1)),
        "10 dimensions": (
            one,
            torch.zeros(1, 10),
            0.1 * torch.eye(10).unsqueeze(0),
            0.1**0.5,
            torch.linspace(-0.5, 0.5, 10),
        ),
        "mixture": (
            torch.tensor([0.3, 0.3, 0.4]),
            torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]),
            0.2 * torch.eye(2).expand(3, 2, 2),
            1.5,
            torch.tensor([0.5, 0.5]),
        ),
    }


def _posterior(
    weights: Tensor, means: Tensor, covariances: Tensor, noise: float, y: Tensor
) -> MixtureSameFamily:
    total = covariances + noise**2 * torch.eye(len(y))
    gain = covariances @ torch.linalg.inv(total)
    evidence = weights.log() + MultivariateNormal(means, total).log_prob(y)
    center = means + ((y - means).unsqueeze(-2) @ gain.mT).squeeze(-2)
    parts = MultivariateNormal(center, covariances - gain @ covariances)
    return MixtureSameFamily(Categorical(logits=evidence), parts)


def _methods(
    weights: Tensor, means: Tensor, covariances: Tensor, noise: float, y: Tensor, steps: int
) -> list[tuple[str, str, ScoreEstimator, Solver]]:
    n = len(y)
    joint = Joint(y=(n,), x=(n,))
    joint_means = torch.cat([means, means], -1)
    top = torch.cat([covariances + noise**2 * torch.eye(n), covariances], -1)
    joint_covariances = torch.cat([top, torch.cat([covariances, covariances], -1)], -2)

    def conditional(sigma_y: float, clean: bool = False) -> ScoreEstimator:
        schedule = VE(0.005, joint.per_block(y=sigma_y or SIGMA, x=SIGMA))
        speeds = joint.per_block(y=1.0 if sigma_y else 0.0, x=1.0)
        sde = DiagonalSDE(schedule, joint, speeds)
        joint_model = GaussianMixture(sde, weights, joint_means, joint_covariances)
        return condition(joint_model, clean=clean, y=y)

    flow, once = ExponentialMultistep(steps), DDIM(steps, eta=1.0)
    fresh = DDIM(steps, eta=1.0, corrector=ResampleObserved())
    prior = GaussianMixture(
        DiagonalSDE(VE(0.005, SIGMA), Identity((n,))), weights, means, covariances
    )
    std = float(prior.marginal(torch.zeros(1)).variance.mean().sqrt())
    cases: list[tuple[str, str, ScoreEstimator, Solver]] = [
        ("CDE", "none", conditional(0.0), flow),
        ("any conditional, clean", "none", conditional(SIGMA, clean=True), flow),
    ]
    for name, sigma_y in (("CMDE, sigma_y .5", 0.5), ("CMDE, sigma_y 1", 1.0), ("CDiffE", SIGMA)):
        paths = {"one noise": flow, "bridge": once, "redrawn": fresh}
        cases += [(name, path, conditional(sigma_y), solver) for path, solver in paths.items()]
    for method in ("moments", "isotropic", "point"):
        guided = Guidance(prior, lambda x: x, y, noise, method=method, data_std=std)
        cases.append((f"guidance, {method}", "none", guided, flow))
    return cases


def _distance(a: Tensor, b: Tensor) -> float:
    directions = torch.nn.functional.normalize(torch.randn(64, a.shape[-1], dtype=a.dtype), dim=-1)
    first, second = ((v @ directions.mT).sort(0).values for v in (a, b))
    return float(((first - second).square().mean(0) / second.var(0)).mean().sqrt())
