"""Error against evaluations on mixtures with exact scores: ours, azula's and diffusers'.

Every sampler starts from the same draws of the prior and is compared with where the
probability flow takes them. Error: root mean square distance. Peers get uniform schedules only,
each solver on each spacing of steps it offers; the best of them is shown. Non-uniform ones have
no peer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from estimators import GaussianMixture
from scoresde import (
    VP,
    Cosine,
    DiagonalSDE,
    Identity,
    LogLinear,
    Noise,
    ScoreEstimator,
    Solver,
)
from scoresde.sampling.grid import GRIDS
from solvers import DDIM, ExponentialMultistep, ExponentialRungeKutta, Heun

BUDGETS = (5, 8, 10, 12, 15, 20, 30, 50, 100)
BEDS: dict[str, tuple[Callable[[int], DiagonalSDE], int, int, float]] = {
    "VP, 2-D, 3 modes": (lambda n: DiagonalSDE(VP(), Identity((n,))), 2, 3, 0.1),
    "VP, 2-D, 5 sharp modes": (lambda n: DiagonalSDE(VP(), Identity((n,))), 2, 5, 0.02),
    "VP, 8-D, 5 wide modes": (lambda n: DiagonalSDE(VP(), Identity((n,))), 8, 5, 0.5),
    "VP, 16-D, 4 modes": (lambda n: DiagonalSDE(VP(), Identity((n,))), 16, 4, 0.3),
    "cosine, 4-D, 3 modes": (
        lambda n: DiagonalSDE(Cosine(-10.0), Identity((n,))), 4, 3, 0.2,
    ),
    "log-linear, 4-D, 4 modes": (lambda n: DiagonalSDE(LogLinear(), Identity((n,))), 4, 4, 0.2),
    "non-uniform VP, 8-D, 5 modes": (
        lambda n: DiagonalSDE(VP(), Identity((n,)), torch.linspace(0.6, 1.0, n)), 8, 5, 0.5,
    ),
    "clocks that stop, 4-D, 4 modes": (
        lambda n: DiagonalSDE(LogLinear(), Identity((n,)), [1.0, 1.0, 1.5, 2.0]), 4, 4, 0.2,
    ),
}  # fmt: skip
"""SDE, dimension, modes and their width."""


class Start(Noise):
    """Given numbers for the first draw."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = numbers

    def __call__(self, like: Tensor) -> Tensor:
        """The numbers."""
        return self.numbers.to(like)


