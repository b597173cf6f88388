"""Equations by the score: their drift and noise in closed form, and those of some samples."""

import pytest
import readings
import torch
from models import OrnsteinUhlenbeck

from estimators import Gaussian
from scoresde import (
    CLD,
    VP,
    DiagonalSDE,
    Identity,
    Joint,
    ProbabilityFlow,
    ReverseSDE,
    ScoreEstimator,
)
from scoresde.conditioning import condition

pytestmark = pytest.mark.usefixtures("float64")

every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
MAKES = {
    "flow": (ProbabilityFlow, 0.0, 1),
    "reverse": (lambda *given, **told: ReverseSDE(*given, 1.0, **told), 1.0, -1),
    "between": (lambda *given, **told: ReverseSDE(*given, 0.5, **told), 0.5, -1),
}
every_equation = pytest.mark.parametrize("make", MAKES)


def bed():
    joint = Joint(y=(1,), x=(2,))
    sde = DiagonalSDE(
        VP(), joint, joint.per_block(y=0.7, x=1.0), scale=joint.per_block(y=0.5, x=2.0)
    )
    return Gaussian(sde, torch.tensor([0.3, -1.0, 2.0]), torch.diag(torch.tensor([1.0, 0.2, 3.0])))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(
    "sde", [bed().sde, OrnsteinUhlenbeck((3,)), CLD(VP(), Identity((3,)))], ids=type
)
def test_what_multiplies_forcings_by_length_is_so_by_time(sde, eta):
    """By each other's rate: ``F`` counts as much, whatever a step is measured in."""
    sde = sde.to(torch.float64)
    at = readings.reverse(sde, torch.tensor([[0.2], [0.9]]), torch.zeros(2, sde.dim), eta)
    torch.testing.assert_close(at.response_by_length * at.length_rate, at.response)


@every_precision
@every_equation
def test_drift_and_noise_of_every_sample(make, dtype):
    """``f - (1 + eta^2)/2 g^2 s`` and ``eta g``, in the time that the equation has."""
    kind, eta, sign = MAKES[make]
    model, z, t = bed(), torch.randn(4, 3, dtype=dtype), torch.tensor(0.3, dtype=dtype)
    equation, g = kind(model), model.sde.g(t, z)
    wanted = sign * (model.sde.f(t, z) - (1 + eta**2) / 2 * g**2 * model.score(z, t))
    torch.testing.assert_close(equation.f(sign * t, z), wanted)
    torch.testing.assert_close(equation.g(sign * t, z), eta * g)


class Told(ScoreEstimator):
    """Denoises to what a condition says of every sample."""

    def denoise(self, z, t, condition=None):
        return condition.expand_as(z)


@every_precision
@every_equation
def test_some_samples_have_their_own_condition_and_observation(make, dtype):
    kind = MAKES[make][0]
    model, rows, batch = bed(), torch.tensor([5, 0, 5]), (2, 3)
    known = condition(model, clean=True, y=torch.randn(*batch, 1))
    told = torch.randn(*batch, 1, dtype=dtype)
    for equation in (kind(known), kind(Told(model.sde), condition=told)):
        z = torch.randn(*batch, 3, dtype=dtype)
        few, t = equation.select(rows, batch), equation.span[0] / 2
        assert type(few) is type(equation)
        at = torch.tensor(t, dtype=dtype)
        some = z.reshape(6, 3)[rows]
        fields = zip(equation.field(at, z)._asdict().items(), few.field(at, some), strict=True)
        for (name, field), selected in fields:
            if name != "increment":
                whole = field(z).reshape(6, 3)[rows]
                torch.testing.assert_close(selected(some), whole, msg=name)
