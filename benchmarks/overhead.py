"""What a sampling loop costs besides its network: ours, written by hand, azula's, diffusers'.

The same network, evaluations and method everywhere, one thread, medians of interleaved
repetitions. Ratios are our time over theirs, for DDIM; multistep and stochastic solvers are rows.
So is, in milliseconds, what images whose bands have speeds of their own cost beside any network:
the coefficients of the steps of a walk, and a training loss.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from estimators import Denoising
from scoresde import VP, DiagonalSDE, Haar, Identity, LogLinear, Noise, ReverseSDE, Solver
from scoresde.fixed_step import FixedStep
from solvers import DDIM, ExponentialMultistep, Heun

CASES = {"small": (256, 8, 64), "middle": (256, 128, 256), "large": (64, 3072, 1024)}
"""Batch size, dimension, hidden width."""


class Network(nn.Module):
    """Predicts noise from a state and a noise level: two hidden layers."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear_in, self.time = nn.Linear(dim, width), nn.Linear(1, width)
        self.middle, self.linear_out = nn.Linear(width, width), nn.Linear(width, dim)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """``(batch, dim)`` and ``(batch,)`` to ``(batch, dim)``."""
        hidden = nn.functional.silu(self.linear_in(x) + self.time(noise_level.reshape(-1, 1)))
        out: Tensor = self.linear_out(nn.functional.silu(self.middle(hidden)))
        return out


