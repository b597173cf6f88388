"""Networks that torch.func does not take have the derivatives that they have."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from estimators import Denoising, Guidance
from scoresde import SDE, VP, DiagonalSDE, ExactTrace, Hutchinson, Identity, Quadrature, log_prob
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset
from scoresde.estimator import DirectScoreEstimator
from scoresde.internals.derivatives import batched, vjp
from scoresde.likelihood import HutchPlusPlus
from scoresde.reverse import ProbabilityFlow
from solvers import DDIM, Adaptive

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class OldTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, slope):
        (y,) = ctx.saved_tensors
        return slope * (1 - y * y)


class NumpyTanh(torch.autograd.Function):
    """Nothing of it can be batched, or differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        y = np.tanh(x.detach().numpy())
        ctx.y = y
        return torch.from_numpy(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return torch.from_numpy(slope.numpy() * (1 - ctx.y**2))


KINDS = {
    "plain": lambda f, x: torch.tanh(f(x)),
    "checkpoint": lambda f, x: checkpoint(lambda x: torch.tanh(f(x)), x, use_reentrant=False),
    "reentrant": lambda f, x: checkpoint(lambda x: torch.tanh(f(x)), x, use_reentrant=True),
    "old": lambda f, x: OldTanh.apply(f(x)),
    "numpy": lambda f, x: NumpyTanh.apply(f(x)),
}
TWICE = ("checkpoint", "old")


class Network(nn.Module):
    def __init__(self, kind):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last, self.kind = nn.Linear(3, 8), nn.Linear(8, 2), kind
        for p in self.parameters():
            nn.init.normal_(p, std=0.5, generator=generator)

    def forward(self, x, level):
        x = torch.cat([x, level.reshape(-1, 1).expand(len(x), 1)], -1)
        return self.last(KINDS[self.kind](self.first, x))


def model(kind, dtype):
    return Denoising(DiagonalSDE(VP(), Identity((2,))), Network(kind)).to(dtype)


def close(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 0}


def events(dtype):
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.covering(2)
@DTYPES
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "trace", [ExactTrace(), ExactTrace(1), Hutchinson(2), HutchPlusPlus(1, 1)], ids=repr
)
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plain"])
@pytest.mark.parametrize("method", [Quadrature(8, tolerance=0.0), DDIM(4)], ids=repr)
def test_log_densities_are_those_of_a_plain_network(method, kind, trace, gradients, dtype):
    x = events(dtype)
    found, wanted = model(kind, dtype), model("plain", dtype)
    with torch.set_grad_enabled(gradients):
        both = [
            log_prob(m, x, method, trace=trace, generator=torch.Generator().manual_seed(0))
            for m in (found, wanted)
        ]
    torch.testing.assert_close(both[0].value, both[1].value, **close(dtype))
    assert both[0].value.requires_grad == gradients
    assert all(p.grad is None for p in found.parameters())


@DTYPES
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plain"])
def test_so_are_evaluations_adaptive_densities_and_inference_mode(kind, dtype):
    x = events(dtype)
    both = [model(k, dtype) for k in (kind, "plain")]
    nats = [evaluate(m, Dataset("events", x), DDIM(4))["nats"] for m in both]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
    with torch.inference_mode():
        found, wanted = (log_prob(m, x, Adaptive(rtol=1e-2, atol=1e-2)).value for m in both)
        torch.testing.assert_close(found, wanted, **close(dtype))


@DTYPES
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", TWICE)
def test_gradients_of_densities_are_those_of_a_plain_network(kind, checkpointing, dtype):
    x, slopes = events(dtype).requires_grad_(), []
    for one in (model(kind, dtype), model("plain", dtype)):
        value = log_prob(one, x, Quadrature(6), checkpointing=checkpointing).value.sum()
        slopes.append(torch.autograd.grad(value, [x, *one.parameters()]))
    for found, wanted in zip(*slopes, strict=True):  # rounding is of the largest of the terms
        size = wanted.abs().max()
        torch.testing.assert_close(found / size, wanted / size, **close(dtype))


@pytest.mark.parametrize("kind", ["reentrant", "numpy"])
def test_what_has_no_second_derivatives_says_so(kind):
    value = log_prob(model(kind, torch.float32), events(torch.float32), DDIM(2)).value
    with pytest.raises(RuntimeError, match=r"use_reentrant=False|differentiate twice"):
        value.sum().backward()


