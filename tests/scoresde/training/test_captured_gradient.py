"""Gradients that are captured once are those that are computed anew.

There is no graph here: what stands for one runs the function where its inputs lie, which is all
that a graph does.
"""

import pytest
import torch
from torch import nn

from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import VP, Clock, DiagonalSDE, Haar, Identity, LogLinear
from scoresde.conditioning import AnnealedClock
from scoresde.data import Dataset
from scoresde.training import Training, captured_gradient

SHAPE = (2, 4, 4)
IMAGES = Dataset("images", torch.arange(60 * 32).reshape(60, *SHAPE) * 7 % 5, bins=5, flip=True)
LABELLED = Dataset("labels", torch.randn(60, 2), condition=torch.arange(60) % 3)


class Replayed:
    """Stands for `Captured`."""

    made = 0

    def __init__(self, function, inputs, generators, *, expected):
        Replayed.made += 1
        self.function, self.inputs = function, list(inputs)
        for _ in range(3):
            function(self.inputs)

    def __call__(self, inputs):
        for mine, new in zip(self.inputs, inputs, strict=True):
            mine.copy_(new)
        return self.function(self.inputs).clone()


class Convolutions(nn.Module):
    """With dropout, which draws from torch's own generator, and statistics of batches."""

    def __init__(self):
        super().__init__()
        self.input_layer, self.output_layer = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 2, 3, padding=1),
        )
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.3)

    def forward(self, x, level):
        return self.output_layer(
            self.dropout(self.norm(self.input_layer(x)).tanh()) + level.view(-1, 1, 1, 1)
        )


def images():
    return Denoising(DiagonalSDE(LogLinear(), Identity(SHAPE)), Convolutions())


def stages():
    sde = DiagonalSDE(LogLinear(), Haar(SHAPE, 1), drop=[1.0, 0.6])
    return MultiScale(sde, lambda shape: ResidualMLP(shape, 8, 1), shares=[1.0, 0.5])


def labels():
    network = ResidualMLP((2,), 8, 1, classes=3)
    return Denoising(DiagonalSDE(VP(), Identity((2,))), network)


CASES = {"images": (images, IMAGES), "stages": (stages, IMAGES), "labels": (labels, LABELLED)}


@pytest.fixture
def graphs(monkeypatch):
    """On a machine that has none."""
    monkeypatch.setattr(Replayed, "made", 0)
    monkeypatch.setattr(captured_gradient, "captures", lambda device: True)
    monkeypatch.setattr(captured_gradient, "Captured", Replayed)


def fitted(make, data, dtype, **options):
    torch.manual_seed(0)
    model = make().to(dtype)
    training = Training(steps=6, batch_size=12, measurements=2, lr=5e-3, **options)
    history = training.fit(model, data, data, progress=False)
    return [*model.state_dict().values()], history


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_what_is_learned_is_the_same_to_the_last_bit(name, dtype, request):
    wanted, measured = fitted(*CASES[name], dtype)
    request.getfixturevalue("graphs")
    found, history = fitted(*CASES[name], dtype, capture=True)
    assert all(map(torch.equal, found, wanted))
    assert (history.losses, history.held_out) == (measured.losses, measured.held_out)
    assert Replayed.made == 1


def test_weights_that_have_moved_are_captured_anew(graphs):
    def move(step):
        if step == 3:
            for weight in model.parameters():
                weight.data = weight.data.clone()

    model = images()
    Training(steps=6, batch_size=12, capture=True).fit(model, IMAGES, progress=False, on_step=move)
    assert Replayed.made == 2


def test_where_there_are_no_graphs_nothing_is_captured():
    wanted = fitted(*CASES["stages"], torch.float32)[0]
    assert all(map(torch.equal, fitted(*CASES["stages"], torch.float32, capture=True)[0], wanted))


def test_what_changes_between_updates_is_refused():
    sde = DiagonalSDE(VP(), Identity((2,)), AnnealedClock(Clock(), torch.ones(1), VP(), 4))
    model = Denoising(sde, ResidualMLP((2,), 8, 1))
    wanted = "capture: expected an estimator that is the same .* got a AnnealedClock"
    with pytest.raises(ValueError, match=wanted):
        Training(steps=2, capture=True).fit(model, torch.randn(9, 2), progress=False)
    with pytest.raises(ValueError, match="accumulation: expected 1, as capture takes whole"):
        Training(capture=True, accumulation=2)
    with pytest.raises(ValueError, match="capture: expected one process, got 2"):
        captured_gradient.expect_capturable(model, 2)
