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


def modules(statement):
    """What a fresh process has imported, by the first part of its name."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_nothing_heavy_is_imported_with_the_packages():
    assert not modules("import scoresde, estimators, solvers") & HEAVY


@pytest.mark.parametrize(
    ("package", "name", "needs"),
    [
        ("scoresde", "ScoreDistribution", "pyro"),
        ("solvers", "TorchDiffEq", "torchdiffeq"),
        ("solvers", "TorchSDE", "torchsde"),
    ],
)
def test_what_stands_on_a_library_imports_it_when_asked_for(package, name, needs):
    assert needs in modules(f"from {package} import {name}")


@pytest.mark.parametrize("package", ["scoresde", "solvers"])
def test_an_unknown_name_is_an_attribute_error(package):
    module = __import__(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", ["scoresde", "estimators", "solvers"])
def test_every_public_name_is_there(package):
    module = __import__(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
