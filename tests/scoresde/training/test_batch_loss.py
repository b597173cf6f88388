"""What an update asks of a device, and parts of a batch that are computed one after the other."""

from collections import Counter
from itertools import pairwise

import pytest
from runs import DATA

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Identity, LogLinear
from scoresde.data import Dataset, LazyArray
from scoresde.testing import DeviceCalls
from scoresde.training import Training

INTEGERS = Dataset("integers", (DATA.values > 0).long(), bins=2)
STORED = Dataset("stored", LazyArray(len(DATA), lambda rows: DATA.values[rows]))


def calls(data, training, depth=1, **options):
    """What is asked of a device by every update but the first."""
    network = ResidualMLP((2,), width=16, depth=depth, dropout=0.1)
    estimator = Denoising(DiagonalSDE(LogLinear(), Identity((2,))), network).to("meta")
    seen, found = DeviceCalls(answers={float: 0.0}), []

    def look(step):
        found.append({name: Counter(getattr(seen, name)) for name in seen.summary()})

    with seen:
        training.fit(estimator, data, progress=False, on_step=look, **options)
    pairs = pairwise(found[1:])
    return [{name: after[name] - before[name] for name in after} for before, after in pairs]


@pytest.mark.parametrize("data", [DATA, INTEGERS, STORED], ids=lambda data: data.name)
@pytest.mark.parametrize("parts", [1, 2])
def test_an_ordinary_update_reads_nothing_and_waits_for_nothing(data, parts):
    training = Training(steps=5, batch_size=16, measurements=1, accumulation=parts)
    found = calls(data, training, held_out=DATA)
    assert len(found) == 3
    for update in found:
        for name in ("reads", "queued_reads", "copies"):
            assert update[name] == {}
        assert update["queued"].total() == 1  # the indices of the batch, or its events
        assert update == found[0]


def test_what_goes_around_a_network_does_not_grow_with_it():
    """Clipping, optimiser and average are of all weights at once."""
    training = Training(steps=4, batch_size=16, measurements=1)
    shallow, deep = (calls(DATA, training, depth)[0]["operations"] for depth in (1, 9))
    for name in ("_fused_adamw_", "_foreach_lerp_", "lerp_", "isfinite"):
        assert shallow[name] == deep[name]
    assert shallow["_fused_adamw_"] == 1
