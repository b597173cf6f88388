"""Signals are heard between two pieces of work, and handlers are what they were."""

import signal
import threading

import pytest

from scoresde.training.interrupts import Interrupts


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def number(request):
    """A signal whose handler raises."""

    def handler(number, frame):
        raise KeyboardInterrupt(number)

    before = signal.signal(request.param, handler)
    yield request.param
    assert signal.getsignal(request.param) is handler
    signal.signal(request.param, before)


def signalled(number, count):
    """What work was done that is asked to end so many times."""
    done = []

    def work(interrupts):
        with interrupts.deferred():
            for i in range(count):
                signal.raise_signal(number)
                done.append(i + 1)

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        work(interrupts)
    return done


def test_work_is_done_before_a_signal_is_heard(number):
    assert signalled(number, 1) == [1]


def test_outside_of_work_it_is_heard_at_once(number):
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_who_insists_is_not_kept_waiting(number):
    assert signalled(number, 2) == [1]


def test_signals_that_are_held_wait_until_they_are_delivered(number):
    with Interrupts(hold=True) as interrupts:
        signal.raise_signal(number)
        with interrupts.deferred():
            pass
        assert interrupts.pending
        with pytest.raises(KeyboardInterrupt):
            interrupts.deliver()
        assert not interrupts.pending


def test_what_the_system_does_by_itself_is_left_to_it():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


def test_other_threads_are_let_alone():
    found = []

    def run():
        with Interrupts() as interrupts, interrupts.deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
