"""The files to copy in CONTRIBUTING.md: filled in, they fit the project and obey the laws."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import distributions
import pytest

from scoresde import plugins
from scoresde.testing import conformance
from scoresde.testing.conformance import LAWS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SKELETONS = dict(
    zip(
        ("schedules", "bases", "sdes", "estimators", "solvers"),
        re.findall(r"```py\n(.*?)```", TEXT.partition("## Files to copy")[2], re.DOTALL),
        strict=True,
    )
)
BLANK = r"<([A-Za-z][\w, ]*)>"
COMMON = {"What it is": "A filled skeleton", "source": "its author", "Name": "Mine"}
"""Blanks that all skeletons have."""

FILLED = {
    "schedules": {
        "its module": "scoresde.schedules.mine",
        "an example": "Mine().eps",
        "what it says": "0.001",
        "What it means": "Decay of the signal",
        "log alpha": "-rate * t",
        "sigma": "(-(2 * self.log_alpha(t)).expm1()).sqrt()",
    },
    "bases": {
        "its module": "scoresde.bases.mine",
        "an example": "Mine((2,)).dim",
        "what it says": "2",
        "names and sizes of blocks": '"last": 1, "rest": n - 1',
        "coefficients of flat": "flat.flip(-1)",
        "events of z, flat": "z.flip(-1)",
    },
    "sdes": {
        "its module": "scoresde.sdes.mine",
        "an example": "Mine((2,)).T",
        "what it says": "3.0",
        "T": "3.0",
        "deviation at T": "torch.ones(n)",
        "drift": "-y",
        "diffusion": "torch.full_like(y, 2**0.5)",
    },
    "estimators": {
        "its module": "estimators.mine",
        "an example": "Mine.__name__",
        "what it says": "'Mine'",
        "weights before training": "torch.zeros(2, sde.basis.dim)",  # mean, log-variance
        "denoised mean": "(sigma**2 * self.weights[0, :m] + alpha * self.weights[1, :m].exp() * z)"
        " / (alpha**2 * self.weights[1, :m].exp() + sigma**2)",
    },
    "solvers": {
        "its module": "solvers.mine",
        "an example": "Mine(4).steps",
        "what it says": "4",
        "order on an ODE": "1.0",
        "weak order, with noise": "1.0",
        "end of the step": "step.decay * y + step.gain * field.forcing(y)",
        "noise of the step": "step.noise_std * field.increment(y, noise(y))",
    },
}


def filled(group):
    """A skeleton with its blanks filled in, all of them and no others."""
    words = {**COMMON, **FILLED[group]}
    assert set(re.findall(BLANK, SKELETONS[group])) == words.keys()
    return re.sub(BLANK, lambda blank: words[blank[1]], SKELETONS[group])


@pytest.fixture(scope="module")
def laws(tmp_path_factory):
    """The laws of every skeleton, installed as a distribution of its own."""
    root = tmp_path_factory.mktemp("site")
    for group in SKELETONS:
        distributions.write(
            root,
            f"skeleton-{group}",
            f"scoresde.{group}",
            f"mine = skeleton_{group}_plugin:Mine",
            filled(group),
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        plugins.refresh()
        yield {group: conformance(f"skeleton-{group}") for group in SKELETONS}
        for group in SKELETONS:
            sys.modules.pop(f"skeleton_{group}_plugin")
    plugins.refresh()


@pytest.mark.parametrize(
    ("group", "law"),
    [(group, law) for group in SKELETONS for law in dir(LAWS[group]) if law.startswith("test_")],
)
def test_a_skeleton_obeys(laws, group, law):
    (kind,) = laws[group].values()
    getattr(kind(), law)()


@pytest.mark.parametrize("group", SKELETONS)
def test_a_skeleton_is_short(group):
    assert len(SKELETONS[group].splitlines()) <= 50


def test_a_skeleton_is_one_file_of_the_project(tmp_path):
    """Where it belongs, it passes the tests of every file, and no other has to be changed."""
    for name in ("scoresde", "estimators", "solvers", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "CONTRIBUTING.md", tmp_path)
    for group in SKELETONS:
        path = FILLED[group]["its module"].replace(".", "/")
        (tmp_path / f"{path}.py").write_text(filled(group))
    tests = [f"tests/test_{name}.py" for name in ("structure", "arguments", "reference")]
    chosen = ["-k", "mine or test_structure or test_arguments"]  # which go through all modules
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests, *chosen],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(tmp_path / "tests")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    seen = {group for group in SKELETONS if FILLED[group]["its module"] in done.stdout}
    assert seen == SKELETONS.keys()