class Given(Noise):
    """Starts from a given state, and draws as usual after that."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.start: Tensor | None = start

    def __call__(self, like: Tensor) -> Tensor:
        """The start at the first call."""
        if self.start is not None:
            start, self.start = self.start, None
            return start
        return super().__call__(like)


def run(quick: bool = False) -> dict[str, Any]:
    """Ratios, and a row for every case and sampler in units of the bare DDIM loop."""
    warnings.filterwarnings("ignore", module="diffusers")
    torch.set_num_threads(1)
    seconds = 6.0 if quick else 30.0
    rows: list[dict[str, Any]] = []
    times: dict[str, dict[str, float]] = {}
    for case, (batch, dim, width) in CASES.items():
        steps = 20 if quick and case != "small" else 100  # a large network's time is its own
        torch.manual_seed(0)
        network, start = Network(dim, width), torch.randn(batch, dim)
        samplers = _samplers(network, start, steps)
        _check(samplers)
        times[case] = _interleaved(samplers, seconds)
        bare = times[case]["bare DDIM"]
        for name, elapsed in times[case].items():
            rows.append(
                {
                    "case": case,
                    "sampler": name,
                    "steps": steps,
                    "microseconds_per_step": 1e6 * elapsed / steps,
                    "of_bare_ddim": elapsed / bare,
                }
            )
            each = 1e6 * elapsed / steps
            print(f"{case:7} {name:34} {each:9.1f} us/step {elapsed / bare:6.2f}", flush=True)

    milliseconds = _by_the_band(seconds)
    rows += [{"case": "bands", "job": k, "milliseconds": v} for k, v in milliseconds.items()]

    def ratio(case: str, peer: str, ours: str = "ours DDIM") -> float:
        return round(times[case][ours] / times[case][peer], 3)

    ratios = {
        "bare_small": ratio("small", "bare DDIM"),
        "bare_small_prepared_once": ratio("small", "bare DDIM", "ours DDIM, prepared once"),
        "bare_middle": ratio("middle", "bare DDIM"),
        "bare_large": ratio("large", "bare DDIM"),
        "azula_small": ratio("small", "azula DDIM"),
        "diffusers_small": ratio("small", "diffusers DDIM"),
        "multistep_diffusers_small": ratio("small", "diffusers DPM-Solver++(2M)", "ours 2M"),
        "non_uniform_small": ratio("small", "ours DDIM", "ours DDIM, non-uniform"),
        "default_small": ratio("small", "bare DDIM", "ours default (order 3, corrected)"),
        "heun_small": ratio("small", "ours DDIM", "ours Heun, half the steps"),
    }
    return {"ratios": ratios, "milliseconds": milliseconds, "rows": rows}


def _samplers(network: Network, start: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    dim = start.shape[-1]
    sde = DiagonalSDE(VP(), Identity((dim,)))
    several = DiagonalSDE(VP(), Identity((dim,)), torch.linspace(0.5, 1, dim))
    ts = torch.linspace(1, sde.eps, steps + 1, dtype=torch.float64)
    first = start * float(sde.kernel(ts[:1]).sigma)

    def bare(eta: float = 0.0) -> Callable[[], Tensor]:
        return bare_ddim(network, sde, ts, lambda: first, eta)

    def ours(sde: DiagonalSDE, solver: Solver) -> Callable[[], Tensor]:
        model = Denoising(sde, network, parametrization="noise")
        return lambda: solver.sample(model, start.shape[:1], generator=Given(start))

    def prepared() -> Callable[[], Tensor]:
        model, solver = Denoising(sde, network, parametrization="noise"), DDIM(steps, **grid)
        reverse = ReverseSDE(model, 0.0)
        ahead = list(solver.prepare(reverse, -ts, first))

        def sample() -> Tensor:
            with torch.no_grad():
                return solver.run(first, ahead, Noise())

        return sample

    grid: dict[str, Any] = {"grid": lambda *_: ts}
    return {
        "bare DDIM": bare(),
        "ours DDIM": ours(sde, DDIM(steps, **grid)),
        "ours DDIM, prepared once": prepared(),
        "azula DDIM": _azula(network, sde, ts, start, "DDIMSampler"),
        "diffusers DDIM": _diffusers(network, sde, start, steps, "DDIMScheduler"),
        "ours DDIM, non-uniform": ours(several, DDIM(steps, **grid)),
        "ours Heun, half the steps": ours(sde, Heun(steps // 2, grid=lambda *_: ts[::2])),
        "ours 2M": ours(sde, ExponentialMultistep(steps, order=2, corrected=False, **grid)),
        "ours default (order 3, corrected)": ours(sde, ExponentialMultistep(steps, **grid)),
        "diffusers DPM-Solver++(2M)": _diffusers(
            network, sde, start, steps, "DPMSolverMultistepScheduler"
        ),
        "diffusers UniPC": _diffusers(network, sde, start, steps, "UniPCMultistepScheduler"),
        "azula xEAB, order 2": _azula(network, sde, ts, start, "xEABSampler"),
        "bare DDIM, eta 1": bare(1.0),
        "ours DDIM, eta 1": ours(sde, DDIM(steps, eta=1.0, **grid)),
        "azula DDIM, eta 1": _azula(network, sde, ts, start, "DDIMSampler", eta=1.0),
        "diffusers DDIM, eta 1": _diffusers(network, sde, start, steps, "DDIMScheduler", eta=1.0),
    }


def bare_ddim(
    network: nn.Module, sde: DiagonalSDE, ts: Tensor, start: Callable[[], Tensor], eta: float = 0.0
) -> Callable[[], Tensor]:
    """DDIM as one writes it by hand, with coefficients computed beforehand.

    Args:
        network: Predicts noise.
        sde: Without blocks.
        ts: Decreasing times.
        start: Gives the state at the first of them.
        eta: Share of noise.
    """
    device = start().device
    alpha, sigma = (v.squeeze(-1).float().to(device) for v in sde.kernel(ts.unsqueeze(-1)))
    noise_levels = (sigma / alpha).log() / 4

    def sample() -> Tensor:
        with torch.no_grad():
            x = start()
            for i in range(len(ts) - 1):
                noise = network(x, noise_levels[i].expand(len(x)))
                clean = (x - sigma[i] * noise) / alpha[i]
                if eta:
                    q = sigma[i + 1] / sigma[i] * alpha[i] / alpha[i + 1]
                    retained = sigma[i + 1] * q
                    drawn = sigma[i + 1] * (1 - q**2).sqrt()
                    x = alpha[i + 1] * clean + retained * noise + drawn * torch.randn_like(x)
                else:
                    x = alpha[i + 1] * clean + sigma[i + 1] * noise
            return x

    return sample


def _azula(
    network: Network, sde: DiagonalSDE, ts: Tensor, start: Tensor, name: str, **options: Any
) -> Callable[[], Tensor]:
    import azula.denoise
    import azula.noise
    import azula.sample

    class Schedule(azula.noise.Schedule):  # type: ignore[misc, name-defined]
        low, high = 0.1, 20.0

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            log_alpha = -t * (t * (self.high - self.low) / 4 + self.low / 2)
            return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.schedule = network, Schedule()

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            noise = self.network(x, ((sigma / alpha).log() / 4).expand(len(x)))
            return azula.denoise.DiracPosterior(mean=(x - sigma * noise) / alpha)

    sampler = getattr(azula.sample, name)(
        Denoiser(), start=1.0, stop=sde.eps, steps=len(ts) - 1, silent=True, **options
    )
    first = start * float(sde.kernel(ts[:1]).sigma)
    return lambda: sampler(first)


def _diffusers(
    network: Network, sde: DiagonalSDE, start: Tensor, steps: int, name: str, **options: Any
) -> Callable[[], Tensor]:
    import diffusers

    times = torch.linspace(sde.eps, 1, 1000, dtype=torch.float64).unsqueeze(-1)
    alpha, sigma = (v.squeeze(-1) for v in sde.kernel(times))
    power = alpha**2
    betas = (1 - torch.cat([power[:1], power[1:] / power[:-1]])).numpy()
    noise_levels = ((sigma / alpha).log() / 4).float()

    def sample() -> Tensor:
        scheduler = getattr(diffusers, name)(trained_betas=betas, prediction_type="epsilon")
        if hasattr(scheduler.config, "clip_sample"):
            scheduler.register_to_config(clip_sample=False)
        scheduler.set_timesteps(steps)
        with torch.no_grad():
            x = start * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                noise = network(x, noise_levels[int(t)].expand(len(x)))
                x = scheduler.step(noise, t, x, **options).prev_sample
        return x

    return sample


def _check(samplers: dict[str, Callable[[], Tensor]]) -> None:
    """The hand-written loop, azula and ours agree to rounding."""
    wanted = samplers["bare DDIM"]()
    for name in ("ours DDIM", "ours DDIM, prepared once", "azula DDIM"):
        torch.testing.assert_close(samplers[name](), wanted, rtol=5e-3, atol=5e-3)


class Free(nn.Module):
    """A network that costs nothing, and has a weight to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The input, scaled."""
        return self.weight * x


def _by_the_band(seconds: float) -> dict[str, float]:
    """What four bands with speeds and units of their own cost beside any network."""
    torch.manual_seed(0)
    speeds, scale = [1.0, 1.3, 1.7, 2.2], [4.0, 2.0, 1.0, 0.5]

    def model(size: int) -> Denoising:
        basis = Haar((3, size, size), levels=3)
        return Denoising(DiagonalSDE(LogLinear(), basis, speeds, scale), Free())

    def prepared(solver: FixedStep) -> Callable[[], Any]:
        reverse = ReverseSDE(model(128), 0.0)
        ts, state = -solver.times(reverse.sde), torch.zeros(4, reverse.basis.dim)

        def prepare() -> None:
            with torch.no_grad():
                for _ in solver.prepare(reverse, ts, state):
                    pass

        return prepare

    learner, x = model(64), torch.randn(64, 3, 64, 64)

    def loss() -> Tensor:
        return learner.loss(x)

    def slope() -> None:
        loss().backward()

    jobs = {
        "preparing 20 steps of DDIM, 3x128x128": prepared(DDIM(20)),
        "preparing 20 steps of the default, 3x128x128": prepared(ExponentialMultistep(20)),
        "loss of 64 events, 3x64x64": loss,
        "loss and its gradient of 64 events, 3x64x64": slope,
    }
    times = {name: round(1e3 * taken, 2) for name, taken in _interleaved(jobs, seconds).items()}
    for name, taken in times.items():
        print(f"bands   {name:45} {taken:8.2f} ms", flush=True)
    return times


def _interleaved(jobs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of every job, run in turn."""
    elapsed: dict[str, list[float]] = {name: [] for name in jobs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(v) < 3 for v in elapsed.values()):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            elapsed[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in elapsed.items()}
