"""The loop of fixed steps: compiled whole, without host synchronisation, in bounded memory."""

import gc
import weakref

import pytest
import torch
from models import SOLVERS
from torch.utils._python_dispatch import TorchDispatchMode

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity, Noise, ReverseSDE
from solvers import DDIM, ExponentialMultistep

FIXED = ["ddim", "euler-maruyama", "exponential-multistep", "heun"]
every_name, every_eta = (
    pytest.mark.parametrize("name", FIXED),
    pytest.mark.parametrize("eta", [0.0, 1.0]),
)


def bed():
    torch.manual_seed(0)
    model = Denoising(
        DiagonalSDE(VP(), Identity((4,)), [0.5, 1.0, 2.0, 1.0]), ResidualMLP((4,), 8, 1)
    )
    return model.eval()


def loop(name, eta, steps=3):  # by which multistep methods have all their memory
    model = bed()
    solver, reverse, z = (
        SOLVERS[name](steps, eta=eta),
        ReverseSDE(model, eta),
        torch.randn(3, 4),
    )
    ahead = list(solver.prepare(reverse, -solver.times(model.sde), z))
    return solver, reverse, z, lambda y: solver.run(y, ahead, Noise())


@pytest.mark.covering(1)
@every_name
@every_eta
def test_the_loop_compiles_without_a_graph_break(name, eta):
    _, _, z, run = loop(name, eta)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.manual_seed(1)
        found = compiled(z)
        torch.manual_seed(1)
        torch.testing.assert_close(found, run(z))


@every_name
@every_eta
def test_a_prepared_run_is_an_integration(name, eta):
    solver, reverse, z, run = loop(name, eta)
    with torch.no_grad():
        torch.manual_seed(1)
        found = solver.integrate(reverse, z, -solver.times(reverse.sde), Noise())
        torch.manual_seed(1)
        assert torch.equal(run(z), found)


class Watch(TorchDispatchMode):
    """Notes every operator that makes the host wait for a device, and every float64 made."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.waited, self.wide = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in self.WAITING:
            self.waited.append(name)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.wide.append(name)
        return out


@pytest.mark.parametrize(
    ("name", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("exponential-multistep", 0.0)]
)
def test_the_loop_does_not_wait_for_the_device_nor_use_float64(name, eta):
    _, _, z, run = loop(name, eta)
    with torch.no_grad(), Watch() as watch:
        run(z)
    assert watch.waited == []
    assert watch.wide == []


def test_a_watch_sees_what_it_is_for():
    with Watch() as watch:
        float(torch.ones(1).double())
    assert watch.waited
    assert watch.wide


@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_memory_does_not_grow_with_the_steps(solver):
    """States that are no longer needed are let go: few are alive at any time."""
    model, states, most = bed(), [], 0

    class Recording(torch.nn.Module):
        def forward(self, x, level):
            nonlocal most
            out = torch.tanh(x)
            states.append(weakref.ref(out))
            most = max(most, sum(ref() is not None for ref in states))
            return out

    model.network = Recording()
    counts = []
    for steps in (10, 80):
        states.clear()
        gc.collect()
        most = 0
        solver(steps).sample(model, (3,))
        counts.append(most)
    assert counts[0] == counts[1] <= 4
