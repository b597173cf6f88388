"""Random schedules, bases, SDEs, times, Gaussians and mixtures."""

import itertools

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from estimators import Gaussian, GaussianMixture
from scoresde import (
    DCT,
    EDM,
    PCA,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    LogLinear,
    RectifiedFlow,
    SubVP,
)

SHARED = (1,)


def numbers(low, high):
    return st.floats(low, high).map(lambda v: min(max(round(v, 4), low), high))


@st.composite
def parameters(draw, low, high, widths=SHARED):
    """A number, or a vector of one of the widths."""
    width = draw(st.sampled_from(widths))
    values = draw(st.lists(numbers(low, high), min_size=width, max_size=width))
    return values[0] if width == 1 else values


def _steep(widths):
    return parameters(0.05, 1.0, widths), parameters(5.0, 25.0, widths)


SCHEDULES = {
    "VP": lambda w: st.builds(VP, *_steep(w)),
    "SubVP": lambda w: st.builds(SubVP, *_steep(w)),
    "VE": lambda w: st.builds(VE, parameters(0.001, 0.05, w), parameters(1.0, 100.0, w)),
    "Cosine": lambda w: st.builds(Cosine, parameters(-18.0, -6.0, w)),
    "LogLinear": lambda w: st.builds(LogLinear, parameters(5, 12, w), parameters(-12, -5, w)),
    "EDM": lambda w: st.builds(EDM, numbers(0.001, 0.01), numbers(1.0, 100.0)),
    "RectifiedFlow": lambda w: st.builds(RectifiedFlow, numbers(0.9, 0.999)),
}
KINDS = st.sampled_from(list(SCHEDULES))
VARIANCE_PRESERVING = ("VP", "Cosine", "LogLinear")


def per_schedule(examples):
    """A test per kind, with fewer examples of each."""

    def decorate(test):
        test = settings(max_examples=examples)(test)
        return pytest.mark.parametrize("kind", SCHEDULES)(test)

    return decorate


every_schedule = per_schedule(5)


def schedules(kind, widths=SHARED):
    return SCHEDULES[kind](widths)


@st.composite
def layouts(draw, n):
    """Blocks of ``n`` components."""
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=2))) if n > 1 else []
    edges = [0, *cuts, n]
    return {f"b{i}": b - a for i, (a, b) in enumerate(itertools.pairwise(edges))}


def rotation(n, seed):
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(noise)[0]


@st.composite
def identities(draw, shapes=((1,), (3,), (5,), (2, 2))):
    shape = draw(st.sampled_from(shapes))
    return Identity(shape, draw(layouts(torch.Size(shape).numel())))


@st.composite
def principal(draw):
    n = draw(st.integers(2, 5))
    return PCA(rotation(n, draw(st.integers(0, 99))), blocks=draw(layouts(n)))


BASES = {
    "Identity": identities(),
    "Haar": st.sampled_from([((2,), 1), ((4,), 2), ((2, 2), 1), ((2, 2, 2), 1)]).map(
        lambda a: Haar(*a)
    ),
    "DCT": st.sampled_from([((4,), None, 2), ((2, 3), None, 3), ((2, 3), 1, 1)]).map(
        lambda a: DCT(*a)
    ),
    "PCA": principal(),
}


def bases(kind=None):
    return st.one_of(*BASES.values()) if kind is None else BASES[kind]


@st.composite
def sdes(draw, kind=None, basis=None, lowest=0.3, delayed=False):
    """Any schedule, basis, speeds and scales, shared or per block or component.

    A ``lowest`` speed of 0 lets components stay clean; ``delayed`` ones may start later.
    """
    basis = draw(bases(basis)) if basis is None or isinstance(basis, str) else basis
    widths = (1, len(basis.blocks), basis.dim)
    width = (1, draw(st.sampled_from(widths)))
    schedule = draw(
        schedules(draw(st.sampled_from(list(SCHEDULES))) if kind is None else kind, width)
    )
    speeds = draw(parameters(lowest, 3.0, widths))
    if lowest == 0.0 and isinstance(speeds, list):
        speeds[-1] = 0.0
    delays = 0.0
    if delayed:
        width = len(speeds) if isinstance(speeds, list) else 1
        delays = draw(st.one_of(st.just(0.0), parameters(0.0, 0.6, (1, width))))
    scale = draw(parameters(0.2, 3.0, widths))
    return DiagonalSDE(schedule, basis, speeds, scale, delays=delays)


def uniform_sdes(kind=None, basis=None):
    """One schedule for all components."""

    @st.composite
    def build(draw):
        return DiagonalSDE(
            draw(schedules(kind or draw(KINDS))),
            draw(bases(basis)) if basis is None or isinstance(basis, str) else basis,
        )

    return build()


@st.composite
def times(draw, sde, count=1, vector=False):
    """Increasing times from ``eps`` to ``T``, away from those at which a clock stops.

    Each ``(1,)``, or with ``vector`` of any width of the component axis.
    """
    width = draw(st.sampled_from((1, len(sde.blocks), sde.blocks.dim))) if vector else 1
    u = torch.tensor(
        [[draw(st.floats(0, 1)) for _ in range(width)] for _ in range(count)], dtype=torch.float64
    )
    t = sde.eps * (sde.T / sde.eps) ** (0.01 + 0.98 * u.sort(0).values)
    breakpoints = torch.tensor([*sde.breakpoints(), sde.T / 7], dtype=torch.float64)
    near = ((t.unsqueeze(-1) / breakpoints - 1).abs() < 1e-4).any(-1)
    return list(torch.where(near, t * 0.999, t))


@st.composite
def states(draw, sde, count=3):
    g = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    return torch.randn(count, sde.basis.dim, generator=g, dtype=torch.float64)


def random_covariance(n, g, smallest=0.1):
    """A random covariance with correlations."""
    a = torch.randn(n, n, generator=g, dtype=torch.float64)
    return a @ a.mT / n + smallest * torch.eye(n, dtype=torch.float64)


def gaussian(sde, seed=0):
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(*sde.basis.event_shape, generator=g, dtype=torch.float64)
    return Gaussian(sde, mean, random_covariance(sde.basis.dim, g))


def mixture(sde, seed=0, components=3):
    g = torch.Generator().manual_seed(seed)
    n = sde.basis.dim
    return GaussianMixture(
        sde,
        torch.rand(components, generator=g, dtype=torch.float64) + 0.2,
        2 * torch.randn(components, *sde.basis.event_shape, generator=g, dtype=torch.float64),
        torch.stack([random_covariance(n, g) for _ in range(components)]),
    )


def gaussians(sde):
    return st.integers(0, 999).map(lambda seed: gaussian(sde, seed))


def mixtures(sde):
    return st.builds(mixture, st.just(sde), st.integers(0, 999), st.integers(1, 3))
