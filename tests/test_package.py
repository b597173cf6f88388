"""What is published: an sdist, and the wheel that is built from it, which works where it lands."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import scoresde

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
SAMPLE = """
import torch, scoresde
from scoresde.app.cli import main
from estimators import Gaussian
from solvers import DDIM
sde = scoresde.DiagonalSDE(scoresde.VP(), scoresde.Haar((1, 4, 4), levels=1))
x = DDIM(4).sample(Gaussian(sde, torch.zeros(1, 4, 4), torch.eye(16)), (3,))
print(
    scoresde.__file__, scoresde.__version__, tuple(x.shape), scoresde.citation(sde).count("@")
)
main(["init", "table", "--output", "mine.toml"])
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "-w", str(folder), str(sdist), cwd=folder)
    (path,) = folder.iterdir()
    return path


def test_the_sdist_is_the_project_and_no_litter(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "tox.ini",
                 "pyproject.toml", "tests/conftest.py", "examples/digits.toml", "docs/index.md",
                 "examples/plugin/pyproject.toml", "scoresde/citations.bib"):  # fmt: skip
        assert name in names
    litter = ("__pycache__", ".pyc", ".hypothesis", "_build/", ".git/", ".tox/", ".npy", ".png")
    assert [name for name in names if any(part in name for part in litter)] == []


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"scoresde-{scoresde.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    here = {
        path.relative_to(ROOT).as_posix()
        for package in ("scoresde", "estimators", "solvers")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # what scoresde init writes
    here |= {f"scoresde/app/examples/{path.name}" for path in (ROOT / "examples").glob("*.toml")}
    assert {name for name in names if not name.startswith(info)} == here
    assert {f"{package}/py.typed" for package in ("scoresde", "estimators", "solvers")} < here
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload().startswith("# scoresde")


def test_it_works_where_it_is_installed(wheel, tmp_path):
    """In an environment of its own, which borrows nothing but what we depend on."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    run(*PIP, "--python", str(python), "install", *OFFLINE, str(wheel))
    borrowed = sysconfig.get_path("purelib")
    site = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "borrowed.pth").write_text(f"{borrowed}\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def here(*command):
        return run(*command, cwd=tmp_path, env=environment)

    command = str(python.with_name("scoresde"))
    listing = here(command, "list")
    assert "exponential-multistep" in listing
    assert "broken" not in listing
    file, rest = here(str(python), "-c", SAMPLE).split(maxsplit=1)
    assert Path(file).is_relative_to(tmp_path)
    first, written = rest.split("\n", 1)
    assert first == f"{scoresde.__version__} (3, 1, 4, 4) 6"
    assert "mine.toml: written" in written
