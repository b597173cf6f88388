"""Settings of the property tests."""

import gc
import itertools
import os
import sys
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.distributions import Distribution

settings.register_profile(
    "scoresde",
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    # of fixtures, every example may have the same dtype
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("scoresde")


# without a device, torch would note for each kind where in the program it was asked
SEED = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
ON_IMPORT = ("KMP_", "TORCHINDUCTOR_", "PYTEST_")
"""Variables that libraries set when they are first needed."""


def world():
    """What one test could leave behind for another."""
    pyplot, pyro = sys.modules.get("matplotlib.pyplot"), sys.modules.get("pyro")
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "figures": pyplot.get_fignums() if pyplot else [],
        "style of figures": dict.copy(pyplot.rcParams) if pyplot else None,
        "Pyro's parameters": list(pyro.get_param_store().keys()) if pyro else [],
        "working directory": os.getcwd(),
        "import path": list(sys.path),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(ON_IMPORT)},
    }


@pytest.fixture(autouse=True)
def alone():
    """The order of tests does not matter: each draws the same numbers, and leaves no setting."""
    SEED(0)
    before = world()
    yield
    # the first `torch.compile` of a process turns this off for all of it
    Distribution.set_default_validate_args(__debug__)
    after = world()
    changed = [k for k, v in before.items() if v is not None and v != after[k]]
    assert not changed, f"a test leaves behind: {', '.join(changed)}"


@pytest.fixture
def float64():
    """Formulas are checked in double precision; what is less precise says so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pytest_addoption(parser):
    parser.addoption("--products", action="store_true", help="run products that covering() thins")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "covering(strength): of the product of all parameters, as many cases as it takes for every "
        "`strength` values of different parameters to meet",
    )


# what is collected stays until the end: looking through all of it for garbage takes a tenth of it
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session):
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


# before they are shuffled: it is the same cases every time
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Where parameters are independent, what fails for a pair of values is seen by few cases."""
    if not config.getoption("products"):
        products = {}
        for item in items:
            if item.get_closest_marker("covering"):
                products.setdefault(item.nodeid.partition("[")[0], []).append(item)
        left_out = {item for product in products.values() for item in superfluous(product)}
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=[*left_out])
    return (yield)


def superfluous(product):
    """The cases of a product beside those that are chosen: those with most that is new, and rare.

    A parametrisation of several arguments at once has to be of one, a tuple, to be a dimension.
    """
    (strength,) = product[0].get_closest_marker("covering").args
    values = {
        item: [(name, id(value)) for name, value in item.callspec.params.items()]
        for item in product
    }
    meetings = {item: {*itertools.combinations(own, strength)} for item, own in values.items()}
    missing, chosen = set().union(*meetings.values()), Counter()

    def worth(item):
        return len(meetings[item] & missing), -sum(chosen[value] for value in values[item])

    while missing:
        best = max(meetings, key=worth)
        missing -= meetings.pop(best)
        chosen.update(values[best])
    return meetings
