"""Arguments: what docstrings say can be given can be, and what is given if nothing is."""

import importlib
import inspect
import itertools
import pkgutil
import re
import types
from pathlib import Path

import attrs

import estimators
import scoresde
import solvers

MODULES = sorted(
    found.name
    for package in (scoresde, estimators, solvers)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.endswith("__main__")
)


def explained(what):
    """Names in the section on arguments, in order; None without one."""
    section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", f"{inspect.getdoc(what)}\n", re.MULTILINE)
    return re.findall(r"^ {4}\*{0,2}(\w+):", section[1], re.MULTILINE) if section else None


def documented(module):
    """Classes, functions and methods of a module that explain their arguments."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        inner = vars(value).values() if inspect.isclass(value) else ()
        for one in (value, *(getattr(v, "__func__", v) for v in inner)):
            if (inspect.isclass(one) or inspect.isfunction(one)) and explained(one):
                yield one


def parameters(what):
    """What it takes, by name; of a function that shows another signature, its own."""
    if inspect.isfunction(what) and hasattr(what, "__signature__"):
        own = types.FunctionType(what.__code__, what.__globals__, argdefs=what.__defaults__)
        own.__kwdefaults__ = what.__kwdefaults__
        what = own
    return {
        name: parameter
        for name, parameter in inspect.signature(what).parameters.items()
        if name not in ("self", "cls")
    }


def test_arguments_are_those_that_are_explained():
    """What a class leaves out is explained by one that it extends."""
    for what in [what for name in MODULES for what in documented(importlib.import_module(name))]:
        said, taken = explained(what), parameters(what)
        extended = what.__mro__[1:] if inspect.isclass(what) else ()
        inherited = {one for base in extended for one in explained(base) or ()}
        assert {*said} <= {*taken} <= {*said} | inherited, what
        keywords = {k for k, v in taken.items() if v.kind == inspect.Parameter.KEYWORD_ONLY}
        in_order = [k for k in taken if k in said and k not in keywords]
        assert in_order == [k for k in said if k not in keywords], what


def test_arguments_are_found():
    found = [
        name
        for module in MODULES
        for what in documented(importlib.import_module(module))
        for name in explained(what)
    ]
    assert len(found) > 500


def test_defaults_are_accepted():
    """Nobody may ever have made one with nothing said."""
    named = (vars(importlib.import_module(name)).values() for name in MODULES)
    for what in itertools.chain.from_iterable(named):
        if inspect.isclass(what) and attrs.has(what) and not inspect.isabstract(what):
            for field in attrs.fields(what):
                if field.validator and field.default is not attrs.NOTHING:
                    field.validator(object.__new__(what), field, field.default)


def written(module):
    """What is given if nothing is: a line for every function and method that has such arguments."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        own = vars(value).values() if inspect.isclass(value) else (value,)
        for one in (getattr(v, "__func__", v) for v in own):
            if inspect.isfunction(one) and (said := ", ".join(defaults(one))):
                yield f"{module.__name__}.{one.__qualname__}: {said}"


def defaults(what):
    """Numbers, words and functions; with a star what is given by name only."""
    for name, parameter in parameters(what).items():
        value = parameter.default
        if inspect.isfunction(value) or isinstance(value, (bool, int, float, str, tuple)):
            star = "*" if parameter.kind == parameter.KEYWORD_ONLY else ""
            yield f"{star}{name}={getattr(value, '__name__', repr(value))}"


def test_defaults_are_those_that_are_written_down():
    """What changes for those who say nothing is changed there, too, and said to them.

    A file of which nothing stands there is new, and has changed for nobody.
    """
    listed = {*Path(__file__).with_name("defaults.txt").read_text().splitlines()}
    each = [{*written(importlib.import_module(name))} for name in MODULES]
    assert {line for lines in each if lines & listed for line in lines} == listed
