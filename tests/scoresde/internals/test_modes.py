"""Networks are asked in evaluation mode, and left as they were."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity, Quadrature, ScoreDistribution, bound, log_prob
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset
from scoresde.internals.modes import evaluation_mode
from scoresde.likelihood import importance
from solvers import DDIM, Langevin


class Own(nn.Module):
    """Drops out by a function, which no search for modules finds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, level):
        return functional.dropout(self.layer(x), 0.5, self.training)


class Crowd(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x, level):
        return self.norm(x)


NETWORKS = {
    "layers": lambda: ResidualMLP((2,), 8, 1, dropout=0.5),
    "function": Own,
    "batch statistics": Crowd,
}
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
USES = {
    "sample": lambda m: DDIM(5).sample(m, (4,), generator=torch.Generator().manual_seed(0)),
    "rsample": lambda m: DDIM(5).rsample(m, (4,), generator=torch.Generator().manual_seed(0)),
    "corrected": lambda m: DDIM(5, corrector=Langevin(), final_denoise=True).sample(
        m, (4,), generator=torch.Generator().manual_seed(0)
    ),
    "trajectory": lambda m: list(
        DDIM(5).trajectory(m, (4,), generator=torch.Generator().manual_seed(0))
    )[-1][1],
    "log_prob": lambda m: log_prob(m, X, Quadrature(5)).value,
    "distribution": lambda m: ScoreDistribution(m, DDIM(3)).log_prob(X),
    "bound": lambda m: torch.no_grad()(bound)(m, X, generator=torch.Generator().manual_seed(0)),
    "importance": lambda m: importance(m, X, generator=torch.Generator().manual_seed(0))(m.sde, 9),
    "evaluate": lambda m: torch.tensor(evaluate(m, Dataset("x", X), DDIM(3))["nats"]),
}


def model(name):
    one = Denoising(DiagonalSDE(VP(), Identity((2,))), NETWORKS[name]())
    for p in one.network.parameters():
        nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(0))
    return one


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_asked_in_training_is_what_is_asked_in_evaluation(name, use):
    one = model(name)
    one.network.get_submodule(next(iter(dict(one.network.named_children())))).eval()
    modes = [m.training for m in one.modules()]
    assert len(set(modes)) == 2
    found = USES[use](one)
    assert [m.training for m in one.modules()] == modes
    torch.testing.assert_close(found, USES[use](one.eval()), rtol=0, atol=0)


def test_gradients_that_ask_anew_ask_the_same():
    one = model("layers")
    slopes = []
    for train in (True, False):
        one.train(train)
        value = log_prob(one, X, DDIM(3), checkpointing=True).value.sum()
        slopes.append(torch.autograd.grad(value, list(one.network.parameters())))
    for found, wanted in zip(*slopes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_modes_come_back_after_an_error():
    network = nn.Dropout()
    with pytest.raises(ZeroDivisionError), evaluation_mode(network):
        1 / 0  # noqa: B018
    assert network.training


def test_the_last_of_several_threads_gives_modes_back():
    network, first, second = nn.Dropout(), threading.Event(), threading.Event()

    def late():
        with evaluation_mode(network):
            first.set()
            second.wait()

    thread = threading.Thread(target=late, daemon=True)
    with evaluation_mode(network):
        thread.start()
        first.wait()
    found = network.training
    second.set()
    thread.join()
    assert not found
    assert network.training


def test_a_trajectory_that_is_not_followed_holds_nothing():
    one = model("layers")
    walk = DDIM(5).trajectory(one, (2,))
    next(walk)
    assert one.network.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["layers", "function"])
def test_a_bound_to_be_minimised_is_one_of_training(name):
    """As any loss: dropout is what regularises it."""

    one = model(name)
    found = [
        bound(one.train(mode), X, generator=torch.Generator().manual_seed(0))
        for mode in (True, False)
    ]
    assert all(value.requires_grad for value in found)
    assert not torch.equal(*found)
