"""What `fit` and `evaluate` take, and what they say of what they do not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import DATA, edited
from strategies import gaussian
from torch.utils import data as torch_data

from scoresde import VP, DiagonalSDE, Identity
from scoresde.app.evaluation import evaluate
from scoresde.data import Dataset, LazyArray
from scoresde.data.events import as_dataset
from scoresde.training import Training
from solvers import DDIM

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))


class Items(torch_data.Dataset):
    def __init__(self, item=lambda x: x, values=X):
        self.item, self.values = item, values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.item(self.values[place])


class Duck:
    """Looks like a data set."""

    def __len__(self):
        return len(X)

    def __getitem__(self, place):
        return X[place]


class Endless(torch_data.IterableDataset):
    def __iter__(self):
        while True:
            yield X[0]


TAKEN = {
    "tensor": lambda x: x,
    "with gradients": lambda x: x.clone().requires_grad_(),
    "array": lambda x: x.numpy(),
    "other bytes": lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder(">")),
    "read-only": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "Dataset": lambda x: Dataset("mine", x),
    "TensorDataset": torch_data.TensorDataset,
    "map-style": lambda x: Items(values=x),
    "arrays": lambda x: Items(lambda item: item.numpy(), x),
    "tuples": lambda x: Items(lambda item: (item,), x),
    "part": lambda x: torch_data.Subset(torch_data.TensorDataset(x), range(len(x))),
    "loader": lambda x: torch_data.DataLoader(torch_data.TensorDataset(x), 3),
    "shuffled": lambda x: torch_data.DataLoader(Items(values=x), 3, shuffle=True),
    "unbatched": lambda x: torch_data.DataLoader(Items(values=x), None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TAKEN)
def test_whatever_holds_events_trains_alike(kind, dtype):
    x = X.to(dtype)
    data = TAKEN[kind](x)
    found = as_dataset("data", data)
    assert torch.equal(found.read(slice(None)), x)
    estimator, wanted = edited().to(dtype), edited().to(dtype)
    history = Training(steps=4, batch_size=8).fit(estimator, data, data, progress=False)
    whole = Training(steps=4, batch_size=8).fit(wanted, x, x, progress=False)
    assert history.losses == whole.losses
    assert history.held_out == whole.held_out


def test_what_is_a_data_set_already_stays_what_it_is():
    assert as_dataset("data", DATA) is DATA
    loader = torch_data.DataLoader(Items())
    assert isinstance(as_dataset("data", loader).values, LazyArray)


@pytest.mark.parametrize("data", [X, X.double()], ids=["float32", "float64"])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_data_are_computed_in_the_precision_of_the_weights(data, weights):
    history = Training(steps=3, batch_size=8).fit(edited().to(weights), data, data, progress=False)
    same = Training(steps=3, batch_size=8).fit(
        edited().to(weights), data.to(weights), data.to(weights), progress=False
    )
    assert history.held_out == same.held_out


def weighted(*arguments, **options):
    sampler = torch_data.WeightedRandomSampler([1.0] * len(X), len(X))
    batches = torch_data.BatchSampler(sampler, 3, True)
    chosen = {"batch_sampler": batches} if options.pop("batched") else {"sampler": sampler}
    return torch_data.DataLoader(torch_data.TensorDataset(X), **chosen)


WORDS = r"data: expected .*"
REFUSED = {
    "integers": (X.long(), TypeError, WORDS + "int64; of integers say the number of bins"),
    "bytes": (X.byte(), TypeError, WORDS + "bins=256"),
    "switches": ((X > 0).numpy(), TypeError, WORDS + "torch.bool"),
    "integers as items": (Items(values=X.long()), TypeError, WORDS + "int64"),
    "complex": (X + 0j, TypeError, WORDS + "got torch.complex64$"),
    "objects": (np.array([["a", 1]], dtype=object), TypeError, WORDS + "ndarray of object"),
    "masked": (np.ma.masked_array(X.numpy(), X.numpy() > 0), ValueError, WORDS + "missing=True"),
    "sparse": (X.to_sparse(), ValueError, WORDS + "dense tensor, got torch.sparse_coo"),
    "triples": (torch_data.TensorDataset(X, X, X), ValueError, WORDS + "items of 3 parts"),
    "triples as items": (Items(lambda x: (x, 1, 2)), ValueError, WORDS + "items of 3 parts"),
    "tables": (Items(lambda x: {"x": x, "y": x}), ValueError, WORDS + "items with one image or"),
    "numbers": (Items(lambda x: float(x[0])), ValueError, WORDS + r"\(N, \*event\)"),
    "iterable": (Endless(), TypeError, WORDS + "map-style torch Dataset .*, got Endless"),
    "iterable loader": (torch_data.DataLoader(Endless()), TypeError, WORDS + "got Endless"),
    "sampler": (weighted(batched=False), TypeError, WORDS + "WeightedRandomSampler"),
    "batch sampler": (weighted(batched=True), TypeError, WORDS + "WeightedRandomSampler"),
    "collate": (torch_data.DataLoader(Items(), collate_fn=list), TypeError, WORDS + "with list"),
    "lists": (X.tolist(), TypeError, WORDS + "list; torch.tensor or torch.stack makes one"),
    "names": ("digits", TypeError, WORDS + "str; scoresde.data.load reads files"),
    "a path": (Path("x.npy"), TypeError, WORDS + "PosixPath"),
    "no events": (X[:0], ValueError, WORDS + "no size 0"),
    "no axis": (X[:, 0], ValueError, WORDS + r"\(N, \*event\), no size 0, got \(30,\)"),
    "no number": (X * torch.nan, ValueError, WORDS + "finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_named_in_one_sentence(name):
    data, error, said = REFUSED[name]
    with pytest.raises(error, match=said) as found:
        Training(steps=1).fit(edited(), data, progress=False)
    assert "\n" not in str(found.value)
    with pytest.raises(error, match=said.replace("data:", "held_out:")):
        Training(steps=1).fit(edited(), X, data, progress=False)


def test_ragged_items_are_named():
    ragged = Items(lambda x: x[: 1 + int(x[0] > 0)])
    with pytest.raises(ValueError, match=r"data: expected items of one shape .* of item \d+"):
        Training(steps=1).fit(edited(), ragged, progress=False)


def test_whatever_has_a_length_and_items_is_a_data_set():
    assert torch.equal(as_dataset("data", Duck()).read(slice(None)), X)


@pytest.mark.parametrize("kind", TAKEN)
def test_evaluation_takes_the_same(kind):
    model = gaussian(DiagonalSDE(VP(), Identity((2,))), 1)
    found, wanted = (evaluate(model, d, DDIM(5)) for d in (TAKEN[kind](X), Dataset("data", X)))
    assert found["nats"] == wanted["nats"]


@pytest.mark.parametrize("estimator", [None, 3, torch.nn.Linear(2, 2)], ids=repr)
def test_what_is_no_estimator_is_named(estimator):
    with pytest.raises(TypeError, match="estimator: expected a ScoreEstimator, got a ") as found:
        Training(steps=1).fit(estimator, X, progress=False)
    assert "\n" not in str(found.value)


def test_what_has_no_weights_is_named():
    model = gaussian(DiagonalSDE(VP(), Identity((2,))), 1)
    with pytest.raises(ValueError, match="estimator: expected weights to train, got Gaussian"):
        Training(steps=1).fit(model, X, progress=False)
