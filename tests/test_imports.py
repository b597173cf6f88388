"""Importing costs little more than importing torch."""

import subprocess
import sys

import pytest

HEAVY = {
    "PIL",
    "accelerate",
    "click",
    "matplotlib",
    "pyarrow",
    "pyro",
    "safetensors",
    "scipy",
    "sklearn",
}
HEAVY |= {"torchdiffeq", "torchsde"}


NEEDS = {
    "from scoresde import ScoreDistribution": "pyro",
    "from solvers import TorchDiffEq": "torchdiffeq",
    "from solvers import TorchSDE": "torchsde",
}


@pytest.fixture(scope="module")
def imported():
    """What a fresh process has imported, by the first part of its name, after each statement."""
    statements = ["import scoresde, estimators, solvers", *NEEDS]
    told = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", "\n".join(f"{statement}; {told}" for statement in statements)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [set(line.split()) for line in done.stdout.splitlines()]
    return dict(zip(statements, lines, strict=True))


def test_nothing_heavy_is_imported_with_the_packages(imported):
    assert not imported["import scoresde, estimators, solvers"] & HEAVY


@pytest.mark.parametrize("statement", NEEDS)
def test_what_stands_on_a_library_imports_it_when_asked_for(imported, statement):
    assert NEEDS[statement] in imported[statement]


@pytest.mark.parametrize("package", ["scoresde", "solvers"])
def test_an_unknown_name_is_an_attribute_error(package):
    module = __import__(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", ["scoresde", "estimators", "solvers"])
def test_every_public_name_is_there(package):
    module = __import__(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
