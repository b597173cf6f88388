"""Densities in chunks: as many events and products as there is memory for, and no other numbers."""

import pytest
import torch

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import (
    CLD,
    VP,
    DiagonalSDE,
    ExactTrace,
    Hutchinson,
    Identity,
    Quadrature,
    bound,
    log_prob,
)
from scoresde.internals import free_memory, limits
from scoresde.likelihood import HutchPlusPlus
from scoresde.testing import DeviceCalls
from solvers import DDIM

N, ROWS = 6, 4
TRACES = {"exact": ExactTrace(), "hutchinson": Hutchinson(5), "deflated": HutchPlusPlus(3, 2)}
METHODS = {"solver": DDIM(3), "quadrature": Quadrature(3, tolerance=None)}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """However small it is."""
    monkeypatch.setattr(free_memory, "_SMALL", 0)


def model():
    torch.manual_seed(0)
    network = ResidualMLP((N,), 8, 1)
    torch.nn.init.normal_(network.output_layer[1].weight, std=0.3)
    return Denoising(DiagonalSDE(VP(), Identity((N,))), network)


def memory_for(products, dtype):
    return limits.memory_limit(2 * products * 100 * ROWS * N * dtype.itemsize)


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_no_density_nor_its_gradient(method, trace, dtype):
    found = []
    for products in (1, 4, 100):
        learner = model().to(dtype)
        x = torch.linspace(-1, 1, ROWS * N, dtype=dtype).reshape(ROWS, N)
        generator = torch.Generator().manual_seed(0)
        with memory_for(products, dtype):
            options = {"trace": TRACES[trace], "generator": generator}
            value = log_prob(learner, x, METHODS[method], **options).value
        slope = torch.autograd.grad(value.sum(), learner.network.output_layer[1].weight)[0]
        found.append((value.detach(), slope))
    for other in found[:2]:
        torch.testing.assert_close(other, found[2], **rounding(trace, dtype))


def rounding(trace, dtype):
    """Directions of a deflated trace that hardly matter are those of rounding errors."""
    if dtype == torch.float64:
        return {"rtol": None, "atol": None}
    return {"rtol": 1e-3, "atol": 1e-3} if trace == "deflated" else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("trace", TRACES)
def test_as_many_products_are_evaluated_together_as_fit(trace, monkeypatch):
    seen = []
    vmap = torch.func.vmap

    def watched(function, chunk_size=None):
        seen.append(chunk_size)
        return vmap(function, chunk_size=chunk_size)

    monkeypatch.setattr(torch.func, "vmap", watched)
    x = torch.zeros(ROWS, N)
    for products, wanted in ((4, 4), (100, None)):
        seen.clear()
        with memory_for(products, torch.float32), torch.no_grad():
            log_prob(model(), x, DDIM(2), trace=TRACES[trace])
        assert {*seen} == {wanted}
    seen.clear()
    with memory_for(4, torch.float32), torch.no_grad():
        log_prob(model(), x, DDIM(2), trace=ExactTrace(2))
    assert {*seen} == {2}


@pytest.mark.parametrize("trace", TRACES)
def test_chunks_wait_for_nothing(trace):
    """Densities look once, at their end, in however many chunks and steps."""
    learner, found = model().to("meta"), []
    x = torch.empty(ROWS, N, device="meta")
    for products, steps in ((1, 2), (100, 2), (1, 4)):
        with memory_for(products, torch.float32), torch.no_grad(), DeviceCalls() as calls:
            # errors are those of a quadrature, which keeps more and has parts of its own
            log_prob(learner, x, DDIM(steps), trace=TRACES[trace], errors=False)
        found.append(calls.summary())
    assert {(each["reads"], each["copies"]) for each in found} == {(1, 0)}
    assert len({each["queued"] for each in found}) == 1


