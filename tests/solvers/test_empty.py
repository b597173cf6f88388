"""Nothing in, nothing out: empty batches have empty answers."""

import pytest
import torch
from models import SOLVERS

from estimators import (
    Denoising,
    Gaussian,
    GaussianMixture,
    Guidance,
    MultiScale,
    PartNetwork,
    ResidualMLP,
    Truncated,
)
from scoresde import (
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    Noise,
    Quadrature,
    ReverseSDE,
    ScoreDistribution,
    bound,
    condition,
    log_prob,
)
from scoresde.likelihood import HutchPlusPlus
from scoresde.sampling.grid import GRIDS
from solvers import DDIM, Adaptive, ExponentialMultistep, Langevin, TorchDiffEq

SDE = DiagonalSDE(VP(), Identity((2,)))
JOINT = DiagonalSDE(VP(), Joint(y=(1,), x=(1,)))
STAGED = DiagonalSDE(Cosine(), Haar((1, 4, 4), 1), drop=[1.0, 0.5])
EMPTY = [(0,), (2, 0), (0, 3)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
batches = pytest.mark.parametrize("batch", EMPTY, ids=str)


def network(**options):
    body = ResidualMLP((2,), 8, 1, noise_levels=options.pop("noise_levels", 1))
    return Denoising(SDE, body, **options)


def gaussian(sde=SDE):
    return Gaussian(sde, torch.zeros(2), torch.eye(2))


def guided(method):
    return Guidance(
        gaussian(), lambda x: x.sum(-1, keepdim=True), torch.ones(1), 0.1, method=method
    )


MODELS = {
    "network": network,
    "baseline": lambda: network(baseline=Truncated(SDE, 0.0, 1.0)),
    "any conditional": lambda: network(noise_levels=2, observe="components"),
    "part": lambda: Denoising(
        JOINT, PartNetwork(JOINT.basis, "x", ResidualMLP((1,), 8, 1, condition_dim=1))
    ),
    "gaussian": gaussian,
    "mixture": lambda: GaussianMixture(SDE, [0.5, 0.5], torch.eye(2), [torch.eye(2)] * 2),
    "truncated": lambda: Truncated(SDE, 0.0, 1.0),
    "multi-scale": lambda: MultiScale(
        STAGED, [ResidualMLP((stage.dim,), 8, 1) for stage in STAGED.stages()]
    ),
    "conditional": lambda: condition(gaussian(JOINT), clean=True, y=torch.ones(1)),
    "moments": lambda: guided("moments"),
    "isotropic": lambda: guided("isotropic"),
    "point": lambda: guided("point"),
}


@DTYPES
@batches
@pytest.mark.parametrize("name", MODELS)
def test_estimators(name, batch, dtype):
    model = MODELS[name]().to(dtype)
    z = torch.zeros(*batch, model.sde.basis.dim, dtype=dtype)
    for question in (model.denoise, model.score, model.noise, model.velocity):
        for t in (0.5, torch.tensor(0.5), torch.full(batch, 0.5)):
            answer = question(z, t)
            assert (answer.shape, answer.dtype) == (z.shape, dtype)
    event = model.sde.basis.event_shape
    x = DDIM(3).sample(model, batch)
    assert (x.shape, x.dtype) == ((*batch, *event), dtype if list(model.parameters()) else x.dtype)
    found = log_prob(model, torch.zeros(*batch, *event, dtype=dtype))
    assert found.value.shape == found.standard_error.shape == batch
    assert found.evaluations == 0
    distribution = ScoreDistribution(model, DDIM(3))
    assert distribution.sample(batch).shape == (*batch, *event)
    assert distribution.log_prob(torch.zeros(*batch, *event, dtype=dtype)).shape == batch


@batches
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name, eta, batch):
    solver, model = SOLVERS[name](3, eta=eta), network()
    if eta and solver.weak_order is None:
        return
    assert solver.sample(model, batch).shape == (*batch, 2)
    assert solver.sample(model, batch, generator=[]).shape == (*batch, 2)
    # also if asked themselves
    reverse, ts = ReverseSDE(model, eta), -GRIDS["log_snr"](SDE, 3)
    end = solver.integrate(reverse, torch.zeros(*batch, 2), ts, Noise([]))
    assert end.shape == (*batch, 2)
    with pytest.raises(ValueError, match="generator: expected one generator, or 0"):
        solver.sample(model, (0,), generator=[torch.Generator()])


@batches
@pytest.mark.parametrize("extra", ["corrector", "churn", "final_denoise"])
def test_what_solvers_do_besides(extra, batch):
    value = {"corrector": Langevin(), "churn": 0.1, "final_denoise": True}[extra]
    solver = DDIM(3, eta=1.0, **{extra: value})
    assert solver.sample(network(), batch, generator=[]).shape == (*batch, 2)
    assert [z.shape[:-1] for _, z in solver.trajectory(network(), batch)][-1] == batch


@batches
@pytest.mark.parametrize("trace", [ExactTrace(), ExactTrace(1), Hutchinson(2), HutchPlusPlus(1, 1)])
@pytest.mark.parametrize(
    "method", [Quadrature(5), Quadrature(5, tolerance=None), DDIM(3), Adaptive(), TorchDiffEq()]
)
def test_densities(method, trace, batch):
    found = log_prob(network(), torch.zeros(*batch, 2), method, trace=trace, generator=[])
    assert found.value.shape == found.standard_error.shape == batch


@DTYPES
def test_noise_and_bounds(dtype):
    for noise in (Noise(), Noise([]), Noise(torch.Generator())):
        like = torch.empty(0, 2, dtype=dtype)
        assert noise(like).shape == noise.uniform(like).shape == (0, 2)
        assert noise.stratified(like, 3).shape == (3, 0)
        prior = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        assert noise.draw(prior, like).shape == (0, 2)
    assert bound(network().to(dtype), torch.zeros(0, 2, dtype=dtype), draws=2).shape == (0,)


def test_conditions():
    network = ResidualMLP((2,), 8, 1, condition_dim=3)
    model, none = Denoising(SDE, network), torch.zeros(0, 3)
    assert ExponentialMultistep(3).sample(model, (0,), condition=none).shape == (0, 2)
    assert log_prob(model, torch.zeros(0, 2), condition=none).value.shape == (0,)
    several = ScoreDistribution(model, DDIM(3), condition=torch.zeros(4, 3))
    assert several.sample((0,)).shape == (0, 4, 2)
    assert several.log_prob(torch.zeros(0, 4, 2)).shape == (0, 4)
