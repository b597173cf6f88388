"""What a device is asked for, counted on one that has no values."""

import inspect

import pytest
import torch
from torch import nn

from scoresde.testing import DeviceCalls

META = {"device": "meta"}


def counted(function, *args, answers=None):
    with DeviceCalls(answers) as calls:
        found = function(*args)
    return found, calls


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def x(request):
    return torch.empty(3, 4, dtype=request.param, **META)


def test_operations_are_counted_by_name_and_views_apart(x):
    _, calls = counted(lambda: (x.T[:2].exp() + 1 + torch.tensor(2.0)).sum())
    assert calls.operations == {"exp": 1, "add": 2, "sum": 1}
    assert calls.views == {"permute": 1, "slice": 1}
    assert calls.summary()["operations"] == 4
    assert not calls.copies
    assert not calls.reads


def test_allocations_launch_nothing_and_fills_do(x):
    _, calls = counted(lambda: (torch.empty_like(x), x.new_empty(3), torch.zeros(2, **META)))
    assert calls.operations == {"zeros": 1}


def test_the_way_back_is_counted():
    layer = nn.Linear(4, 4, **META)
    _, forward = counted(lambda: layer(torch.empty(2, 4, **META)))
    _, both = counted(lambda: layer(torch.empty(2, 4, **META)).sum().backward())
    assert both.operations.total() > forward.operations.total() + 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_made_of_others_is_counted_in_its_parts(mode):
    layer = nn.Linear(4, 4, **META)
    with mode():
        _, calls = counted(layer, torch.empty(2, 4, **META))
    assert calls.operations == {"addmm": 1}


HOST = {
    "a sum": lambda host: host + host,
    "a read": lambda host: float(host.sum()),
    "a mask": lambda host: host[host > 0],
}


@pytest.mark.parametrize("function", HOST.values(), ids=HOST)
def test_on_the_cpu_operations_alone_are_counted(function):
    _, calls = counted(function, torch.ones(3))
    assert calls.host.total() > 0
    assert calls.summary() == {**dict.fromkeys(calls.summary(), 0), "host": calls.host.total()}


