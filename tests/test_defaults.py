"""Torch's default device and dtype are for what a user makes: a model works where it is.

On the default device ``meta`` tensors have no numbers. Whatever is made without a device while a
model on the CPU is asked, and generators that are asked for numbers elsewhere, show at once.
"""

import pytest
import torch
from torch.distributions import Independent, LogNormal, Uniform

from estimators import (
    Denoising,
    Gaussian,
    GaussianMixture,
    Guidance,
    MultiScale,
    ResidualMLP,
    Truncated,
    measure,
)
from scoresde import (
    DCT,
    EDM,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    Learned,
    Quadrature,
    ScoreDistribution,
    bound,
    condition,
    log_prob,
)
from scoresde.data import Dataset, dequantize, split
from scoresde.inference import Coordinates, Posterior, simulate
from scoresde.likelihood import importance
from scoresde.sampling.grid import GRIDS
from scoresde.training import Training
from solvers import (
    DDIM,
    SRA,
    Adaptive,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialRungeKutta,
    Heun,
    Langevin,
    TorchDiffEq,
    TorchSDE,
)


def learned(sde):
    return Denoising(sde, ResidualMLP(sde.basis.event_shape, 8, 1))


def staged():
    sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), 1), [1.0, 1.1], drop=[1.0, 0.9])
    return MultiScale(sde, [ResidualMLP((stage.dim,), 8, 1) for stage in sde.stages()])


def plain(kind, *arguments):
    return kind(DiagonalSDE(VP(), Identity((2,))), *arguments)


def joint():
    return DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))


MODELS = {
    "columns": lambda: learned(DiagonalSDE(VP(), Identity((3,)))),
    "bands": lambda: learned(DiagonalSDE(EDM(), DCT((4,), bands=2))),
    "learned schedule": lambda: learned(DiagonalSDE(Learned(), joint().basis)),
    "stages": staged,
    "gaussian": lambda: plain(Gaussian, torch.zeros(2), torch.eye(2)),
    "mixture": lambda: plain(
        GaussianMixture, [0.5, 0.5], torch.eye(2), torch.stack([torch.eye(2)] * 2)
    ),
    "truncated": lambda: plain(Truncated, -1.0, 1.0),
    "posterior": lambda: condition(
        Gaussian(joint(), torch.zeros(3), torch.eye(3)), clean=True, y=torch.ones(1)
    ),
    "guided": lambda: Guidance(
        plain(Gaussian, torch.zeros(2), torch.eye(2)),
        lambda x: x.sum(-1, keepdim=True),
        torch.ones(1),
        0.1,
    ),
}


def drawn(solver):
    def ask(model, x, g):
        one = [torch.Generator("cpu").manual_seed(i) for i in range(4)]
        return [solver.sample(model, (4,), generator=s) for s in (g, one, None)]

    return ask


def trained(model, x, g):
    data = Dataset("mine", x)
    Training(steps=2, batch_size=4).fit(model, data, data, progress=False)
    return [*split(data, 0.5)[0].values, *model.parameters()]


SOLVERS = [
    DDIM(3),
    Heun(3),
    ExponentialMultistep(3),
    ExponentialRungeKutta(3),
    EulerMaruyama(3, eta=1.0),
    SRA(3, eta=1.0),
    Adaptive(rtol=0.1, atol=0.1),
    TorchDiffEq(rtol=0.1, atol=0.1),
    TorchSDE(3, eta=1.0),
    DDIM(3, corrector=Langevin(), churn=0.1),
    *(DDIM(3, grid=name, final_denoise=True) for name in GRIDS),
]
EVERYONE = {
    "asked": lambda m, x, g: [m.denoise(m.sde.basis(x), 0.5), m.score(m.sde.basis(x), 0.5)],
    **{f"sampled {i} {type(s).__name__}": drawn(s) for i, s in enumerate(SOLVERS)},
    "log_prob": lambda m, x, g: [
        log_prob(m, x).value,
        log_prob(m, x, Quadrature(4, tolerance=0.0)).value,
    ],
    "walked": lambda m, x, g: [
        log_prob(m, x, DDIM(3), trace=Hutchinson(2), generator=g).value,
        log_prob(m, x, Adaptive(rtol=0.1, atol=0.1)).value,
    ],
    "distribution": lambda m, x, g: [
        ScoreDistribution(m, DDIM(3)).log_prob(x),
        ScoreDistribution(m, DDIM(3)).sample((3,)),
    ],
    "bound": lambda m, x, g: [bound(m, x, generator=g), bound(m, x), importance(m, x)(m.sde, 5)],
    "measured": lambda m, x, g: [*measure(m.sde, x).values()],
}
LEARNERS = {
    "loss": lambda m, x, g: [m.loss(x, generator=g), m.loss(x)],
    "trained": trained,
    "dequantised": lambda m, x, g: [dequantize((x > 0).long(), 2, g)],
}
FEW = {name: ask for name, ask in EVERYONE.items() if not name.startswith("sampled")}
FEW["sampled"] = drawn(DDIM(3, eta=1.0, final_denoise=True))
PAIRS = [
    pytest.param(make, ask, id=f"{name}-{what}")
    for name, make in MODELS.items()
    for what, ask in {
        **(EVERYONE if name == "columns" else FEW),
        **(LEARNERS if name in [*MODELS][:4] else {}),
    }.items()
    if (name, what) != ("posterior", "measured")
]


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_default_dtype()
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("make", "ask"), PAIRS)
def test_a_model_works_on_its_own_device(make, ask):
    model = make()
    x, g = torch.rand(4, *model.sde.basis.event_shape) / 2, torch.Generator().manual_seed(0)
    torch.set_default_device("meta")
    found = ask(model, x, g)
    torch.set_default_device(None)
    assert {v.device.type for v in found} == {"cpu"}
    assert all(v.isfinite().all() for v in found)


@pytest.mark.parametrize("kind", [Uniform, LogNormal])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_works_on_its_own_device(kind, dtype):
    """Also where much that is drawn is outside the prior's support."""
    one = torch.ones(1, dtype=dtype)
    prior = Independent(kind(-one, one), 1)
    seen = torch.tensor([[-2.0], [0.0], [2.0]], dtype=dtype)
    torch.manual_seed(0)
    torch.set_default_device("meta")
    theta, x = simulate(prior, lambda theta: theta + torch.randn_like(theta), 500)
    to = Coordinates.fit(prior, theta, x, ranks=True)
    torch.set_default_device(None)
    sde = DiagonalSDE(VP(), to.joint, to.joint.per_block(observation=0.0, parameter=1.0))
    model = Gaussian(sde, torch.zeros(3, dtype=dtype), torch.eye(3, dtype=dtype))
    torch.set_default_device("meta")
    posterior = Posterior(model, to, DDIM(3))
    assert posterior(seen.numpy()).observation.device.type == "cpu"
    drawn = posterior(seen).sample((20,))
    density = posterior(seen).log_prob(drawn)
    torch.set_default_device(None)
    assert (drawn.device.type, drawn.dtype) == ("cpu", dtype)
    assert prior.support.check(drawn).all()
    assert density.isfinite().all()


@pytest.mark.parametrize(("make", "ask"), PAIRS[::2])
def test_all_runs_with_double_precision_by_default(make, ask):
    torch.set_default_dtype(torch.float64)
    model = make()
    x, g = torch.rand(4, *model.sde.basis.event_shape) / 2, torch.Generator().manual_seed(0)
    found = ask(model, x, g)
    assert {v.dtype for v in found} == {torch.float64}
    assert all(v.isfinite().all() for v in found)
