"""Two runs are told apart by all that they depend on, and by nothing else."""

import functools
import json
import math
import os
import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, Haar
from scoresde.data import Dataset, LazyArray, split
from scoresde.training import fingerprint
from scoresde.training.fingerprint import content, differences


def stored(values, seen=None):
    def read(places):
        if seen is not None:
            seen.update(places.tolist())
        return values[places]

    return Dataset("stored", LazyArray(len(values), read))


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("row", [0, 17, 39])
def test_data_are_known_by_every_bit(dtype, lazy, row):
    def of(values):
        return content("x", stored(values) if lazy else Dataset("mine", values))

    values = X.to(dtype)
    other = values.clone()
    other[row, 1] = torch.nextafter(other[row, 1], torch.tensor(9.0, dtype=dtype))
    assert of(values) == of(values.clone())
    assert of(values) != of(other)
    assert of(values) != of(values.flip(0))
    assert of(values) != of(values.reshape(40, 3, 1))


def test_names_and_places_of_data_do_not_matter():
    wanted = content("x", Dataset("mine", X))
    assert content("x", Dataset("yours", X.T.contiguous().T)) == wanted
    assert content("x", stored(X)) == wanted
    assert content("x", None) == {"x": None}


def test_levels_dtypes_and_splits_matter():
    bits = torch.tensor([[0, 1], [1, 0], [1, 1]])
    found = [content("x", Dataset("x", bits, bins=n)) for n in (2, 3)]
    found += [content("x", Dataset("x", bits.byte(), bins=2))]
    found += [content("x", part) for seed in (0, 1) for part in split(Dataset("x", X), 0.5, seed)]
    assert len({entry["x"] for entry in found}) == len(found)


def test_large_data_on_a_disk_are_read_in_part(monkeypatch):
    monkeypatch.setattr(fingerprint, "_NUMBERS", 60)
    monkeypatch.setattr(fingerprint, "_SAMPLE", 20)
    seen, other = set(), X.clone()
    first = content("x", stored(X, seen))
    assert {0, 39} < seen
    assert len(seen) == 20
    other[39] += 1
    assert content("x", stored(other)) != first


def test_events_drawn_anew_have_no_content():
    def of():
        anew = LazyArray(40, lambda places: X[places] + torch.rand(len(places), 1))
        return content("x", Dataset("augmented", anew))

    assert of() == of()
    assert "drawn anew" in of()["x"]


def named(x):
    return x


def power(p):
    return lambda x: x**p


@attrs.frozen
class Fields:
    a: int = 1
    b: object = None


class Plain:
    def __init__(self, **values):
        vars(self).update(values)


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


def network(**changed):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
    for key, value in changed.items():
        setattr(net[2], key, value)
    return net


def held(name, value, persistent=True):
    net = nn.Linear(1, 1)
    net.register_buffer(name, value, persistent=persistent)
    return net


