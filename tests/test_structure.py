"""How the packages are built: short files, short functions, imports in one direction.

What may import what stands in CONTRIBUTING.md, and is read from there.
"""

import ast
import io
import re
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

from scoresde import plugins

ROOT = Path(__file__).parents[1]
PACKAGES = ("scoresde", "estimators", "solvers")
LINES, CODE = 400, 40


def name_of(path):
    """As it is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def tree(name):
    return ast.parse(MODULES[name].read_text())


@cache
def imported(name):
    """What a module imports of ours, wherever it does: in functions, and for types alone, too."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            # a name of a package may be one of its modules
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys()
            found |= {node.module} if inner - MODULES.keys() else set()
    return found & MODULES.keys()


# Length.


def test_files_are_short():
    count = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in count.items() if lines > LINES} == {}


def lines_of_code(name):
    """The lines of code of every function: those that hold a token beside docstring and comment."""
    beside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(MODULES[name].read_text()).readline):
        if token.type not in beside:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            own = code & set(range(node.lineno, node.end_lineno + 1))
            if ast.get_docstring(node) is not None:
                own -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
            yield f"{name}.{node.name}", len(own)


def test_functions_are_short():
    """In lines of code: docstrings, comments and blank lines do not count, the signature does."""
    found = [each for name in MODULES for each in lines_of_code(name)]
    assert [(f, count) for f, count in found if count > CODE] == []


# Direction.


def layers():
    """The lines of the list in CONTRIBUTING.md, lowest first: sets of modules and folders."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## The direction of imports")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    return [set(line.split()) for line in block.splitlines()]


def place(name):
    """The entry of that list which a module belongs to: a folder, a module, a package."""
    package, *inner = name.split(".")
    if package != "scoresde":
        return f"{package}/"
    if not inner or inner[0].startswith("_"):
        return "scoresde"
    folder = len(inner) > 1 or MODULES[name].name == "__init__.py"
    return f"{inner[0]}/" if folder else inner[0]


LAYERS = layers()


def layer(name):
    (index,) = [i for i, line in enumerate(LAYERS) if place(name) in line]
    return index


def test_every_module_has_one_place():
    listed = [entry for line in LAYERS for entry in line]
    assert sorted(listed) == sorted({place(name) for name in MODULES})


def test_imports_go_down():
    """Or stay in their line, and there no folder imports another."""

    def wrong(name, other):
        above, here, there = layer(other) - layer(name), place(name), place(other)
        return above > 0 or (above == 0 and here != there and here[-1] == there[-1] == "/")

    pairs = {(name, other) for name in MODULES for other in imported(name)}
    assert {pair for pair in pairs if wrong(*pair)} == set()


def test_no_module_imports_itself_in_the_end():
    """Type-only imports and those in functions included."""
    try:
        TopologicalSorter({name: imported(name) - {name} for name in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


# Names.

BUILT_IN = {
    name
    for group in ("estimators", "networks", "solvers")
    for name, plugin in plugins.available(group).items()
    if plugin.distribution == "scoresde" and find_spec(name) is None  # the name of a library
}


def test_the_language_names_nothing_that_is_built_in():
    """Neither in code nor in words: examples of docstrings alone use estimators and solvers."""
    for name in MODULES:
        if name.split(".")[0] == "scoresde":
            source = re.sub(r"(?m)^\s*(>>>|\.\.\.) .*$", "", MODULES[name].read_text())
            assert re.findall(r"\b(?:estimators|solvers)\.[A-Za-z_]\w*", source) == [], name
            strings = {
                node.value for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)
            }
            assert strings & BUILT_IN == set(), name


def test_test_files_have_names_of_their_own():
    """Or pytest collects none of them."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
