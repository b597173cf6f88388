"""A Bayesian inverse problem in Pyro whose prior is a diffusion model.

A signal of 8 numbers is blurred, and seen at every other place only, through noise. Its prior is a
multi-scale diffusion model, a distribution like any other in a Pyro program, and NUTS draws from
the posterior. Here the model's data are Gaussian and the blur is linear, so that the posterior has
a closed form, to which the draws are held; nothing in the program needs either.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from estimators import Gaussian
from scoresde import DiagonalSDE, Haar, LogLinear, Quadrature, ScoreDistribution
from solvers import ExponentialMultistep

SIZE, NOISE = 8, 0.3


def prior() -> ScoreDistribution:
    """Smooth signals: ``Cov(x_i, x_j) = e^(-|i - j|/3)``, coarse to fine."""
    place = torch.arange(float(SIZE))
    covariance = (-(place[:, None] - place).abs() / 3).exp()
    sde = DiagonalSDE(LogLinear(8.0, -8.0), Haar((SIZE,), levels=1), [1.0, 1.25], drop=[1.0, 0.8])
    model = Gaussian(sde, torch.zeros(SIZE), covariance)
    solver = ExponentialMultistep(20)
    return ScoreDistribution(model, solver, method=Quadrature(8), validate_args=False)


def blur() -> Tensor:
    """What is seen of a signal: every other place, averaged with its neighbours."""
    place = torch.arange(SIZE)
    near = (place[::2, None] - place).abs()
    weights = torch.where(near <= 1, 1.0 - 0.5 * near, 0.0)
    return weights / weights.sum(1, keepdim=True)


def model(signals: ScoreDistribution, observed: Tensor) -> None:
    """The signal from its prior, seen through blur and noise."""
    x = pyro.sample("x", signals)
    with pyro.plate("places", len(observed)):
        pyro.sample("seen", dist.Normal(blur() @ x, NOISE), obs=observed)


def posterior(signals: ScoreDistribution, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance in closed form."""
    exact, basis = signals.estimator, signals.estimator.sde.basis
    u = basis(torch.eye(SIZE))
    covariance = u @ exact.covariances[0].float() @ u.mT
    precision = torch.linalg.inv(covariance) + blur().mT @ blur() / NOISE**2
    posterior_covariance = torch.linalg.inv(precision)
    mean = posterior_covariance @ blur().mT @ observed / NOISE**2
    return mean, posterior_covariance


def main(samples: int = 150, warmup: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, and the posterior's mean and deviations; prints them side by side."""
    pyro.set_rng_seed(0)
    signals = prior()
    truth = signals.sample()
    observed = blur() @ truth + NOISE * torch.randn(SIZE // 2)
    mean, covariance = posterior(signals, observed)
    kernel = NUTS(model, step_size=0.25, adapt_step_size=False, max_tree_depth=3)
    start = {"x": torch.zeros(SIZE)}
    run = MCMC(kernel, samples, warmup_steps=warmup, initial_params=start, disable_progbar=True)
    run.run(signals, observed)
    x = run.get_samples()["x"]
    deviations = covariance.diagonal().sqrt()
    print("signal      " + " ".join(f"{v:6.2f}" for v in truth.tolist()))
    for name, centre, width in (
        ("closed form", mean, deviations),
        ("NUTS", x.mean(0), x.std(0)),
    ):
        print(f"{name:12}" + " ".join(f"{v:6.2f}" for v in centre.tolist()))
        print(f"{'  +-':12}" + " ".join(f"{v:6.2f}" for v in width.tolist()))
    return x, mean, deviations


if __name__ == "__main__":
    main()
