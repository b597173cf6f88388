"""What has not been finite is known for good, and known not to have been before."""

import math

import pytest
import torch

from scoresde.testing import DeviceCalls
from scoresde.training.tally import Tally

CPU = torch.device("cpu")
BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", ["loss", "norm"])
def test_failures_are_counted_from_the_first_one_on(dtype, bad, part):
    tally, seen = Tally(CPU), []
    for step in range(6):
        values = {"loss": 1.0, "norm": 2.0, part: bad if step == 3 else 0.5}
        tally.add(*(torch.tensor(v, dtype=dtype) for v in values.values()))
        seen.append((float(tally.failed), tally.read()[0]))
    assert seen == [(0.0, 0)] * 3 + [(1.0, 1), (1.0, 2), (1.0, 3)]


@pytest.mark.parametrize("bad", BAD)
def test_a_norm_may_be_anything_where_it_is_a_matter_of_scale(bad):
    """In half precision, where such a step is left out and the scale is halved."""
    tally = Tally(CPU)
    for loss, norm in ((1.0, 2.0), (1.0, bad), (1.0, 5.0)):
        tally.add(torch.tensor(loss), torch.tensor(norm), scaled=True)
    assert tally.read() == (0, False)
    assert tally.mean_norm() == 3.5, "of those that are numbers"
    tally.add(torch.tensor(bad), torch.tensor(1.0), scaled=True)
    assert tally.read() == (1, False)


def test_nothing_has_no_mean():
    tally = Tally(CPU)
    assert math.isnan(tally.mean_norm())
    tally.add(torch.tensor(1.0), torch.tensor(3.0))
    tally.clear()
    assert float(tally.loss) == 0
    assert math.isnan(tally.mean_norm())


def test_large_numbers_are_numbers():
    """Each is finite in single precision; their sum need not be, in the precision of the sum."""
    tally = Tally(CPU)
    largest = torch.tensor(torch.finfo(torch.float32).max)
    for _ in range(3):
        tally.add(largest, torch.tensor(1.0))
    assert tally.read() == (0, False)
    assert float(tally.loss) == pytest.approx(3 * float(largest))
    tally.add(torch.tensor(1e300, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    assert tally.read() == (0, False)


def test_one_who_asks_is_heard():
    tally = Tally(CPU)
    for stop in (0.0, 0.25, 0.0):
        tally.add(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(stop))
    assert tally.read() == (0, True)


def test_losses_are_added_in_double_precision():
    tally = Tally(CPU)
    for _ in range(1000):
        tally.add(torch.tensor(0.1), torch.tensor(1.0))
    assert float(tally.loss) == pytest.approx(1000 * float(torch.tensor(0.1)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_do_not_depend_on_when_they_are_read(dtype):
    """Nor on whether a run was written and goes on from there: bit for bit."""
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) ** 9
    found = []
    for every in (1, 7, 40):
        tally = Tally(CPU)
        for step, (loss, norm) in enumerate(values):
            tally.add(loss, norm)
            if step % every == 0:
                tally.read()
                written, tally = tally.state(), Tally(CPU)
                tally.restore(**written)
        found.append((tally.loss, tally.mean_norm()))
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx(values.double().mean(0).mul(torch.tensor([40, 1])).tolist())


def test_an_update_is_counted_in_few_operations_and_read_once_for_many():
    with DeviceCalls() as calls:
        tally = Tally(torch.device("meta"))
        zeros = torch.zeros((), device="meta")
        before = calls.summary()
        for _ in range(32):
            tally.add(zeros, zeros, zeros)
        after = calls.summary()
        tally.read()
    asked = {name: after[name] - before[name] for name in after}
    assert asked["operations"] == 4 * 32
    assert not any(asked[name] for name in ("reads", "copies", "queued", "drawn"))
    assert calls.reads.total() == 1