def run(quick: bool = False) -> dict[str, Any]:
    """Rows, and for every uniform bed and budget the ratio of our default to the best peer."""
    warnings.filterwarnings("ignore", module="diffusers")
    count, budgets = (256, BUDGETS[1:7:2]) if quick else (2048, BUDGETS)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[int, float]] = {}
    for bed, (make, n, modes, width) in BEDS.items():
        sde = make(n)
        model = mixture(sde, modes, width)
        start = torch.randn(
            count, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        truth = _ours(ExponentialMultistep(1500), model, start)
        uniform = sde.clock.speeds.numel() == 1
        for budget in budgets:
            samplers = {
                "ours: default": ExponentialMultistep(budget),
                "ours: order 2": ExponentialMultistep(budget, order=2),
                "ours: DDIM": DDIM(budget),
                "ours: exponential Runge-Kutta": ExponentialRungeKutta(
                    max(1, budget // 3), grid="arctan_log_snr"
                ),
                "ours: Heun": Heun(max(1, budget // 2), grid="arctan_log_snr"),
            }
            errors = {k: _error(_ours(v, model, start), truth) for k, v in samplers.items()}
            if uniform:
                errors |= {
                    name: _error(end, truth) for name, end in _peers(model, start, budget).items()
                }
            for name, error in errors.items():
                row = {"bed": bed, "sampler": name, "evaluations": budget, "error": error}
                rows.append(row)
            line = f"{bed:32} {budget:4} default {errors['ours: default']:.1e}"
            peers = {k: v for k, v in errors.items() if not k.startswith("ours") and v < math.inf}
            if peers:
                best = min(peers, key=lambda name: peers[name])
                ratio = errors["ours: default"] / peers[best]
                ratios.setdefault(bed, {})[budget] = round(ratio, 3)
                line += f", {ratio:5.2f} of {best} ({peers[best]:.1e})"
            print(line, flush=True)
    return {"ratios": ratios, "rows": rows}


def mixture(sde: DiagonalSDE, modes: int, width: float) -> GaussianMixture:
    """Random modes, the same every time."""
    n, g = sde.basis.dim, torch.Generator().manual_seed(1)
    means = torch.randn(modes, n, generator=g).double()
    factors = torch.randn(modes, n, n, generator=g).double() / n**0.5 * width
    floor = (width / 3) ** 2 * torch.eye(n).double()
    weights = torch.rand(modes, generator=g) + 0.5
    return GaussianMixture(sde, weights, means, factors @ factors.mT + floor)


def _error(end: Tensor, truth: Tensor) -> float:
    value = float((end - truth).square().sum(-1).mean().sqrt())
    return value if math.isfinite(value) else math.inf


def _ours(solver: Solver, model: GaussianMixture, start: Tensor) -> Tensor:
    with torch.no_grad():
        return solver.rsample(model, (len(start),), generator=Start(start), dtype=torch.float64)


def _peers(model: GaussianMixture, start: Tensor, budget: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return {**_azula(model, start, budget), **_diffusers(model, start, budget)}


def azula_denoiser(model: ScoreEstimator) -> Any:
    """An estimator as azula has them: its schedule is that of the SDE."""
    import azula.denoise
    import azula.noise

    sde = model.sde

    class Schedule(azula.noise.Schedule):  # type: ignore[misc, name-defined]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            kernel = sde.kernel(t.double().reshape(-1, 1))
            return kernel.alpha.reshape(t.shape), kernel.sigma.reshape(t.shape)

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule()

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            return azula.denoise.DiracPosterior(mean=model.denoise(x, t.double()))

    return Denoiser()


def _azula(model: GaussianMixture, start: Tensor, budget: int) -> dict[str, Tensor]:
    import azula.sample

    sde = model.sde
    ends = {}
    methods: list[tuple[str, dict[str, Any], int]] = [("HeunSampler", {}, 2)]
    for kind in ("xEAB", "zEAB", "REAB"):
        methods += [(f"{kind}Sampler", {"order": order}, 1) for order in (2, 3)]
    for name, options, cost in methods:
        for spacing in ("uniform_time", "log_snr"):
            times = GRIDS[spacing](sde, max(1, budget // cost))
            parent = getattr(azula.sample, name)
            spaced = type(name, (parent,), {"timesteps": property(lambda self, t=times: t)})
            sampler = spaced(azula_denoiser(model), silent=True, **options)
            end = sampler(start * sde.kernel(times[:1]).sigma)
            ends[f"azula {name} {options.get('order', '')} {spacing}"] = end
    return ends


def _diffusers(model: GaussianMixture, start: Tensor, budget: int) -> dict[str, Tensor]:
    import diffusers

    sde = model.sde
    t = torch.linspace(sde.eps, sde.T, 1000, dtype=torch.float64)
    power = sde.kernel(t.unsqueeze(-1)).alpha.squeeze(-1) ** 2
    betas = (1 - torch.cat([power[:1], power[1:] / power[:-1]])).numpy()
    spacings: tuple[dict[str, Any], ...] = (
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
    )
    methods = [
        ("DPMSolverMultistepScheduler", 2, (*spacings, {"use_lu_lambdas": True})),
        ("DPMSolverMultistepScheduler", 3, (*spacings, {"use_lu_lambdas": True})),
        ("UniPCMultistepScheduler", 2, spacings),
        ("UniPCMultistepScheduler", 3, spacings),
        ("DEISMultistepScheduler", 3, spacings[:1]),
    ]
    ends = {}
    for name, order, options in methods:
        for option in options:
            last = {} if name.startswith("DEIS") else {"final_sigmas_type": "sigma_min"}
            scheduler = getattr(diffusers, name)(
                trained_betas=betas,
                prediction_type="sample",
                solver_order=order,
                **last,
                **option,
            )
            scheduler.set_timesteps(budget)
            if len(set(scheduler.timesteps.tolist())) < budget:
                continue  # it cannot tell two of its steps apart
            x = start * scheduler.init_noise_sigma
            for step in scheduler.timesteps:
                time = sde.eps + (sde.T - sde.eps) * float(step) / 999
                denoised = model.denoise(scheduler.scale_model_input(x, step), time)
                x = scheduler.step(denoised, step, x).prev_sample
            ends[f"diffusers {name} {order} {' '.join(option)}".strip()] = x
    return ends
