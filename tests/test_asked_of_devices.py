"""What sampling asks of a device, by every planned solver that is installed."""

import pytest
import torch
from models import SOLVERS

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, FixedStep, Identity
from scoresde.testing import DeviceCalls

PLANNED = {name: kind for name, kind in SOLVERS.items() if issubclass(kind, FixedStep)}


def asked(solver, blocks=2):
    names = {str(i): 2 for i in range(blocks)}
    sde = DiagonalSDE(VP(), Identity((2 * blocks,), names), torch.linspace(0.6, 1, blocks).tolist())
    model = Denoising(sde, ResidualMLP((2 * blocks,), 8, 1)).to("meta")
    with DeviceCalls() as calls:
        solver.sample(model, (4,))
    return calls.summary()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", PLANNED.values(), ids=PLANNED)
def test_a_sample_is_read_once_and_copied_to_as_often_whatever_the_steps(solver, eta):
    if eta and solver(1).weak_order is None:
        return
    few, many = asked(solver(3, eta=eta)), asked(solver(5, eta=eta))
    wide = [asked(solver(n, eta=eta), blocks=20) for n in (3, 5)]
    for found in (few, many, *wide):
        assert (found["reads"], found["copies"], found["drawn"]) == (1, 0, 0)
        assert found["queued"] == few["queued"]
    assert wide[1]["operations"] - wide[0]["operations"] == many["operations"] - few["operations"]