PAIRS = {
    "numbers": (1.0, 1.001),
    "no number": (math.nan, math.inf),
    "whole": (1, 2),
    "switches": (True, False),
    "strings": ("a", "b"),
    "kinds": (torch.float32, torch.float64),
    "nothing": (None, 0),
    "lists": ([1, 2], [1, 3]),
    "lengths": ([1], [1, 1]),
    "long lists": (list(range(100)), [*range(99), 0]),
    "sets": ({1, 2}, {1, 3}),
    "tables": ({"a": 1}, {"a": 2}),
    "keys": ({"a": 1}, {"b": 1}),
    "tensors": (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
    "long tensors": (torch.zeros(999), torch.ones(999)),
    "shapes": (torch.zeros(4), torch.zeros(2, 2)),
    "arrays": (np.zeros(3), np.ones(3)),
    "functions": (named, power),
    "builtins": (math.sin, math.cos),
    "of torch": (torch.sin, torch.cos),
    "closures": (power(2), power(3)),
    "code": (lambda x: x**2, lambda x: x**3),
    "constants": (lambda x: x + 1, lambda x: x + 2),
    "defaults": (lambda x, p=2: x**p, lambda x, p=3: x**p),
    "partial": (functools.partial(power, 2), functools.partial(power, 3)),
    "methods": (Fields(1).__eq__, Fields(2).__eq__),
    "classes": (Fields, Plain),
    "fields": (Fields(1), Fields(2)),
    "parts": (Fields(1, [Fields(2)]), Fields(1, [Fields(3)])),
    "attributes": (Plain(a=1), Plain(a=2)),
    "private": (Plain(_a=1), Plain(_a=2)),
    "slots": (Slots(1), Slots(2)),
    "laws": (
        Independent(Normal(torch.zeros(2), 1.0), 1),
        Independent(Normal(torch.zeros(2), 2.0), 1),
    ),
    "dropout": (network(), network(p=0.2)),
    "settings": (nn.LayerNorm(2, eps=1e-5), nn.LayerNorm(2, eps=1e-4)),
    "frozen": (nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(False)),
    "precision": (nn.Linear(1, 1), nn.Linear(1, 1).double()),
    "widths": (nn.Linear(1, 2), nn.Linear(1, 3)),
    "buffers": (held("b", torch.zeros(1)), held("b", torch.ones(1))),
    "hidden buffers": (held("b", torch.zeros(1), False), held("b", torch.ones(1), False)),
    "schedules": (VP(), VP(beta_max=10.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_different_has_another_fingerprint(name):
    first, second = (fingerprint.fingerprint("x", value) for value in PAIRS[name])
    assert differences(first, second)


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_the_same_has_the_same(name):
    for value in PAIRS[name]:
        first, second = (fingerprint.fingerprint("x", value) for _ in range(2))
        assert differences(first, second) == []


def model():
    sde = DiagonalSDE(VP(), Haar((1, 4, 4), 1), [1.0, 2.0])
    network = ResidualMLP((1, 4, 4), 8, 1, dropout=0.1)
    return Denoising(sde, network, weighting=lambda levels: levels.sigma ** {2: 2, 3: 3}[2])


def test_weights_and_modes_do_not_matter():
    first, second = model(), model().eval()
    second.network.embed[0].register_forward_hook(lambda *a: None)
    assert differences(*(fingerprint.fingerprint("m", m) for m in (first, second))) == []


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_do_not_matter(wrap):
    first, second = model(), model()
    second.network = wrap(second.network)
    assert differences(*(fingerprint.fingerprint("m", m) for m in (first, second))) == []


THINGS = [{"a", "b", "c"}, lambda x: x in {"a", "b"}]


def test_another_process_finds_the_same():
    """Where strings have other hashes."""
    script = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from test_fingerprint import THINGS, fingerprint, model
print(hash("a"), json.dumps(fingerprint.fingerprint("m", [model(), *THINGS])))
"""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash("a") % 2**32)}
    command = [sys.executable, "-c", script, __file__.rpartition("/")[0]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    number, _, found = done.stdout.partition(" ")
    assert int(number) != hash("a")
    assert json.loads(found) == fingerprint.fingerprint("m", [model(), *THINGS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_another_machine_is_no_difference(dtype):
    one = torch.rand(1000, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 1
    ulp = torch.nextafter(one, torch.full_like(one, 9.0))
    few = [fingerprint.fingerprint("x", v) for v in (one[:9], ulp[:9], one[:9] * (1 + 1e-5))]
    assert differences(*few[:2]) == []
    assert differences(few[0], few[2])
    many = [fingerprint.fingerprint("x", v) for v in (one, one * (1 + 1e-4))]
    assert differences(*many)


def test_one_object_in_two_places_is_not_two():
    shared = Fields(1)
    first, second = ([shared, shared], [Fields(1), Fields(1)])
    assert differences(*(fingerprint.fingerprint("x", v) for v in (first, second)))
    loop = Plain()
    loop.own = loop
    assert fingerprint.fingerprint("x", loop)["x.own"] == "= x"


def test_causes_are_said_before_what_follows_from_them():
    wanted = {"knots": "(9,) of float, content a", "gone": 1, "beta": 20.0}
    found = {"knots": "(9,) of float, content b", "beta": 10.0, "new": 1}
    assert [line.partition(":")[0] for line in differences(wanted, found)] == [
        "beta",
        "knots",
        "gone",
        "new",
    ]
    assert differences({"a": 1}, {"a": 2}, besides=["a"]) == []
    assert differences({"a": None}, {}) == ["a: expected None, got nothing"]


def test_code_of_another_python_is_not_compared():
    assert differences({"f": "code cpython-310 aa"}, {"f": "code cpython-311 bb"}) == []
    assert differences({"f": "code cpython-311 aa"}, {"f": "code cpython-311 bb"})
