"""What the reference shows is shown in use, by an example that can be copied."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import estimators
import scoresde
import solvers

PAGES = Path(__file__).parents[1] / "docs" / "reference"
MODULES = re.findall(
    r"automodule:: (\S+)", "\n".join(page.read_text() for page in sorted(PAGES.glob("*.md")))
)


def public():
    """Classes and functions that are exported, or are of a module that a page shows, by name."""
    found = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in (scoresde, estimators, solvers)
        for name in package.__all__
    }
    exported = {id(thing) for thing in found.values()}
    for module in map(importlib.import_module, MODULES):
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == module.__name__
            shown = inspect.isclass(thing) or inspect.isfunction(thing)
            if own and shown and not name.startswith("_") and id(thing) not in exported:
                found[f"{module.__name__}.{name}"] = thing
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs_by_itself(name):
    """In an empty namespace: it imports all that it uses."""
    found = doctest.DocTestFinder().find(PUBLIC[name], name, globs={})
    examples = [test for test in found if test.examples]
    assert examples
    for example in examples:
        said = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            result = doctest.DocTestRunner(verbose=False).run(
                example, out=said.append, clear_globs=False
            )
        assert result.failed == 0, "".join(said)
