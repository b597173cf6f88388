"""Small trainings that are interrupted and compared."""

import attrs
import torch

from estimators import Denoising, ResidualMLP
from scoresde import DCT, DiagonalSDE, Identity, LogLinear
from scoresde.data import Dataset

DATA = Dataset("two points", torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).repeat(64, 1))


def model(seed=0):
    torch.manual_seed(seed)
    return Denoising(DiagonalSDE(LogLinear(), Identity((2,))), ResidualMLP((2,), width=16, depth=1))


class Stop(Exception):
    pass


def edited(sde=None, network=None, **options):
    """A model like all others here but for what is said."""
    torch.manual_seed(0)
    basis = Identity((2,))
    default = {"data_std": 1.3, **options}
    net = ResidualMLP((2,), width=16, depth=1, dropout=0.1) if network is None else network
    return Denoising(DiagonalSDE(LogLinear(), basis) if sde is None else sde(basis), net, **default)


def fitted(training, stops=(), **options):
    """A model with dropout and its history, after runs that end at some steps are taken up."""
    for stop in (*stops, None):
        torch.manual_seed(0)
        network = ResidualMLP((2,), width=16, depth=1, dropout=0.1)
        sde = DiagonalSDE(LogLinear(), DCT((2,)))
        estimator = Denoising(sde, network, data_std=[1.3])

        def on_step(step, stop=stop):
            if step == stop:
                raise Stop

        try:
            history = training.fit(estimator, DATA, progress=False, on_step=on_step, **options)
        except Stop:
            continue
    return estimator, attrs.evolve(history, seconds=0.0)


def same(first, second):
    """Whether models and histories are, bit for bit."""
    (one, history), (other, histories) = first, second
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return history == histories and all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
