"""The demo and the ten lines run and leave what they promise."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from forks import forked
from PIL import Image

from scoresde.app.config import read
from scoresde.app.model import Model

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name, *arguments):
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run(name, *arguments):
    done = forked(script, name, *arguments)
    assert done.returncode == 0, done.stderr


def test_demo(tmp_path):
    run("digits.py", "--quick", "--output", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["models"]) == 2
    for row in report["models"]:
        assert {
            "name", "parameters", "bits_per_dim", "bits_per_dim_stderr", "evaluations",
            "seconds_train", "seconds_sample", "quality",
        } <= set(row)  # fmt: skip
        assert len(row["solvers"]) == 2
        assert 2 < row["bits_per_dim"] < 6
    assert report["reference"]["quality"]["accuracy"] > 0.5
    assert len(report["pictures"]) == 6
    for name in report["pictures"]:
        assert min(Image.open(tmp_path / name).size) > 200


@pytest.mark.parametrize("name", ["digits.toml", "multiscale.toml"])
def test_files(name, tmp_path):
    """As they are, but for the time they take."""
    settings = read(EXAMPLES / name)
    settings["training"] |= {"steps": 2, "measurements": 1}
    model = Model.train(settings, progress=False)
    assert model.solver.sample(model.estimator, (2,)).shape == (2, 1, 8, 8)


def test_ten_lines():
    run("ten_lines.py")
