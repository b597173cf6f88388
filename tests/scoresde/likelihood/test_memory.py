"""Densities in chunks: as many products at a time as there is memory for, and no other numbers."""

import pytest
import torch

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, ExactTrace, Hutchinson, Identity, Quadrature, log_prob
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
    torch.nn.init.normal_(network.leave[1].weight, std=0.3)
    return Denoising(DiagonalSDE(VP(), Identity((N,))), network)


def memory_for(products, dtype):
    return limits.allow(2 * products * 100 * ROWS * N * dtype.itemsize)


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
        slope = torch.autograd.grad(value.sum(), learner.network.leave[1].weight)[0]
        found.append((value.detach(), slope))
    for other in found[:2]:
        torch.testing.assert_close(other, found[2])


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
            log_prob(learner, x, DDIM(steps), trace=TRACES[trace])
        found.append(calls.summary())
    assert {(each["reads"], each["copies"]) for each in found} == {(1, 0)}
    assert len({each["queued"] for each in found}) == 1
