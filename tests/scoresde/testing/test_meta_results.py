"""Results that are remembered are those of torch."""

import pytest
import torch

from scoresde.testing import DeviceCalls
from scoresde.testing.meta_results import MetaResults, tensors_of

aten = torch.ops.aten
x = torch.empty(3, 4, device="meta")
whole, double = x.long(), x.double()

KINDS = {
    "one": lambda: (aten.exp.default, (x,), {}),
    "turned": lambda: (aten.exp.default, (x.T,), {}),
    "expanded": lambda: (aten.exp.default, (x[:, :1].expand(3, 4),), {}),
    "as wide as": lambda: (aten.add.Tensor, (x, x[0]), {}),
    "of two precisions": lambda: (aten.add.Tensor, (x, double), {}),
    "the other way": lambda: (aten.add.Tensor, (x[0], x), {}),
    "an integer": lambda: (aten.add.Tensor, (whole, 1), {}),
    "as a number": lambda: (aten.add.Tensor, (whole, 1.0), {}),
    "as a truth": lambda: (aten.add.Tensor, (whole > 0, True), {}),
    "along the first": lambda: (aten.sum.dim_IntList, (x, [0]), {}),
    "along the last": lambda: (aten.sum.dim_IntList, (x, [1]), {}),
    "kept": lambda: (aten.sum.dim_IntList, (x, [1], True), {}),
    "in another precision": lambda: (aten.sum.dim_IntList, (x, [1]), {"dtype": torch.double}),
    "joined": lambda: (aten.cat.default, ([x, x], 0), {}),
    "joined along the last": lambda: (aten.cat.default, ([x, x], 1), {}),
    "joined by two": lambda: (aten.cat.default, ([x[:, :2], x[:, 2:]], 1), {}),
    "several": lambda: (aten.max.dim, (x, 1), {}),
    "by an index": lambda: (aten.index.Tensor, (x, [None, whole[0]]), {}),
    "by two": lambda: (aten.index.Tensor, (x, [whole[0], whole[0]]), {}),
    "like a tensor": lambda: (aten.zeros_like.default, (x,), {"dtype": torch.int32}),
    "a range": lambda: (aten.arange.default, (3,), {"device": x.device}),
    "a longer range": lambda: (aten.arange.default, (4,), {"device": x.device}),
}


def described(result):
    return [(v.shape, v.stride(), v.dtype, v.device) for v in tensors_of(result)]


def test_what_is_remembered_is_what_torch_returns():
    """Of one memory, twice over: what is told apart by too little is returned for another."""
    results = MetaResults()
    for _ in range(2):
        for name, kind in KINDS.items():
            func, args, keywords = kind()
            found, expected = results(func, args, keywords), func(*args, **keywords)
            assert described(found) == described(expected), name
            assert type(found) is type(expected)
    assert len(results) == len(KINDS)


def test_every_result_is_new():
    results = MetaResults()
    first, second = (results(aten.exp.default, (x,), {}) for _ in range(2))
    for result in (first, second):
        result.unsqueeze_(0)
        assert results(aten.exp.default, (x,), {}).shape == x.shape


UNKNOWN = {
    "a view": lambda: (aten.t.default, (x,), {}),
    "written into": lambda: (aten.add_.Tensor, (x, 1), {}),
    "what it was": lambda: (aten.lift_fresh.default, (x,), {}),
    "a number of the CPU": lambda: (aten.mul.Tensor, (x, torch.tensor(2.0)), {}),
    "on the CPU": lambda: (aten.exp.default, (torch.ones(2),), {}),
    "complex": lambda: (aten.exp.default, (torch.empty(2, dtype=torch.cfloat, device="meta"),), {}),
    "made complex": lambda: (aten.complex.default, (x, x), {}),
    "a generator": lambda: (aten.rand.generator, ([2],), {"generator": torch.Generator()}),
}


@pytest.mark.parametrize("kind", UNKNOWN.values(), ids=UNKNOWN)
def test_what_shares_memory_or_may_differ_is_done(kind):
    results = MetaResults()
    for _ in range(2):
        func, args, keywords = kind()
        found, expected = results(func, args, keywords), func(*args, **keywords)
        assert described(found) == described(expected)
        assert (found is args[0]) == (expected is args[0])
    assert not len(results)


def test_who_else_looks_on_sees_what_is_done():
    with DeviceCalls():
        x.exp()
    with DeviceCalls() as outer, DeviceCalls() as inner:
        x.exp()
    assert outer.operations == inner.operations == {"exp": 1}
