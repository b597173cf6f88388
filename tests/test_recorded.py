"""Numbers are what they were: of digits that change, users are told.

None of them is a truth, of which closed forms and laws know elsewhere: they are what was computed
when they were recorded, by ``python tests/test_recorded.py``, small as walks of few steps are, so
that whatever changes shows in the first digits. Each stands for all numbers of its case.
"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from models import OrnsteinUhlenbeck, ScoreOnly
from torch import nn

from estimators import Denoising, GaussianMixture, MultiScale, measure
from estimators.times import Independent
from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    Learned,
    LogLinear,
    Noise,
    ProbabilityFlow,
    Quadrature,
    RectifiedFlow,
    ReverseSDE,
    ScoreDistribution,
    SubVP,
    bound,
    condition,
    log_prob,
)
from scoresde import parametrization as forms
from scoresde import weighting as weightings
from scoresde.conditioning import OBSERVED, ResampleObserved
from scoresde.equation import exponential_moments
from scoresde.grid import GRIDS, fractions, time_at_level
from scoresde.likelihood import HutchPlusPlus, importance
from scoresde.likelihood.exact import coarsened
from scoresde.noise import NoiseShard
from solvers import (
    DDIM,
    SRA,
    Adaptive,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialRungeKutta,
    Heun,
    Langevin,
)

pytestmark = pytest.mark.filterwarnings("ignore:log_prob")  # so few steps are not to be used
RECORDED = Path(__file__).with_name("recorded.json")
BLOCKS = {"a": 1, "b": 2}
F64 = torch.float64


class Network(nn.Module):
    """No component is like another, and none alone."""

    def forward(self, x, level, condition=None):
        flat, level = x.flatten(1), level.reshape(len(x), -1)
        n = flat.shape[1]
        told = 0.0 if condition is None else condition.reshape(len(x), -1).mean(1, keepdim=True)
        slopes = torch.linspace(0.3, 0.8, n, dtype=F64)
        mixed = slopes * flat - 0.4 * flat.roll(1, 1) + 0.3 * level.expand(-1, n) + told
        return torch.tanh(mixed).reshape(x.shape)


def numbers(shape, seed=0.0):
    """Between -1 and 1, all different."""
    n = torch.arange(math.prod(shape), dtype=F64)
    return torch.sin(1.7 * n + n**2 / 7 + seed).reshape(shape)


def seeded():
    return torch.Generator().manual_seed(0)


def streams(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def learned():
    schedule = Learned(components=1, hidden=4).double()
    with torch.no_grad():
        for p in schedule.parameters():
            p.add_(0.1 * numbers(p.shape))
    return schedule


def blocks(schedule=None, **options):
    return DiagonalSDE(schedule or VP(), Identity((3,), BLOCKS), **options)


SDES = {
    "vp": lambda: blocks(),
    "vp by components": lambda: blocks(VP(), speeds=[1.0, 0.7, 1.4], scale=[1.0, 2.0, 0.5]),
    "ve": lambda: blocks(VE(), speeds=[1.0, 0.6]),
    "edm": lambda: blocks(EDM(), scale=[1.0, 2.0]),
    "cosine": lambda: blocks(Cosine(), speeds=[0.8, 1.3], mean=0.3, std=[0.2, 0.4]),
    "log-linear": lambda: blocks(LogLinear(), speeds=[1.0, 1.5], delays=[0.0, 0.25]),
    "flow": lambda: blocks(RectifiedFlow(), scale=1.5),
    "sub-vp": lambda: blocks(SubVP()),
    "learned": lambda: blocks(learned()),
    "stages": lambda: DiagonalSDE(Cosine(), Haar((1, 4, 4), 1), [1.0, 1.2], drop=[1.0, 0.6]),
}


def read(sde):
    """All that an SDE says of four times."""
    t = torch.tensor([sde.eps, 0.2 * sde.T, 0.7 * sde.T, sde.T], dtype=F64).unsqueeze(-1)
    like = numbers((2, sde.basis.dim))
    at = sde.at(t, like)
    names = "alpha sigma f g2 log_snr noise_levels noise_level log_snr_decay snr_decay diffusion"
    yield from (getattr(at, name) for name in names.split())
    yield from (*at.kernel, *at[:3].transition(at[1:]), *at[:3].bridge(at[1:]))
    for eta in (0.0, 0.6, 1.0):
        step = at[1:].denoising_step(at[:3], eta)
        yield from (v for v in step if v is not None)
        yield from (*step.moments, step.cubic)
    yield from (sde.f(t[1, 0], like), sde.g(t[1, 0], like), sde.diffuse(like, t[2, 0], like.sin()))
    yield from (torch.tensor([*stage]) for stage in sde.stages())
    yield torch.tensor([*sde.breakpoints(), 0.0])
    yield from sde.moments(sde.T, 0, sde.basis.dim)
    yield from fractions(sde, t[:2, 0], t[1:3, 0], (0.25, 0.5))
    yield time_at_level(sde, t[1, 0], 0.1, sde.T)
    yield from (grid(sde, 7) for grid in GRIDS.values())
    yield coarsened(sde, GRIDS["log_snr"](sde, 6))


def mixture(sde):
    n = sde.basis.dim
    spread = numbers((n, n), 2.0)
    law = 0.3 * torch.eye(n, dtype=F64) + 0.1 * spread @ spread.T
    return GaussianMixture(sde, [0.4, 0.6], numbers((2, n), 1.0), torch.stack([law, 2 * law]))


def denoising(sde=None, **options):
    moments = {"data_mean": [0.2, -0.1], "data_std": [1.0, 0.6]}
    return Denoising(sde or SDES["cosine"](), Network(), **moments, **options)


def staged(**options):
    sde = SDES["stages"]()
    return MultiScale(sde, [Network() for _ in sde.stages()], **options)


def posterior(clean):
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)), speeds=[0.0 if clean else 0.5, 1.0])
    return condition(mixture(sde), clean=clean, y=torch.tensor([0.4], dtype=F64))


MODELS = {
    "mixture": lambda: mixture(SDES["vp by components"]()),
    "jumps": lambda: mixture(SDES["log-linear"]()),
    "network": denoising,
    "score": lambda: denoising(parametrization="score"),
    "vector time": lambda: denoising(times=Independent(over="components", together=0.3)),
    "baseline": lambda: (lambda m: denoising(m.sde, baseline=m))(mixture(SDES["cosine"]())),
    "stages": staged,
    "clean": lambda: posterior(True),
    "observed": lambda: posterior(False),
    "no kernel": lambda: ScoreOnly(OrnsteinUhlenbeck((3,), T=2.0, prior=NORMAL), lambda z, t: -z),
}
NORMAL = torch.distributions.Normal(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64))
SOLVERS = {
    "ddim": DDIM(4),
    "ddim, final": DDIM(4, eta=0.5, final_denoise=True),
    "multistep": ExponentialMultistep(5),
    "second order": ExponentialMultistep(5, order=2, corrected=False),
    "multistep, noise": ExponentialMultistep(5, eta=1.0),
    "runge-kutta": ExponentialRungeKutta(3),
    "heun": Heun(4),
    "heun, noise": Heun(4, eta=1.0),
    "euler": EulerMaruyama(5, eta=1.0),
    "sra": SRA(4, eta=1.0),
    "adaptive": Adaptive(rtol=0.3, atol=0.3, group=4),
    "corrected": DDIM(3, corrector=Langevin(2), eta=1.0),
    "churn": Heun(3, churn=0.2),
}
METHODS = {
    "quadrature": {"method": Quadrature(5, tolerance=None)},
    "refined": {"method": Quadrature(4, tolerance=1e-6)},
    "ddim": {"method": DDIM(5)},
    "heun": {"method": Heun(5)},
    "multistep": {"method": ExponentialMultistep(6)},
    "hutchinson": {"method": DDIM(4), "trace": Hutchinson(3)},
    "hutch++": {"method": Quadrature(4), "trace": HutchPlusPlus(2, 1)},
    "chunks": {"method": DDIM(4), "trace": ExactTrace(chunk=1)},
}


def events(model, count=3):
    return numbers((count, *model.sde.basis.event_shape))


def asked(model):
    sde = model.sde
    z = sde.basis(events(model))
    t = sde.eps + (sde.T - sde.eps) * torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    yield from (ask(z, t) for ask in (model.score, model.noise, model.velocity, model.denoise))
    for kind in (ReverseSDE(model, 0.7), ProbabilityFlow(model)):
        at = kind.sign * t[1]
        yield from (kind.f(at, z), kind.g(at, z))
        ahead = kind.at(kind.sign * t.flip(0).unsqueeze(-1), z)
        yield from (ahead.slope, ahead.response, ahead.length_rate, ahead.noise_level)


def sampled(model, solver):
    yield solver.sample(model, (3,), generator=seeded(), dtype=F64)
    yield solver.sample(model, (2,), generator=streams(2), dtype=F64)


def dense(model, options):
    with torch.no_grad():
        found = log_prob(model, events(model), generator=seeded(), **options)
    yield from (found.value, found.standard_error, found.error, found.evaluations)


def bounded(model):
    x = events(model)
    yield bound(model, x, generator=seeded(), draws=2)
    yield bound(model, x, generator=streams(3), moments=(0.1, 0.8), times="karras")
    yield importance(model, x, generator=seeded(), strata=8)(model.sde, 6)


def losses(**options):
    for name in forms.PARAMETRIZATIONS if len(options) < 2 else ["velocity"]:
        model = denoising(parametrization=name, **options)
        x = events(model, 5)
        yield model.losses(x, generator=seeded())
        yield model.losses(x, torch.ones(5, 1, dtype=F64), generator=streams(5))


def shares(share):
    model = staged(shares=[1.0, share], data_mean=0.1, data_std=[0.9, 0.5], weighting="likelihood")
    x = events(model, 4)
    yield from (model.losses(x, generator=seeded()), model.loss(x, generator=streams(4)))
    yield model.eval().losses(x, generator=seeded())


def drawn():
    like = torch.empty(4, 3, dtype=F64)
    for make in (seeded, lambda: streams(4), lambda: NoiseShard(seeded(), 1, 2)):
        for ask in ("uniform", "stratified", "__call__"):
            yield getattr(Noise.of(make()), ask)(like)
        yield Noise.of(make()).stratified(like, 3)
        yield Noise.of(make()).draw(NORMAL, like)
    yield from (
        observe(SDES["ve"](), like, Noise(seeded())).double() for observe in OBSERVED.values()
    )


def distributed():
    x = events(denoising())
    of = ScoreDistribution(denoising(), DDIM(4), trace=Hutchinson(2))
    yield of.log_prob(x)
    told = ScoreDistribution(denoising(), DDIM(4), condition=numbers((2, 1)))
    yield from (told.log_prob(x[:2]), told.expand([3, 2]).log_prob(x[:2]))


def corrected():
    model = posterior(False)
    yield DDIM(3, eta=1.0, corrector=ResampleObserved()).sample(
        model, (3,), generator=seeded(), dtype=F64
    )


def product(kind, ask, models, ways, every):
    """Every model and every way, not each with each: some."""
    for i, (name, make) in enumerate(models.items()):
        for j, (way, options) in enumerate(ways.items()):
            if (i + j) % every == 0 and (name, way) != ("no kernel", "corrected"):
                yield f"{kind}: {name}, {way}", partial(_both, ask, make, options)


def _both(ask, make, options):
    return ask(make(), options)


def _of(ask, make):
    return ask(make())


KNOWN = {k: make for k, make in MODELS.items() if k != "no kernel"}
DENSE = {k: make for k, make in KNOWN.items() if k != "observed"}
CASES = {
    **{f"read: {k}": partial(_of, read, make) for k, make in SDES.items()},
    **{f"asked: {k}": partial(_of, asked, make) for k, make in KNOWN.items()},
    **dict(product("sampled", sampled, MODELS, SOLVERS, 4)),
    **dict(product("density", dense, DENSE, METHODS, 3)),
    **{f"bound: {k}": partial(_of, bounded, make) for k, make in DENSE.items()},
    **{f"loss: {k}": partial(losses, weighting=k) for k in weightings.WEIGHTINGS},
    **{
        f"loss: {k} times": partial(losses, times=k, weighting="noise")
        for k in (*GRIDS, "blocks", "components")
    },
    **{f"loss: {k} shown": partial(losses, observe=k, weighting="score") for k in OBSERVED},
    "loss: shares": partial(shares, 0.5),
    "loss: all": partial(shares, 1.0),
    "noise": drawn,
    "distribution": distributed,
    "observed anew": corrected,
    "measured": lambda: measure(SDES["vp"](), numbers((7, 3))).values(),
    "moments": lambda: exponential_moments(numbers((9,)) * torch.logspace(-2, 2, 9, dtype=F64)),
}


def summary(found):
    """A weighted sum of what grows as logarithms of numbers do: none of them hides another."""
    flat = torch.cat([torch.as_tensor(v, dtype=F64).detach().reshape(-1) for v in found])
    weights = torch.sin(torch.arange(1.0, len(flat) + 1, dtype=F64) ** 2 / 5) + 1.5
    return float(weights @ flat.nan_to_num(0.1, 1e40, -1e40).asinh())


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_what_they_were(name):
    assert summary(CASES[name]()) == pytest.approx(json.loads(RECORDED.read_text())[name], abs=1e-7)


if __name__ == "__main__":
    rows = (f"  {json.dumps(k)}: {json.dumps(summary(make()))}" for k, make in CASES.items())
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
