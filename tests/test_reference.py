"""What packages export is shown in use, by an example that can be copied; all examples run."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import estimators
import scoresde
import solvers

PACKAGES = (scoresde, estimators, solvers)
MODULES = [
    found.name
    for package in PACKAGES
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not re.search(r"\._", found.name)
]


def public():
    """Classes and functions that are exported, or are of a public module, by name."""
    found = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in PACKAGES
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


def exported():
    """Names that packages offer, those within others as well."""
    names = [package.__name__ for package in PACKAGES]
    names += [
        found.name
        for package in PACKAGES
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if found.ispkg
    ]
    for package in map(importlib.import_module, names):
        yield from (getattr(package, name) for name in getattr(package, "__all__", ()))


def shown_in_modules():
    """Modules with examples in their own docstrings."""
    found = {name: importlib.import_module(name) for name in MODULES}
    return {name: module for name, module in found.items() if ">>>" in (module.__doc__ or "")}


PUBLIC = public()
SHOWN = {**PUBLIC, **shown_in_modules()}
EXPORTED = {id(thing) for thing in exported()}


def module(name):
    return getattr(SHOWN[name], "__module__", name)


@pytest.mark.parametrize("place", sorted({module(name) for name in SHOWN}))
def test_an_example_runs_by_itself(place):
    """In an empty namespace: it imports all that it uses."""
    for name in [name for name in SHOWN if module(name) == place]:
        finder = doctest.DocTestFinder(recurse=name in PUBLIC)
        found = finder.find(SHOWN[name], name, globs={})
        examples = [test for test in found if test.examples]
        assert examples or id(SHOWN[name]) not in EXPORTED, name
        for example in examples:
            said = []
            with torch.random.fork_rng():
                torch.manual_seed(0)
                result = doctest.DocTestRunner(verbose=False).run(
                    example, out=said.append, clear_globs=False
                )
            assert result.failed == 0, "".join(said)