class Told(torch.nn.Module):
    """A network that is told something of every event, and notes of how many at a time."""

    def __init__(self):
        super().__init__()
        self.network, self.seen = ResidualMLP((N,), 8, 1), []
        torch.nn.init.normal_(self.network.output_layer[1].weight, std=0.3)

    def forward(self, x, level, condition):
        self.seen.append(len(x))
        return self.network(x + condition, level)


def staged():
    """Half of the components enter later."""
    sde = DiagonalSDE(VP(), Identity((N,), {"a": 3, "b": 3}), drop=[1.0, 0.4])
    return Gaussian(sde, torch.linspace(-1, 1, N), torch.eye(N) + 0.3)


def with_velocities():
    return Gaussian(CLD(VP(), Identity((N,))), torch.linspace(-1, 1, N), torch.eye(N) + 0.3)


def some_events(count, kept=0, dtype=torch.float32):
    return limits.memory_limit(2 * count * (100 + kept) * 2 * N * dtype.itemsize)


BY_EVENT = {"solver": DDIM(3), "refined": Quadrature(2, tolerance=0.0)}


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("single", [True, False], ids=["one generator", "one per event"])
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("method", BY_EVENT)
@pytest.mark.parametrize("made", ["told", "staged", "with velocities"])
def test_events_in_parts_have_the_density_of_all_together(made, method, trace, single, dtype):
    torch.manual_seed(0)
    told = Denoising(DiagonalSDE(VP(), Identity((N,))), Told())
    makers = {"told": told, "staged": staged(), "with velocities": with_velocities()}
    estimator = makers[made].to(dtype)
    x = torch.linspace(-1, 1, 3 * N, dtype=dtype).reshape(3, 1, N)
    condition = torch.linspace(0, 1, 3, dtype=dtype).reshape(3, 1, 1) if made == "told" else None
    found = []
    for count in (1, 2, 10**6):
        seeds = range(1 if single else 3)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = generators[0] if single else generators
        with some_events(count, dtype=dtype), torch.no_grad():
            options = {"condition": condition, "generator": generator, "trace": TRACES[trace]}
            found.append(log_prob(estimator, x, BY_EVENT[method], **options))
    for part in found[:2]:
        for name in ("value", "standard_error", "error"):
            pair = getattr(part, name), getattr(found[2], name)
            torch.testing.assert_close(*pair, equal_nan=True, **rounding(trace, dtype))
        assert part.evaluations == found[2].evaluations


@pytest.mark.parametrize("method", ["solver", "quadrature"])
def test_no_more_events_are_evaluated_at_a_time_than_fit(method):
    told = Told()
    estimator = Denoising(DiagonalSDE(VP(), Identity((N,))), told)
    x, condition = torch.zeros(7, N), torch.zeros(7, 1)
    kept = Quadrature(3).buffer_size(4, 1) if method == "quadrature" else 0
    with limits.memory_limit(2 * 3 * (100 + kept) * N * 4), torch.no_grad():
        log_prob(estimator, x, METHODS[method], condition=condition, errors=False)
    assert {*told.seen} <= {3, 1}
    assert max(told.seen) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("single", [True, False], ids=["one generator", "one per event"])
def test_bounds_of_events_in_parts_are_those_of_all_together(single, dtype):
    torch.manual_seed(0)
    told = Told()
    estimator = Denoising(DiagonalSDE(VP(), Identity((N,))), told).to(dtype)
    x = torch.linspace(-1, 1, 6 * N, dtype=dtype).reshape(2, 3, N)
    condition, found = torch.linspace(0, 1, 6, dtype=dtype).reshape(2, 3, 1), []
    for count in (2, 10**6):
        seeds = range(1 if single else 6)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = generators[0] if single else generators
        with limits.memory_limit(2 * count * 100 * N * dtype.itemsize), torch.no_grad():
            options = {"condition": condition, "generator": generator, "draws": 2}
            found.append(bound(estimator, x, **options))
    assert told.seen == [2] * 6 + [12]
    torch.testing.assert_close(*found)
