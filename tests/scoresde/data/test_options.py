"""Options of readers in the configuration of a training, by the command line."""

import json

import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet

from scoresde.app.cli import main

CONFIG = """
[data]
source = "{source}"
{options}
[sde]
name = "diagonal"
schedule = "vp"
basis = "identity"
[estimator]
name = "denoising"
observe = "components"
[estimator.network]
name = "residual-mlp"
width = 8
depth = 1
noise_levels = {count}
[solver]
name = "ddim"
steps = 2
[training]
steps = 2
batch_size = 8
"""


def text(folder):
    lines = "#measured\nx;x;5;6\n" + "1,5;2;3,5;\n2,5;;1,25;7,5\n;1;0,5;3\n" * 9
    (folder / "x.csv").write_text(lines, encoding="utf-16-le")
    return folder / "x.csv"


def table(folder):
    columns = {"5": [3.5, 1.25, 0.5] * 9, "6": [None, 7.5, 3.0] * 9, "kind": ["a"] * 27}
    parquet.write_table(pyarrow.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


def array(folder):
    values = np.array([[3, 1], [np.nan, 2], [1, np.nan]] * 9)
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


def images(folder):
    (folder / "x" / "below").mkdir(parents=True)
    first, second = (Image.new("RGBA", (4, 4), (level, 0, 0, 90)) for level in (0, 255))
    for i in range(9):
        path = folder / "x" / "below" / f"{i}.png"
        first.save(path, save_all=True, append_images=[second])
    return folder / "x"


SOURCES = [
    (
        text,
        'comment = "#"\nencoding = "utf-16-le"\ndelimiter = ";"\nheader = true\n'
        'columns = ["6", "5"]\ndecimal = ","\nmissing = "nan"\ndtype = "float32"',
        {"event_shape": [2], "columns": ["6", "5"], "missing": True},
    ),
    (
        table,
        'columns = ["6", "5"]\nmissing = "nan"\ndtype = "float32"',
        {"event_shape": [2], "columns": ["6", "5"], "missing": True},
    ),
    (
        array,
        'missing = "nan"\ndtype = "float64"\ncontinuous = true',
        {"event_shape": [2], "columns": None, "missing": True},
    ),
    (
        images,
        'mode = "L"\nsize = 1\nbackground = [0, 90, 255]\nframes = "first"\nsubfolders = true',
        {"event_shape": [1, 1, 1], "bins": 256, "missing": False},
    ),
]


@pytest.mark.parametrize(
    ("make", "options", "facts"), SOURCES, ids=lambda x: getattr(x, "__name__", "")
)
def test_every_option_is_one_of_the_configuration(tmp_path, make, options, facts):
    path, out = tmp_path / "config.toml", tmp_path / "out"
    source = make(tmp_path)
    command = ["train", str(path), "--output", str(out)]
    count = int(np.prod(facts["event_shape"]))
    for line in options.splitlines():
        less = options.replace(line, "")
        path.write_text(CONFIG.format(source=source, options=less, count=count))
        found = CliRunner().invoke(main, command)
        if not line.startswith(("dtype", "mode", "size", "continuous", "missing")):
            assert found.output.splitlines()[-1].startswith("Error: "), line
    path.write_text(CONFIG.format(source=source, options=options, count=count))
    found = CliRunner().invoke(main, [*command, "--replace"])
    assert found.exit_code == 0, found.output
    trained = json.loads((out / "config.json").read_text())["config"]["facts"]
    assert {name: trained[name] for name in facts} == facts
