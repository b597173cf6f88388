"""What only torch's global generators give follows a stream of its own."""

import threading

import pytest
import torch

from scoresde.training.rng_state import RNGState


def drawn(stream, count=3):
    with stream.installed():
        return torch.nn.functional.dropout(torch.ones(count * 9), 0.5)


def test_a_stream_goes_on_where_it_was_and_the_world_too():
    torch.manual_seed(1)
    wanted = torch.rand(6)
    whole = torch.cat([drawn(RNGState(0)), drawn(RNGState(0))])
    stream = RNGState(0)
    torch.manual_seed(1)
    found = [torch.rand(2)]
    parts = []
    for _ in range(2):
        parts.append(drawn(stream))
        found.append(torch.rand(2))
    assert torch.equal(torch.cat(found), wanted)
    assert torch.equal(parts[0], whole[:27])
    assert not torch.equal(parts[0], parts[1])


@pytest.mark.parametrize("other", [RNGState(1), RNGState(0, 1)])
def test_streams_differ(other):
    assert not torch.equal(drawn(RNGState(0), 30), drawn(other, 30))


def test_a_stream_is_not_the_generator_of_its_seed():
    with RNGState(3).installed():
        found = torch.rand(4)
    assert not torch.equal(found, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_an_error_puts_the_world_back():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), RNGState(0).installed():
        _ = 1 / torch.rand(3).numel().__sub__(3)
    assert torch.equal(before, torch.get_rng_state())


def test_one_inside_another():
    wanted = [drawn(RNGState(0)), drawn(RNGState(1))]
    outer, inner = RNGState(0), RNGState(1)
    with outer.installed():
        assert torch.equal(drawn(inner), wanted[1])
        assert torch.equal(torch.nn.functional.dropout(torch.ones(27), 0.5), wanted[0])


def test_threads_take_turns():
    found = {}

    def run(seed):
        stream = RNGState(seed)
        found[seed] = torch.cat([drawn(stream) for _ in range(200)])

    for seed in range(4):
        run(seed)
    wanted, found = found, {}
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(wanted[seed], found[seed]) for seed in range(4))
