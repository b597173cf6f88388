"""What several processes are asked to do: run by `torchrun`, and by the tests in one.

    torchrun --nproc_per_node 2 tests/processes.py FOLDER

writes the results of process ``i`` to ``FOLDER/i.pt``.
"""

import signal
import sys
from pathlib import Path

import attrs
import torch

from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import DiagonalSDE, Haar, LogLinear, Noise, bound
from scoresde.data import Dataset
from scoresde.data.dequantization import VariationalDequantization
from scoresde.training import Training
from scoresde.training.distributed import sample
from solvers import DDIM

SHAPE = (1, 4, 4)
DATA = Dataset("levels", torch.arange(50 * 16).reshape(50, *SHAPE) * 7 % 5, bins=5)
TRAINING = Training(steps=12, batch_size=12, measurements=6, lr=5e-3)


class Stop(Exception):
    pass


def model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    sde = DiagonalSDE(LogLinear(), Haar(SHAPE, 1), [1.0, 2.0])
    return Denoising(sde, ResidualMLP(SHAPE, width=16, depth=1, dropout=dropout))


class Spare(Denoising):
    """Has weights that no loss asks for."""

    def __init__(self, sde, network):
        super().__init__(sde, network)
        self.never = torch.nn.Linear(2, 2)


class Bounded(Denoising):
    """Trained by the bound, with learned dequantisation of what is already real."""

    def loss(self, x, condition=None, generator=None):
        noise = Noise.of(generator)
        values = ((x + 1) * 2.5).long().clamp(0, 4)
        y, log_q = VariationalDequantization(5)(values, noise)
        return (bound(self, y, generator=noise, draws=2) + log_q).mean()


def others():
    """Models that draw their noise in other ways."""
    torch.manual_seed(0)
    staged = DiagonalSDE(LogLinear(), Haar(SHAPE, 1), [1.0, 2.0], drop=[1.0, 0.5])
    sizes = [stage.dim for stage in staged.stages()]
    yield MultiScale(staged, [ResidualMLP((n,), width=8, depth=1) for n in sizes])
    sde = DiagonalSDE(LogLinear(), Haar(SHAPE, 1))
    network = ResidualMLP(SHAPE, width=8, depth=1, noise_levels=16)
    yield Denoising(sde, network, observe="components")
    yield Bounded(sde, ResidualMLP(SHAPE, width=8, depth=1))
    yield Spare(sde, ResidualMLP(SHAPE, width=8, depth=1))


def trained(
    processes, estimator=None, stop=None, training=TRAINING, data=DATA, interrupt=0, **options
):
    """Weights and history of a run, or of one that ends before a step."""
    estimator = model() if estimator is None else estimator

    def on_step(step):
        if step == stop:
            raise Stop
        if interrupt and step == interrupt:
            signal.raise_signal(signal.SIGINT)

    try:
        history = training.fit(
            estimator, data, DATA, progress=False, on_step=on_step, processes=processes, **options
        )
    except Stop:
        return None
    except KeyboardInterrupt:
        return "interrupted"
    return dict(estimator.state_dict()), history.losses, history.held_out, history.best


def sampled(processes, count):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    return sample(DDIM(4, eta=1.0), model(), generators, processes)


def refused(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def unlike(index):
    """Arguments that the processes do not have in common, by what they are called."""
    other = Dataset("other", (DATA.values + index) % 5, bins=5)
    rates = Training(steps=12, batch_size=12, measurements=6, lr=5e-3 * (1 + index))
    estimator = model()
    estimator.data_std.fill_(1.0 + index)
    return {
        "data": {"data": other},
        "training.lr": {"training": rates},
        "training.seed": {"seed": index},
        "estimator": {"estimator": estimator},
    }


def main(folder):
    from accelerate import Accelerator

    torch.set_default_dtype(torch.float64)
    processes, folder = Accelerator(), Path(folder)
    index = processes.process_index
    results = {
        "count": processes.num_processes,
        "whole": trained(processes, folder=folder / "whole"),
        "others": [trained(processes, other, steps(6)) for other in others()],
        "parts": trained(processes, training=attrs.evolve(TRAINING, accumulation=3)),
        "samples": {count: sampled(processes, count) for count in (1, 2, 5)},
        "weights": refused(lambda: trained(processes, model(seed=index))),
        "batch": refused(lambda: trained(processes, training=Training(batch_size=7))),
        "parts of a batch": refused(
            lambda: trained(processes, training=Training(batch_size=12, accumulation=4))
        ),
    }
    saved = {"folder": folder / "dropout", "save_every": 1}
    results["others' arguments"] = {
        name: refused(lambda options=options: trained(processes, **options))
        for name, options in unlike(index).items()
    }
    interrupted = {"folder": folder / "interrupted", "save_every": 100}
    results["interrupted"] = trained(processes, interrupt=index * 7, **interrupted)
    results["after"] = trained(processes, **interrupted)
    shaken = model(dropout=0.3)

    def note(part, inputs, output):
        results.setdefault("dropped", output.detach() == 0)

    shaken.network.blocks[0].body[2].register_forward_hook(note)
    results["dropout"] = trained(processes, shaken)
    trained(processes, model(dropout=0.3), stop=5, **saved)
    results["taken up"] = trained(processes, model(dropout=0.3), **saved)
    results["random"] = torch.get_rng_state()
    trained(processes, stop=7, folder=folder / "unfinished", save_every=2)
    torch.save(results, folder / f"{index}.pt")


def steps(count):
    return Training(steps=count, batch_size=12, measurements=2)


if __name__ == "__main__":
    main(sys.argv[1])
