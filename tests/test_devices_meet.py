"""Models on one device, and what they are given on another."""

import pytest
import torch
from torch import nn

from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import (
    PCA,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    ScoreDistribution,
    bound,
    condition,
    log_prob,
)
from scoresde.app.evaluation import evaluate
from scoresde.precision import expect_near
from scoresde.testing import DeviceCalls
from solvers import DDIM


class Told(nn.Module):
    """A network that is told what it is conditioned on."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x, level, condition=None):
        given = torch.zeros_like(x[:, :1]) if condition is None else condition
        return self.inner(torch.cat([x, given], -1))


def plain():
    return Denoising(DiagonalSDE(VP(), Identity((3,))), Told())


def rotated():
    return Denoising(DiagonalSDE(VP(), PCA(torch.eye(3))), Told())


def staged():
    sde = DiagonalSDE(Cosine(), Haar((4,), 1), drop=[1.0, 0.5])
    return MultiScale(sde, [ResidualMLP((2,), 8, 1), ResidualMLP((4,), 8, 1)])


def joint():
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))
    return Denoising(sde, ResidualMLP((3,), 8, 1, noise_levels=3), observe="blocks")


MODELS = {"plain": plain, "rotated": rotated, "stages": staged, "joint": joint}
ASKED = {
    "loss": lambda m, x: m.loss(x),
    "losses": lambda m, x: m.losses(x),
    "log_prob": lambda m, x: log_prob(m, x),
    "walked": lambda m, x: log_prob(m, x, DDIM(3)),
    "bound": lambda m, x: bound(m, x),
    "distribution": lambda m, x: ScoreDistribution(m, DDIM(3)).log_prob(x),
}
PLACES = [("cpu", "meta"), ("meta", "cpu")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("here", "there"), PLACES)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_events_on_another_device_are_refused_in_a_sentence(make, ask, here, there, dtype):
    model = make().to(here, dtype)
    x = torch.zeros(2, *model.sde.basis.event_shape, device=there, dtype=dtype)
    wanted = f"^x: expected a tensor on {here}, where the model is, got one on {there}$"
    with pytest.raises(ValueError, match=wanted), DeviceCalls():
        ask(model, x)


@pytest.mark.parametrize(("here", "there"), PLACES)
def test_conditions_on_another_device_are_refused_in_a_sentence(here, there):
    model, x = plain().to(here), torch.zeros(2, 3, device=here)
    known = torch.zeros(2, 1, device=there)
    wanted = f"^condition: expected a tensor on {here}, where the model is, got one on {there}$"
    for ask in (
        lambda: DDIM(3).sample(model, (2,), condition=known),
        lambda: model.loss(x, known),
        lambda: log_prob(model, x, condition=known),
        lambda: model.score(x, 0.5, known),
    ):
        with pytest.raises(ValueError, match=wanted), DeviceCalls():
            ask()


@pytest.mark.parametrize(("here", "there"), PLACES)
def test_observations_on_another_device_are_refused_in_a_sentence(here, there):
    model = joint().to(here)
    wanted = f"^y: expected a tensor on {here}, where the model is, got one on {there}$"
    with pytest.raises(ValueError, match=wanted):
        condition(model, y=torch.zeros(1, device=there))


def test_what_has_no_numbers_is_anywhere():
    x = torch.zeros(2, 3, device="meta")
    for module, value in ((nn.Identity(), x), (len, x), (nn.Linear(1, 1), "a word")):
        expect_near("x", value, module)


def test_asking_where_events_are_waits_for_nothing():
    model = plain().to("meta")
    x = torch.zeros(2, 3, device="meta")
    with DeviceCalls() as calls:
        model.states(x)
    assert not any(calls.summary()[name] for name in ("operations", "copies", "reads"))


def test_an_evaluation_takes_its_events_to_the_model():
    with DeviceCalls():
        report = evaluate(plain().to("meta"), torch.zeros(3, 3), DDIM(3))
    assert report["count"] == 3