host = torch.ones(3, 4)
COPIES = {
    "to a tensor's": lambda x: host.to(x),
    "to a device": lambda x: host.to("meta"),
    "into a tensor": lambda x: x.copy_(host),
    "into a part": lambda x: x[:2].copy_(host[:2]),
    "of numbers": lambda x: torch.tensor([1.0, 2.0], device="meta"),
    "of a number": lambda x: torch.tensor(1.0, device="meta"),
    "as a tensor": lambda x: torch.as_tensor(host, device="meta"),
    "of numbers as a tensor": lambda x: torch.as_tensor([1.0], device="meta"),
    "of numbers like a tensor": lambda x: x.new_tensor([1.0]),
    "of an index": lambda x: x[torch.tensor([0, 2])],
    "of a listed index": lambda x: x[[0, 2]],
    "of an index to select": lambda x: x.index_select(0, torch.tensor([0, 2])),
    "of an index to put at": lambda x: x.index_put_((torch.tensor([0, 2]),), x[:2]),
    "of an alternative": lambda x: torch.where(x > 0, torch.tensor(1.0), x),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_block_and_say_where_they_are(x, copy):
    _, calls = counted(copy, x)
    assert (calls.copies.total(), calls.queued.total(), calls.reads.total()) == (1, 0, 0)
    line = inspect.getsourcelines(copy)[1]
    (place,) = calls.copies
    assert place.endswith(f" at testing/test_device_calls.py:{line}")


QUEUED = {
    "to a device": lambda x: host.to("meta", non_blocking=True),
    "into a tensor": lambda x: x.copy_(host, non_blocking=True),
}


@pytest.mark.parametrize("copy", QUEUED.values(), ids=QUEUED)
def test_copies_that_do_not_block_are_counted_apart(x, copy):
    _, calls = counted(copy, x)
    assert (calls.copies.total(), calls.queued.total(), calls.reads.total()) == (0, 1, 0)


NO_COPIES = {
    "a cast": lambda x: x.double().float(),
    "on the device": lambda x: x.copy_(x.clone()).to("meta"),
    "an index there": lambda x: x[torch.zeros(2, dtype=torch.long, device="meta")],
    "a number": lambda x: torch.where(x > 0, 1.0, x) * torch.tensor(2.0),
    "a slice": lambda x: x[1:, None, ..., 0].add_(1),
    "a number put": lambda x: x.__setitem__((..., 0), 1.0),
    "numbers drawn there": lambda x: torch.randn(3, **META, generator=torch.Generator()),
    "a range": lambda x: torch.arange(3, **META) + torch.full((3,), 2.0, **META),
}


@pytest.mark.parametrize("function", NO_COPIES.values(), ids=NO_COPIES)
def test_what_stays_on_the_device_waits_for_nothing(x, function):
    _, calls = counted(function, x)
    waits = ("copies", "queued", "reads", "queued_reads", "drawn")
    assert calls.operations
    assert not any(calls.summary()[name] for name in waits)


READS = {
    "bool": (lambda x: bool(x.isfinite().all()), True),
    "if": (lambda x: 1 if x[0, 0] > 0 else 2, 1),
    "int": (lambda x: int((~x.isfinite()).sum()), 0),
    "float": (lambda x: float(x.sum()), 1.0),
    "item": (lambda x: x[0, 0].item(), 1.0),
    "tolist": (lambda x: x[0, :2].tolist(), [1.0, 2.0]),
    "cpu": (lambda x: x[:2, :2].cpu().flatten()[-1], 2.0),
    "copied": (lambda x: torch.zeros(2).copy_(x[0, :2]).tolist(), [1.0, 2.0]),
    "equal": (lambda x: torch.equal(x, x), True),
    "allclose": (lambda x: torch.allclose(x, x + 1), True),
    "nonzero": (lambda x: (x > 0).nonzero().shape, (12, 2)),
    "a mask": (lambda x: x[x > 0].shape, (12,)),
    "a mask of rows": (lambda x: x[x[:, 0] > 0].device.type, "meta"),
    "values put by a mask": (lambda x: x.__setitem__(x > 0, x.new_empty(12)), None),
    "masked_select": (lambda x: x.masked_select(x > 0).shape, (12,)),
    "where": (lambda x: len(torch.where(x > 0)), 2),
    "linalg": (lambda x: torch.linalg.cholesky(x[:, :3]).shape, (3, 3)),
}


@pytest.mark.parametrize(("read", "answer"), READS.values(), ids=READS)
def test_reads_are_answered_and_say_where_they_are(x, read, answer):
    found, calls = counted(read, x)
    assert found == pytest.approx(answer)
    assert (calls.copies.total(), calls.reads.total()) == (0, 1)
    line = inspect.getsourcelines(read)[1]
    (place,) = calls.reads
    assert place.endswith(f" at testing/test_device_calls.py:{line}")


def test_answers_are_the_callers(x):
    read = lambda: (bool((x > 0).any()), int(x.argmax()), float(x.sum()))  # noqa: E731
    assert counted(read, answers={bool: False, int: 3, float: 0.5})[0] == (False, 3, 0.5)
    assert counted(read, answers={int: 7})[0] == (True, 7, 1.0)


def test_reads_without_waiting_are_counted_apart(x):
    _, calls = counted(lambda: x.to("cpu", non_blocking=True))
    assert (calls.reads.total(), calls.queued_reads.total()) == (0, 1)


def test_numbers_drawn_by_the_host_are_counted(x):
    def draw():
        return torch.randn(3, 4).to(x), torch.empty(5).uniform_()

    _, calls = counted(draw)
    assert calls.drawn.total() == 12 + 5
    assert {place.split(" ")[0] for place in calls.drawn} == {"randn", "uniform_"}


def test_what_is_left_is_no_longer_counted(x):
    with DeviceCalls() as outer:
        with DeviceCalls() as inner:
            x.exp()
        x.exp()
    x.exp()
    assert (inner.operations["exp"], outer.operations["exp"]) == (1, 2)
    with pytest.raises(RuntimeError, match="meta"):
        float(x.sum())


def test_an_error_leaves_nothing_behind(x):
    with pytest.raises(ZeroDivisionError), DeviceCalls({bool: False}) as calls:
        1 / int(x.sum() > 1e9)
    assert calls.reads.total() == 1
    x.exp()
    assert not calls.operations["exp"]


def test_places_are_said(x):
    _, calls = counted(lambda: [float(v) for v in x[0]])
    first, second = str(calls).splitlines()
    assert first.startswith("0 operations")
    assert "4 reads" in first
    assert second.startswith("reads: 4 x _local_scalar_dense at testing/test_device_calls.py:")
