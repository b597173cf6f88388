"""Networks, states and data of any dtype together, and within `torch.autocast`."""

import itertools

import pytest
import torch
from torch import nn

from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    GaussianMixture,
    Guidance,
    MultiScale,
    ResidualMLP,
    Truncated,
)
from scoresde import (
    DCT,
    PCA,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    bound,
    condition,
    log_prob,
)
from scoresde.data import Dataset
from scoresde.estimator import KernelEstimator
from scoresde.training import Training
from solvers import DDIM, Adaptive, ExponentialMultistep, Heun, TorchDiffEq

F, D = torch.float32, torch.float64
PAIRS = [*itertools.product((F, D), (F, D))]
every_pair = pytest.mark.parametrize(("network", "state"), PAIRS)


class Told(nn.Module):
    """A network with a condition; in another dtype than its weights' it fails."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x, level, condition=None):
        condition = torch.zeros_like(x[:, :1]) if condition is None else condition
        return self.inner(torch.cat([x, level.unsqueeze(-1), condition], -1))


def learned(basis, dtype):
    sde = DiagonalSDE(VP(), basis)
    return Denoising(sde, ResidualMLP(basis.event_shape, 8, 1)).to(dtype)


def staged(dtype):
    sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), 1), drop=[1.0, 0.9])
    nets = [ResidualMLP((stage.dim,), 8, 1) for stage in sde.stages()]
    return MultiScale(sde, nets).to(dtype)


MODELS = {
    "vectors": lambda dtype: learned(Identity((2,)), dtype),
    "images": lambda dtype: learned(Haar((1, 4, 4), 1), dtype),
    "stages": staged,
    "posterior": lambda dtype: condition(
        learned(Joint(y=(1,), x=(2,)), dtype), y=torch.ones(1, dtype=dtype)
    ),
    "guided": lambda dtype: Guidance(
        learned(Identity((2,)), dtype), lambda x: x.sum(-1, keepdim=True), torch.ones(1), 0.1
    ),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@every_pair
@every_model
def test_states_keep_their_dtype_whatever_the_network_s_is(make, network, state):
    model = make(network)
    sde = model.sde
    z = torch.randn(3, sde.basis.dim, dtype=state)
    for ask in (model.denoise, model.score, model.noise, model.velocity):
        assert ask(z, 0.5).dtype == state
    at = sde.at(torch.tensor([[0.5], [0.7]], dtype=D), z)
    assert {ask(z).dtype for ask in model.denoisers(at)} == {state}
    for solver in (DDIM(3), Heun(3), ExponentialMultistep(3), Adaptive(rtol=0.1, atol=0.1)):
        x = solver.sample(model, (2,), dtype=state)
        assert (x.shape, x.dtype) == ((2, *sde.basis.event_shape), state)
    assert DDIM(3).sample(model, (2,)).dtype == network


@every_pair
@pytest.mark.parametrize("name", ["vectors", "images", "stages"])
def test_losses_densities_and_bounds_take_events_of_any_dtype(name, network, state):
    model = MODELS[name](network)
    x = torch.randn(3, *model.sde.basis.event_shape, dtype=state)
    for found in (model.losses(x), bound(model, x), log_prob(model, x).value):
        assert (found.shape, found.dtype) == ((3,), state)
        assert found.isfinite().all()
    model.loss(x).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {network}


@every_pair
def test_what_a_network_says_does_not_depend_on_the_state_s_dtype(network, state):
    model = learned(Identity((2,)), network)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    z = torch.randn(5, 2)
    wanted = model.double().denoise(z.double(), 0.5)
    found = model.to(network).denoise(z.to(state), 0.5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [F, D, torch.int64])
@every_pair
def test_conditions_come_in_the_network_s_dtype(network, state, kind):
    model = Denoising(DiagonalSDE(VP(), Identity((2,))), Told()).to(network)
    z, condition = torch.randn(3, 2, dtype=state), torch.ones(3, 1, dtype=kind)
    assert model.denoise(z, 0.5, condition).dtype == state
    if kind.is_floating_point:
        guided = ClassifierFree(model, torch.zeros(1), guidance=2.0)
        assert DDIM(2).sample(guided, (3,), condition=condition, dtype=state).dtype == state


@every_pair
def test_training_takes_data_of_any_dtype(network, state):
    model = learned(Identity((2,)), network)
    data = Dataset("mine", torch.randn(64, 2, dtype=state))
    history = Training(steps=4, batch_size=16).fit(model, data, data, progress=False)
    assert len(history.held_out) == 4
    assert {p.dtype for p in model.parameters()} == {network}


@pytest.mark.parametrize("network", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_are_asked_in_theirs(network):
    model = learned(Identity((2,)), network)
    x = torch.randn(3, 2)
    assert model.loss(x).dtype == F
    assert DDIM(3).sample(model, (2,), dtype=D).dtype == D
    assert log_prob(model, x, DDIM(4)).value.isfinite().all()


BASES = {
    "identity": Identity((3,)),
    "haar": Haar((4,), 1),
    "dct": DCT((4,)),
    "pca": PCA(torch.linalg.qr(torch.randn(3, 3, dtype=D)).Q),
}


def known(basis):
    """Estimators that multiply matrices, and are no networks."""
    sde, n = DiagonalSDE(VP(), basis), basis.dim
    spread = torch.eye(n) + 0.3 * torch.ones(n, n)
    gaussian = Gaussian(sde, torch.zeros(basis.event_shape), spread)
    means = torch.randn(2, *basis.event_shape)
    yield "gaussian", gaussian
    yield "mixture", GaussianMixture(sde, [0.3, 0.7], means, torch.stack([spread, 2 * spread]))
    yield "guided", Guidance(gaussian, lambda x: x @ torch.ones(n, 1), torch.ones(1), 0.1)
    slope = torch.zeros(n, n)
    slope[0, 1] = 0.7
    ends = torch.full((n,), 2.0).index_fill(0, torch.tensor([0]), torch.inf)
    yield "truncated", Truncated(sde, -ends, ends, slope=slope)


KNOWN = {b: dict(known(basis)) for b, basis in BASES.items()}
ASKED = {
    "denoise": lambda m, x: m.denoise(m.sde.basis(x), 0.5),
    "score": lambda m, x: m.score(m.sde.basis(x), 0.5),
    "sample": lambda m, x: ExponentialMultistep(6).sample(
        m, (3,), generator=torch.Generator().manual_seed(0)
    ),
    "log_prob": lambda m, x: log_prob(m, x).value,
    "ode": lambda m, x: log_prob(m, x, TorchDiffEq(6, method="midpoint")).value,
    "bound": lambda m, x: bound(m, x, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("basis", KNOWN)
@pytest.mark.parametrize("kind", KNOWN["identity"])
def test_formulas_are_exact_within_autocast(kind, basis, ask):
    """Half precision is for networks: a bound was off by a sixth, and nothing was said."""
    model = KNOWN[basis][kind]
    x = torch.rand(4, *model.sde.basis.event_shape)
    wanted = ask(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = ask(model, x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [F, D], ids=str)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_networks_run_within_autocast(ask, dtype):
    model = learned(Identity((3,)), dtype)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.rand(4, 3, dtype=dtype)
    wanted = ask(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = ask(model, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_networks_are_in_half_precision_within_autocast():
    """And what is around them is not."""
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x, level):
            seen.append(self.inner(x).dtype)
            return self.inner(x)

    model = Denoising(DiagonalSDE(VP(), Identity((2,))), Watched())
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(torch.randn(4, 2)).dtype == F
        DDIM(2).sample(model, (2,))
        log_prob(model, torch.zeros(1, 2), DDIM(1))
    assert seen[:3] == [torch.bfloat16] * 3
    assert seen[3:] == [F] * len(seen[3:])
    assert len(seen) > 3


class StandardNormal(KernelEstimator):
    """Of data that are standard normal, in all digits there are."""

    precise_kernel = True

    def denoised(self, z, kernel, condition=None):
        alpha, sigma = kernel
        return alpha * z.double() / (alpha**2 + sigma**2)


def test_answers_in_all_digits_come_back_in_those_of_states():
    model = StandardNormal(DiagonalSDE(VP(), Identity((2,))))
    z = torch.ones(3, 2, dtype=torch.float32)
    assert model.denoise(z, 0.5).dtype == torch.float32
    for solver in (DDIM(3), DDIM(3, eta=1.0, final_denoise=True)):
        assert solver.sample(model, (4,), dtype=torch.float32).dtype == torch.float32
