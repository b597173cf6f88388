"""Numbers that follow from a seed and a step, and leave torch's global generators alone."""

import os
import threading

import pytest
import torch

from scoresde.training.seeds import derive, device_generator, seeded_globals


def drawn(seed, count=3):
    with seeded_globals(seed):
        return torch.nn.functional.dropout(torch.ones(count * 9), 0.5)


def test_numbers_follow_the_seed_and_the_world_goes_on():
    torch.manual_seed(1)
    wanted = torch.rand(6)
    torch.manual_seed(1)
    found, parts = [torch.rand(2)], []
    for seed in (0, 1):
        parts.append(drawn(seed))
        found.append(torch.rand(2))
    assert torch.equal(torch.cat(found), wanted)
    assert torch.equal(parts[0], drawn(0))
    assert not torch.equal(*parts)


def test_purposes_and_seeds_have_numbers_of_their_own():
    seeds = [derive(seed, purpose) for seed in range(20) for purpose in ("rows", "noise")]
    assert len({*seeds}) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_no_two_steps_have_the_same_numbers():
    """A generator of the CPU knows the last 32 bits of a seed only."""
    seeds = {derive(7, "noise", step) for step in range(20_000)}
    first, second = (
        torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32)
    )
    assert torch.equal(first, second)
    assert len(seeds) == 20_000
    assert max(seeds) < 2**32


@pytest.mark.parametrize("seed", [0, -1, 2**63, 10**30])
def test_whatever_the_seed(seed):
    assert 0 <= derive(seed, "rows", 2**31) < 2**32


def test_an_error_puts_the_world_back():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded_globals(0):
        _ = 1 / torch.rand(3).numel().__sub__(3)
    assert torch.equal(before, torch.get_rng_state())


def test_one_inside_another():
    wanted = [drawn(0), drawn(1)]
    with seeded_globals(0):
        assert torch.equal(drawn(1), wanted[1])
        assert torch.equal(torch.nn.functional.dropout(torch.ones(27), 0.5), wanted[0])


def test_threads_take_turns():
    found = {}

    def run(seed):
        found[seed] = torch.cat([drawn(seed + step) for step in range(0, 2000, 10)])

    for seed in range(4):
        run(seed)
    wanted, found = found, {}
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(wanted[seed], found[seed]) for seed in range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have():
    """Which had the generators while it was made."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with seeded_globals(0):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        drawn(0)
        os._exit(7)
    for _ in range(2000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        threading.Event().wait(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    thread.join()
    assert ended
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_device_has_generators_of_its_own():
    for name in ("cpu", "meta"):
        generator = device_generator(torch.device(name))
        assert generator.device == torch.device(name)
        assert torch.rand(2, device=name, generator=generator).device == torch.device(name)
