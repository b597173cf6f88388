"""Small models whose walks are prepared and kept, and what may change of them meanwhile."""

import pytest
import torch
from models import SOLVERS
from torch import nn

from estimators import Denoising, Guidance, MultiScale, ResidualMLP
from scoresde import VP, Cosine, DiagonalSDE, FixedStep, Haar, Identity
from solvers import ExponentialRungeKutta

FIXED = {name: kind for name, kind in SOLVERS.items() if issubclass(kind, FixedStep)}
PREPARED = {**FIXED, "exponential-runge-kutta": ExponentialRungeKutta}
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
BLOCKS = {"a": 1, "b": 2}


def network(n, **options):
    torch.manual_seed(0)
    made = ResidualMLP((n,), 8, 1, **options)
    nn.init.normal_(made.output_layer[1].weight, std=0.3)
    return made


def uniform(schedule=None, **options):
    sde = DiagonalSDE(schedule or VP(), Identity((3,), BLOCKS), [1.0, 0.6])
    return Denoising(sde, network(3), data_mean=0.5, data_std=[1.0, 2.0], **options)


def staged():
    sde = DiagonalSDE(Cosine(), Haar((4,), 1), [1.0, 1.5], drop=[1.0, 0.5])
    return MultiScale(sde, [network(2), network(4)])


def guided():
    return Guidance(uniform(), lambda x: x[..., :1], torch.ones(1), 0.3)


def changes_of_tensors():
    """Of a model of a learned schedule, by name: what is written to, cast or put in its place."""

    def weights(model):
        with torch.no_grad():
            for p in model.network.parameters():
                p.mul_(0.5)

    def loaded(model):
        model.load_state_dict({k: 0.9 * v for k, v in model.state_dict().items()})

    def assigned(model):
        state = {k: 0.9 * v for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=True)

    def moments(model):
        model.data_std.mul_(2.0)

    def buffer(model):
        model.data_mean = model.data_mean + 1.0

    def learned(model):
        with torch.no_grad():
            model.sde.schedule.weight[1:].add_(torch.arange(8.0).unsqueeze(-1))

    def scale(model):
        model.sde.scale = 2.0 * model.sde.scale

    def cast(model):
        model.double()

    return {f.__name__: f for f in locals().values()}
