"""The files to copy in CONTRIBUTING.md: filled in and installed, they obey the laws."""

import re
import sys
from pathlib import Path

import distributions
import pytest

from scoresde import plugins
from scoresde.testing import conformance
from scoresde.testing.conformance import LAWS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
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
        "What it means": "Decay of the signal",
        "log alpha": "-rate * t",
        "sigma": "(-(2 * self.log_alpha(t)).expm1()).sqrt()",
    },
    "bases": {
        "names and sizes of blocks": '"last": 1, "rest": n - 1',
        "coefficients of flat": "flat.flip(-1)",
        "events of z, flat": "z.flip(-1)",
    },
    "sdes": {
        "T": "3.0",
        "deviation at T": "torch.ones(n)",
        "drift": "-y",
        "diffusion": "torch.full_like(y, 2**0.5)",
    },
    "estimators": {
        "weights before training": "torch.zeros(2, sde.basis.dim)",  # mean, log-variance
        "denoised mean": "(sigma**2 * self.weights[0, :m] + alpha * self.weights[1, :m].exp() * z)"
        " / (alpha**2 * self.weights[1, :m].exp() + sigma**2)",
    },
    "solvers": {
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
