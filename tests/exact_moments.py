"""Moments of a solver's samples on Gaussian data: exact, without sampling."""

import torch

from scoresde.testing import moments

__all__ = [
    "events",
    "extrapolate",
    "marginal",
    "moments",
    "push",
    "sample_moments",
    "with_true_prior",
]


def sample_moments(solver, model, condition=None):
    """Mean and covariance of ``solver.sample(model)``."""

    def run(rows, noise):
        return solver.sample(model, (rows,), condition=condition, generator=noise)

    return moments(run, model.sde.basis.dim * (1 + (solver.eta > 0) * solver.steps))


def push(solver, sde, start, ts):
    """Mean and covariance of a Gaussian ``start``, integrated over ``ts``."""

    def run(rows, noise):
        y = noise.draw(start, torch.empty(rows, len(start.mean)))
        return solver.integrate(sde, y, ts, noise)

    return moments(run, len(start.mean) * len(ts))


def marginal(model, t, dim=None):
    """The distribution of ``z_t`` of a `Gaussian`, from the kernel alone."""
    alpha, sigma = model.sde.kernel(torch.tensor([t], dtype=torch.float64))
    n = model.sde.basis.dim
    a, s = alpha.expand(n), sigma.expand(n)
    mean = a * model.means[0]
    covariance = a[:, None] * model.covariances[0] * a + torch.diag(s**2)
    return torch.distributions.MultivariateNormal(mean[:dim], covariance[:dim, :dim])


def extrapolate(run, steps, order):
    """Richardson: what ``run(steps)`` tends to if its error is ``steps^-order``, tuples alike."""
    once, twice = run(steps), run(2 * steps)
    return tuple(b + (b - a) / (2**order - 1) for a, b in zip(once, twice, strict=True))


def with_true_prior(model):
    """Samples start from the distribution of ``z_T``, so that solvers alone make errors."""
    model.sde.prior = marginal(model, model.sde.T)
    return model


def events(model, distribution):
    """Mean and covariance in ``x`` of a distribution of ``z``."""
    basis = model.sde.basis
    u = basis(torch.eye(basis.dim).reshape(basis.dim, *basis.event_shape))
    return u @ distribution.mean, u @ distribution.covariance_matrix @ u.mT
