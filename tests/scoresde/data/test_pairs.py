"""Events keep their conditions wherever they go."""

import pytest
import torch
from attrs import evolve
from torch.utils import data as torch_data

from scoresde.data import Dataset, LazyArray, split
from scoresde.data.events import as_dataset
from scoresde.data.placement import PlacedEvents
from scoresde.internals import limits

N = 12
X = torch.arange(float(N)).unsqueeze(-1).repeat(1, 2)
CONDITIONS = {
    "labels": torch.arange(N),
    "vectors": torch.arange(float(N)).unsqueeze(-1).repeat(1, 3),
    "doubles": torch.arange(N, dtype=torch.float64).unsqueeze(-1),
    "maps": torch.arange(float(N)).reshape(N, 1, 1, 1).repeat(1, 2, 3, 4),
}
every_condition = pytest.mark.parametrize("kind", CONDITIONS)


class Items(torch_data.Dataset):
    """Pairs; counts how often each is read."""

    def __init__(self, values, condition):
        self.values, self.condition, self.read = values, condition, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        self.read.append(place)
        told = self.condition[place]
        return self.values[place], int(told) if told.ndim == 0 else told


def in_memory(values, condition):
    return Dataset("mine", values, condition=condition)


def lazy_events(values, condition):
    return in_memory(LazyArray(len(values), values.__getitem__), condition)


def lazy_conditions(values, condition):
    return in_memory(values, LazyArray(len(condition), condition.__getitem__))


def lazy_both(values, condition):
    return lazy_events(values, LazyArray(len(condition), condition.__getitem__))


SOURCES = {
    "in memory": in_memory,
    "lazy events": lazy_events,
    "lazy conditions": lazy_conditions,
    "lazy both": lazy_both,
    "TensorDataset": lambda *v: as_dataset("data", torch_data.TensorDataset(*v)),
    "map-style": lambda *v: as_dataset("data", Items(*v)),
    "part": lambda *v: as_dataset("data", torch_data.Subset(Items(*v), range(N))),
    "loader": lambda *v: as_dataset("data", torch_data.DataLoader(Items(*v), 5, shuffle=True)),
}
every_source = pytest.mark.parametrize("source", SOURCES)


def apart(pairs):
    """How far events are from their conditions, which say which event it is."""
    assert len(pairs.values) == len(pairs.condition)
    return (pairs.values[:, 0] - pairs.condition.flatten(1)[:, 0].float()).abs().max().item()


def flat(pairs):
    return pairs._replace(condition=pairs.condition.reshape(len(pairs.condition), -1))


@every_source
@every_condition
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_event_keeps_its_own(source, kind, dtype):
    told = CONDITIONS[kind]
    data = SOURCES[source](X.to(dtype), told)
    rows = torch.tensor([7, 0, 7, 3])
    found = data.pairs(rows)
    assert torch.equal(found.values, X[rows].to(dtype))
    assert torch.equal(found.condition, told[rows])
    assert found.condition.dtype == told.dtype
    assert torch.equal(data.read(rows), found.values)
    for part in split(data, 0.6):
        assert apart(flat(part.pairs(slice(None)))) == 0
        placed = PlacedEvents.of("data", part.subset("some", torch.tensor([2, 1])), rows.device)
        assert apart(flat(placed.pairs(torch.tensor([1, 0, 1])))) == 0
    assert len(data.condition) == N
    assert data.condition.shape == told.shape
    assert evolve(data, condition=None).pairs(rows).condition is None


def test_what_comes_together_is_read_once():
    items = Items(X, CONDITIONS["labels"])
    data = (
        as_dataset("data", items)
        .subset("some", torch.tensor([3, 4, 5]))
        .subset("one", X[1:2, 0].long())
    )
    items.read.clear()
    assert data.pairs(slice(None)).condition.tolist() == [4]
    assert items.read == [4]


def test_whole_numbers_of_any_kind_are_labels():
    for dtype in (torch.uint8, torch.int32, torch.int64):
        found = in_memory(X, torch.arange(N).to(dtype) % 3)
        assert found.condition.dtype == torch.int64
    assert in_memory(X, torch.arange(N) > 4).condition.tolist() == [0] * 5 + [1] * 7


def test_classes_are_those_of_the_source():
    items = Items(X, CONDITIONS["labels"])
    assert as_dataset("data", items).classes is None
    items.classes = [f"c{i}" for i in range(N)]
    assert as_dataset("data", items).classes == tuple(items.classes)
    items.condition = CONDITIONS["vectors"]
    assert as_dataset("data", items).classes is None
    assert as_dataset("data", Items(X, CONDITIONS["labels"])).condition.shape == (N,)


def test_both_live_on_the_device_or_neither(monkeypatch):
    meta = torch.device("meta")
    data = in_memory(X, CONDITIONS["maps"])
    size = X.nbytes + CONDITIONS["maps"].nbytes
    with limits.memory_limit(4 * size):
        placed = PlacedEvents.of("data", data, meta)
        assert placed.values.device == placed.condition.device == meta
    with limits.memory_limit(4 * size - 1):
        placed = PlacedEvents.of("data", data, meta)
    assert placed.values is placed.condition is None
    found = placed.pairs(torch.tensor([1]))
    assert found.values.device == found.condition.device == meta


LABELS = CONDITIONS["labels"]
REFUSED = {
    "too few": ({"condition": LABELS[:-1]}, "condition: expected one for each of 12 .*, got 11"),
    "single numbers": ({"condition": X[:, 0]}, r"condition: expected integer labels \(N,\)"),
    "not finite": ({"condition": X * torch.nan}, "condition: expected finite"),
    "negative": ({"condition": LABELS - 1}, "condition: expected labels from 0, got -1 to"),
    "nameless": (
        {"condition": LABELS, "classes": ("a", "b")},
        "condition: expected labels from 0 to 1, got 0 to 11",
    ),
    "same names": ({"condition": LABELS % 2, "classes": ("a", "a")}, "classes: .*different names"),
    "names of none": ({"classes": ("a", "b")}, "classes: expected None without a condition"),
    "names of vectors": ({"condition": X, "classes": ("a",)}, "classes: .*no labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_condition_is_named(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Dataset("mine", X, **options)
    if name not in ("too few", "names of none", "same names"):
        lazy = {**options, "condition": LazyArray(N, options["condition"].__getitem__)}
        with pytest.raises(ValueError, match=message):
            Dataset("mine", X, **lazy).pairs(slice(None))


def test_complex_numbers_and_words_are_no_conditions():
    with pytest.raises(
        TypeError, match=r"condition: expected integers or real numbers, got torch.c"
    ):
        Dataset("mine", X, condition=X + 0j)
    words = Items(X, X)
    words.condition = LABELS
    pairs = torch_data.Subset(words, range(N))
    pairs.dataset = [(x, "dog") for x in X]
    with pytest.raises(TypeError, match="data, condition: expected real numbers, got str of <U3"):
        as_dataset("data", pairs)
