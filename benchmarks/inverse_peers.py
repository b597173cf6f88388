"""deepinv's and azula's samplers on the problems of `benchmarks.inverse`, with exact scores."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import azula_denoiser
from estimators import GaussianMixture
from scoresde import EDM, DiagonalSDE, Identity

Sampler = Callable[[GaussianMixture, Any, Tensor, int, int], Tensor]
"""``(prior, problem, y, evaluations, samples) -> (samples, 16)``."""


def methods(problem: Any) -> dict[str, dict[str, Sampler]]:
    """Settings by name of every method that takes a problem: those recommended among them."""
    linear = not callable(problem.noise)
    settings: dict[str, dict[str, Sampler]] = {
        "DPS": {
            f"{guidance}, weight {weight:g}": partial(_dps, weight=weight, guidance=guidance)
            for guidance, weights in (
                ("norm", (3.0, 10.0, 30.0, 100.0) if linear else (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)),
                ("annealed", (1.0, 3.0) if linear else (0.01, 0.1, 1.0)),
            )
            for weight in weights
        },
        "MMPS": {
            f"{name}, {iterations} iterations of {solver}": partial(
                _mmps, eta=eta, iterations=iterations, solver=solver
            )
            for name, eta in (("DDIM", 0.0), ("DDIM eta 1", 1.0))
            for solver, iterations in (("gmres", 1), ("gmres", 5))
        },
    }
    if linear:
        settings["DiffPIR"] = {
            f"lambda {lambda_:g}, zeta {zeta:g}": partial(_diffpir, lambda_=lambda_, zeta=zeta)
            for lambda_, zeta in itertools.product((1.0, 7.0), (0.3, 1.0))
        }
        settings["DDRM"] = {
            f"eta {eta:g}, from {top:g}": partial(_ddrm, eta=eta, top=top)
            for eta, top in itertools.product((0.85, 1.0), (1.0, 3.0))
        }
    return settings


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepinv
    return deepinv


def _denoiser(prior: GaussianMixture) -> Any:
    """Of pictures from 0 to 1, as the library wants them: ours go from -1 to 1."""
    deepinv = _library()
    sde = DiagonalSDE(EDM(1e-5, 1e4), Identity(prior.sde.basis.event_shape))
    model = GaussianMixture(
        sde,
        prior.log_weights.exp(),
        prior.means.reshape(-1, *prior.sde.basis.event_shape),
        prior.covariances,
    )

    class Denoiser(deepinv.models.Denoiser):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()[0]
            z = 2 * x.double().flatten(1) - 1
            clean = z if level == 0 else model.denoise(z, level.clamp(min=1e-5))
            return ((clean + 1) / 2).reshape(x.shape).to(x.dtype)

    return Denoiser()


def _physics(problem: Any, y: Tensor, samples: int) -> tuple[Any, Tensor]:
    """The problem for pictures from 0 to 1, and what it observes of each of the samples."""
    deepinv = _library()
    matrix = problem.matrix.float()
    noise = deepinv.physics.GaussianNoise(problem.std or 1.0)
    wide = y.float().reshape(1, 1, 1, -1).expand(samples, -1, -1, -1)
    if callable(problem.noise):

        def see(x: Tensor, **_: Any) -> Tensor:
            seen = problem.mean((2 * x.flatten(1) - 1) @ matrix.mT.to(x))
            return seen.reshape(len(x), 1, 1, -1)

        class Seen(deepinv.physics.Physics):  # type: ignore[misc, name-defined]
            def A(self, x: Tensor, **_: Any) -> Tensor:
                return see(x)

            def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
                return (0.5 + 0 * (y.flatten(1) @ matrix.to(y))).reshape(-1, 1, 4, 4)

            A_dagger = A_adjoint

            def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
                with torch.enable_grad():
                    return torch.func.vjp(see, x)[1](v)[0]

        return Seen(noise_model=noise), wide
    u, s, v = torch.linalg.svd(matrix)
    mask = torch.zeros(16)
    mask[: len(s)] = s
    size = len(u)

    def into(x: Tensor, basis: Tensor) -> Tensor:
        return x.flatten(1) @ basis.to(x)

    def padded(y: Tensor) -> Tensor:
        image = torch.nn.functional.pad(into(y, u), (0, 16 - size))
        return image.reshape(-1, 1, 4, 4)

    physics = deepinv.physics.DecomposablePhysics(
        U=lambda x: into(x.flatten(1)[:, :size], u.mT).reshape(-1, 1, 1, size),
        U_adjoint=padded,
        V=lambda x: into(x, v).reshape(-1, 1, 4, 4),
        V_adjoint=lambda x: into(x, v.mT).reshape(-1, 1, 4, 4),
        mask=mask.reshape(1, 1, 4, 4),
    )
    physics.noise_model = deepinv.physics.GaussianNoise(problem.std / 2)
    offset = matrix.sum(1).reshape(1, 1, 1, -1)
    return physics, (wide + offset) / 2


def _dps(
    prior: GaussianMixture,
    problem: Any,
    y: Tensor,
    budget: int,
    samples: int,
    weight: float,
    guidance: str,
) -> Tensor:
    physics, seen = _physics(problem, y, samples)
    model = _library().sampling.DPS(
        _denoiser(prior), num_steps=budget + 1, weight=weight, guidance=guidance
    )
    start = torch.Size((samples, 1, 4, 4))
    return 2 * model(seen, physics, x_init=start).flatten(1).detach() - 1


def _ddrm(
    prior: GaussianMixture,
    problem: Any,
    y: Tensor,
    budget: int,
    samples: int,
    eta: float,
    top: float,
) -> Tensor:
    physics, seen = _physics(problem, y, samples)
    physics.mask = physics.mask.expand(1, 1, 4, 4)
    sigmas = torch.linspace(top, 0, budget).tolist()
    model = _library().sampling.DDRM(_denoiser(prior), sigmas=sigmas, eta=eta)
    model.denoiser = _denoiser(prior)
    return 2 * model(seen, physics).flatten(1) - 1


def _diffpir(
    prior: GaussianMixture,
    problem: Any,
    y: Tensor,
    budget: int,
    samples: int,
    lambda_: float,
    zeta: float,
) -> Tensor:
    deepinv = _library()
    physics, seen = _physics(problem, y, samples)
    model = deepinv.sampling.DiffPIR(
        _denoiser(prior),
        deepinv.optim.data_fidelity.L2(),
        sigma=float(physics.noise_model.sigma),
        max_iter=budget,
        zeta=zeta,
        lambda_=lambda_,
    )
    return 2 * model(seen, physics).flatten(1) - 1


def _mmps(
    prior: GaussianMixture,
    problem: Any,
    y: Tensor,
    budget: int,
    samples: int,
    eta: float,
    iterations: int,
    solver: str,
) -> Tensor:
    import azula.sample
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import DiagonalCovariance, IsotropicCovariance

    def see(x: Tensor) -> Tensor:
        mean: Tensor = problem.mean(x @ problem.matrix.mT)
        return mean

    power = IsotropicCovariance(torch.tensor(problem.std**2).double()) if problem.std else None
    if power is None:
        power = DiagonalCovariance(y.clamp(min=1))
    guided = MMPSDenoiser(
        azula_denoiser(prior),
        y.expand(samples, -1),
        see,
        power,
        solver=solver,
        iterations=iterations,
    )
    best = azula.sample.DDIMSampler(
        guided, eta=eta, start=1.0, stop=prior.sde.eps, steps=budget, silent=True
    )
    start = (
        torch.randn(samples, 16, dtype=torch.float64)
        * prior.sde.kernel(torch.ones(1, 1).double()).sigma
    )
    end: Tensor = best(start)
    return end
