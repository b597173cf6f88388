"""What is asked of a device: by every planned solver, and whatever the number of blocks."""

from contextlib import suppress

import pytest
import torch
from models import SOLVERS
from torch import nn

from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import (
    VP,
    Clock,
    DiagonalSDE,
    FixedStep,
    Haar,
    Hutchinson,
    Identity,
    Learned,
    bound,
    log_prob,
)
from scoresde.testing import DeviceCalls
from scoresde.training import training
from solvers import DDIM

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


MOST_PREPARED = {"ddim": 150, "exponential-multistep": 260}
"""Operations of the CPU before a first sample of an SDE with two blocks: a few reads of it."""


@pytest.mark.parametrize("solver", MOST_PREPARED)
def test_what_a_first_sample_prepares_is_little_and_the_same_whatever_the_steps(solver):
    few, many = (asked(SOLVERS[solver](steps))["host"] for steps in (5, 50))
    assert few == many <= MOST_PREPARED[solver]


class Scaled(nn.Module):
    """One operation, and a weight to learn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, level):
        return self.weight * x


def asked_by_stages(levels):
    """Operations of a multi-scale loss, and of its gradient."""
    basis = Haar((1, 16, 16), levels)
    sde = DiagonalSDE(VP(), basis, drop=torch.linspace(1, 0.4, levels + 1).tolist())
    model = MultiScale(sde, [Scaled() for _ in sde.stages()]).to("meta")
    x = torch.empty(4, 1, 16, 16, device="meta")
    model.loss(x)
    with DeviceCalls() as calls:
        loss = model.loss(x)
        forwards = calls.operations.total()
        loss.backward()
    return forwards, calls.operations.total() - forwards


def test_a_further_stage_costs_few_operations():
    """Those of its own times and noise, and of the transform: what the schedule says is shared."""
    (few, back), (more, further) = asked_by_stages(2), asked_by_stages(3)
    assert more - few <= 35
    assert further - back <= 22


def sized(count):
    return Identity((2 * count,), {str(i): 2 for i in range(count)})


def spread(low, high, count):
    return nn.Parameter(torch.linspace(low, high, count))


KINDS = {
    "learned per block": lambda n: DiagonalSDE(Learned(n), sized(n), torch.linspace(0.5, 1, n)),
    "learned rates": lambda n: DiagonalSDE(VP(0.1, spread(10, 20, n)), sized(n)),
    "learned speeds": lambda n: DiagonalSDE(VP(), sized(n), Clock(spread(0.5, 1, n))),
    "fixed": lambda n: DiagonalSDE(
        VP(0.1, torch.linspace(10, 20, n)),
        sized(n),
        Clock(torch.linspace(1, 2, n), torch.linspace(0, 0.4, n)),
        torch.linspace(1, 2, n),
    ),
}
HOST = "reads", "copies", "queued", "drawn"


def host(call):
    with DeviceCalls() as calls:
        call()
    return {name: calls.summary()[name] for name in HOST}


def on_meta(name, count):
    sde = KINDS[name](count)
    return Denoising(sde, ResidualMLP((2 * count,), 8, 1), data_std=torch.linspace(1, 2, count))


@pytest.mark.parametrize("name", KINDS)
def test_nothing_that_is_asked_grows_with_the_number_of_blocks(name):
    """Of a loss, of a first and another sample, of bounds and log-densities."""
    found = {}
    for count in (2, 12):
        model = on_meta(name, count).to("meta")
        x, solver = torch.empty(8, 2 * count, device="meta"), DDIM(5)
        model.loss(x)
        found[count] = [
            host(lambda: model.loss(x).backward()),  # noqa: B023
            *(host(lambda: solver.sample(model, (4,))) for _ in range(2)),  # noqa: B023
            host(lambda: bound(model, x)),  # noqa: B023
            host(lambda: log_prob(model, x, DDIM(2), trace=Hutchinson(1), errors=False)),  # noqa: B023
        ]
    assert found[2] == found[12]
    loss, first, again, *_ = found[2]
    assert not any(loss.values())
    assert first["reads"] == 1 + (name != "fixed")  # whether all is finite, and what is learned
    assert again == {"reads": 1, "copies": 0, "queued": 0, "drawn": 0}


def test_many_blocks_are_not_handled_one_by_one():
    """By the host: of a loss, and of log-densities, which ask for their coefficients everywhere."""
    found = []
    for count in (40, 120):
        model = on_meta("fixed", count).to("meta")
        x = torch.empty(4, 2 * count, device="meta")
        model.loss(x)
        with DeviceCalls() as loss:
            model.loss(x)
        with DeviceCalls() as density, torch.no_grad():
            log_prob(model, x, DDIM(2, grid="uniform_time"), trace=Hutchinson(1))
        found.append((loss.views.total(), density.views.total()))
    (few, fewer), (many, more) = found
    assert many - few <= 4  # sums over blocks are folded
    assert more == fewer


@pytest.mark.parametrize("name", ["learned per block", "fixed"])
def test_an_update_sends_the_numbers_of_its_events_whatever_it_learns(name, monkeypatch):
    """Nothing else, and is looked at now and then; so is one of many blocks."""
    monkeypatch.setattr(training, "_LOOK_EVERY", 4)
    model, seen = on_meta(name, 12).to("meta"), []
    with DeviceCalls({float: 0.0}) as calls, suppress(StopIteration):

        def between(step):
            seen.append(calls.summary())
            if step == 9:
                raise StopIteration

        events, settings = torch.zeros(16, 24), {"steps": 100, "batch_size": 4, "measurements": 1}
        training.Training(**settings).fit(model, events, on_step=between, progress=False)
    spent = {name: seen[9][name] - seen[1][name] for name in HOST}
    assert spent == {"reads": 2, "copies": 0, "queued": 8, "drawn": 8 * 4}