def test_gradients_that_were_there_are_left_alone():
    one = model("reentrant", torch.float64)
    for p in one.parameters():
        p.grad = torch.ones_like(p)
    kept = [p.grad for p in one.parameters()]
    log_prob(one, events(torch.float64), DDIM(2))
    for p, grad in zip(one.parameters(), kept, strict=True):
        assert p.grad is grad
        assert (grad == 1).all()


@DTYPES
@pytest.mark.parametrize("method", ["moments", "isotropic", "point"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plain"])
def test_guidance_is_that_of_a_plain_network(kind, method, dtype):
    def operator(x):
        return x.sum(-1, keepdim=True)

    samples = []
    for k in (kind, "plain"):
        one = model(k, dtype)
        with torch.no_grad():  # the gradient of something convex: its slopes are covariances
            one.network.last.weight.copy_(one.network.first.weight[:, :2].mT)
        guided = Guidance(one, operator, torch.ones(1), 0.1, method=method)
        samples.append(DDIM(4).sample(guided, (3,), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*samples, **close(dtype))


def test_a_diffusion_may_checkpoint():
    """``div g^2`` where ``g^2 = 1 + y^2`` is ``2 y``."""

    class Mine(SDE):
        def f(self, t, y):
            return torch.zeros_like(y)

        def g(self, t, y):
            return checkpoint(lambda y: (1 + y**2).sqrt(), y, use_reentrant=False)

    class Still(DirectScoreEstimator):
        def score(self, z, t, condition=None):
            return torch.zeros_like(z)

    sde, z = Mine((2,)), torch.randn(3, 2)
    flow = ProbabilityFlow(Still(sde))
    torch.testing.assert_close(flow.f(torch.tensor(0.5), z), -z)


def test_plain_functions_are_not_recorded(monkeypatch):
    monkeypatch.setattr("scoresde.internals.derivatives._recorded", None)
    log_prob(model("plain", torch.float32), events(torch.float32), DDIM(2))


def test_errors_of_ones_own_are_told():
    def wrong(x):
        return x @ torch.zeros(7, 7)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vjp(wrong, torch.zeros(3, 2))


@pytest.mark.parametrize("known", [True, False])
def test_what_is_recorded_is_so_once(known):
    """However many products are asked for, also of what forgets its argument."""
    calls, weight = [], torch.ones(2, requires_grad=True)

    def function(z):
        calls.append(z)
        return OldTanh.apply(z * weight if known else weight)

    with torch.no_grad():
        _, pull_back = vjp(function, torch.randn(2))
        first, second = (pull_back(torch.ones(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(calls) == 2  # by torch.func, in vain, and by autograd


def test_a_function_that_forgets_its_argument_has_no_slope():
    value, pull_back = vjp(lambda z: OldTanh.apply(torch.ones(2)), torch.randn(2))
    torch.testing.assert_close(value, torch.tanh(torch.ones(2)))
    assert pull_back(torch.ones(2)).tolist() == [0, 0]
    weight = torch.ones(2, requires_grad=True)
    _, pull_back = vjp(
        lambda z: checkpoint(lambda _: weight.tanh(), z, use_reentrant=True), torch.randn(2)
    )
    assert pull_back(torch.ones(2)).tolist() == [0, 0]


def test_partial_derivatives_hold_the_rest():
    """Also of what depends on the same tensor."""
    x = torch.tensor([3.0], requires_grad=True)
    other = x * 5
    _, pull_back = vjp(lambda z: OldTanh.apply(z) + other * z, x)
    wanted = 1 - torch.tanh(x) ** 2 + 15
    torch.testing.assert_close(pull_back(torch.ones(1)), wanted)
    # and second derivatives go through both
    (found,) = torch.autograd.grad(pull_back(torch.ones(1)), x)
    tanh = torch.tanh(x.detach())
    torch.testing.assert_close(found, -2 * tanh * (1 - tanh**2) + 5)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_vectors_are_taken_together_or_one_by_one(chunk):
    matrix = torch.randn(3, 3)
    for product in (lambda v: v @ matrix, lambda v: torch.from_numpy(v.numpy() @ matrix.numpy())):
        torch.testing.assert_close(batched(product, torch.eye(3), chunk), matrix)
