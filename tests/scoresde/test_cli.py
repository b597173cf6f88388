"""The command line, as a user types it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from scoresde.cli import main

CONFIG = """
[data]
source = "{source}"
{options}
[sde]
name = "diagonal"
schedule = "log-linear"
[sde.basis]
name = "haar"
levels = 2
[estimator]
name = "denoising"
[estimator.network]
name = "residual-mlp"
width = 16
depth = 1
[solver]
name = "exponential-multistep"
steps = 4
[training]
steps = 3
batch_size = 8
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def config(folder, source="digits", options=""):
    path = folder / "config.toml"
    path.write_text(CONFIG.format(source=source, options=options))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    result = run("train", config(folder), "--output", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_sample(model, tmp_path):
    result = run("sample", model, "--count", 5, "--output", tmp_path / "x.npy",
                 "--png", tmp_path / "x.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "x.npy").shape == (5, 1, 8, 8)
    assert Image.open(tmp_path / "x.png").format == "PNG"


def test_sample_is_seeded_and_takes_another_solver(model, tmp_path):
    def sample(*options):
        result = run("sample", model, "--count", 2, "--output", tmp_path / "x.npy", *options)
        assert result.exit_code == 0, result.output
        return np.load(tmp_path / "x.npy")

    assert np.array_equal(sample(), sample("--seed", 0))
    assert not np.array_equal(sample(), sample("--seed", 1))
    assert not np.array_equal(sample(), sample("--solver", "heun", "--steps", 3))
    assert not np.array_equal(sample(), sample("--eta", 1.0))


@pytest.mark.parametrize("trace", [[], ["--hutchinson", 3]])
def test_evaluate(model, trace):
    result = run("evaluate", model, "--count", 4, "--json", *trace)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output[result.output.index("{") :])
    assert report["count"] == 4
    assert report["evaluations"] == 4
    assert 3 < report["bits_per_dim"] < 10  # of a model hardly trained, in four steps
    assert (report["trace_stderr"] > 0) == bool(trace)


def test_a_folder_of_images(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        Image.fromarray(np.full((10, 8, 3), 20 * i, dtype="u1")).save(images / f"{i:02}.png")
    path = config(tmp_path, images, 'size = 8\nmode = "RGB"')
    result = run("train", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    result = run("sample", tmp_path / "out", "--count", 2, "--output", tmp_path / "x.npy",
                 "--png", tmp_path / "x.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "x.npy").shape == (2, 3, 8, 8)


def test_cite(model):
    output = run("cite", model).output
    for key in ("batzolis2022", "vincent2011", "mallat1989", "lu2022b"):
        assert f"{{{key},\n" in output


def test_a_finished_model_is_replaced_only_when_told_to(tmp_path):
    path, out = config(tmp_path), tmp_path / "out"
    assert run("train", path, "--output", out).exit_code == 0
    before = sorted(file.name for file in out.iterdir())
    path.write_text(path.read_text().replace("steps = 3\n", "steps = 5\n"))
    result = run("train", path, "--output", out)
    assert result.output.startswith(f"Error: --output: {out} holds a finished model; --replace")
    assert sorted(file.name for file in out.iterdir()) == before
    assert run("train", path, "--output", out, "--replace").exit_code == 0
    assert sorted(file.name for file in out.iterdir()) != before


def test_pictures_change_nothing(tmp_path):
    path = config(tmp_path)
    path.write_text(path.read_text().replace("steps = 3\n", "steps = 3\nmeasurements = 3\n"))
    for name, options in (("with", ("--pictures", tmp_path / "pictures")), ("without", ())):
        result = run("train", path, "--output", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"0000000{i}.png" for i in (1, 2, 3)]
    weights = [[p.name for p in (tmp_path / name).iterdir()] for name in ("with", "without")]
    assert sorted(weights[0]) == sorted(weights[1])  # names are digests


def test_pictures_are_of_images(tmp_path):
    (tmp_path / "x.csv").write_text("\n".join(f"{i}.5,-{i}.5" for i in range(20)))
    path = config(tmp_path, tmp_path / "x.csv")
    path.write_text(path.read_text().replace('name = "haar"\nlevels = 2', 'name = "identity"'))
    result = run("train", path, "--output", tmp_path / "out", "--pictures", tmp_path / "pictures")
    assert result.output.startswith("Error: pictures: expected events that are images")
    result = run("train", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_without_accelerate(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = run("train", config(tmp_path), "--output", tmp_path / "out", "--distributed")
    assert "pip install 'scoresde[distributed]'" in result.output


def test_list_names_every_built_in():
    output = run("list").output
    for name in ("diagonal", "rectified-flow", "haar", "denoising", "residual-mlp", "torchsde"):
        assert name in output
    assert "broken" not in output


def test_errors_are_one_line(tmp_path):
    for arguments in (
        ("train", tmp_path / "none.toml", "--output", tmp_path / "out"),
        ("train", config(tmp_path, "nothing"), "--output", tmp_path / "out"),
        ("sample", tmp_path / "none"),
        ("evaluate", tmp_path / "none"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_training_replaces_and_removes_nothing_of_others(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "mine.txt").touch()
    result = run("train", config(tmp_path), "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "training" / "mine.txt").exists()
    (tmp_path / "config.json").write_text('{"mine": true}')
    result = run("train", config(tmp_path), "--output", tmp_path)
    assert "in the way" in result.output
    assert (tmp_path / "config.json").read_text() == '{"mine": true}'


def test_what_cannot_be_written_leaves_nothing_behind(model, tmp_path):
    array, folder = tmp_path / "x.npy", tmp_path / "folder"
    folder.mkdir()
    for options in (("--output", folder), ("--output", array, "--png", folder)):
        result = run("sample", model, "--count", 1, *options)
        assert result.exit_code == 1
        assert "irectory" in result.output
    assert set(tmp_path.iterdir()) == {array, folder}


def test_debug_shows_where(tmp_path):
    result = run("--debug", "sample", tmp_path / "none")
    assert type(result.exception).__name__ == "CheckpointError"


def test_other_data_than_trained_on(model, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8, 8), dtype="f4"))
    result = run("evaluate", model, "--data", tmp_path / "x.npy")
    assert result.output.startswith("Error: data: expected 17 levels")


def test_installed_command():
    done = subprocess.run(
        [sys.executable, "-c", "from scoresde.cli import main; main()", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("scoresde, version ")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "cite", "list"])
def test_help_is_no_error(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage")
    assert "Error" not in result.output


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Columns of very different units, one of them no number; and a model of the others."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    grams, share = 1000 + 200 * rng.standard_normal(500), 0.01 * rng.standard_normal(500)
    lines = [f"rose,{g:.3f},{s:.6f}" for g, s in zip(grams, share, strict=True)]
    (folder / "flowers.csv").write_text("\n".join(["kind,grams,share", *lines]))
    text = CONFIG.format(
        source=folder / "flowers.csv", options='columns = ["grams", "share"]'
    ).replace('name = "haar"\nlevels = 2', 'name = "identity"')
    path = folder / "table.toml"
    path.write_text(text.replace("steps = 3\n", "steps = 200\n").replace("= 4", "= 12"))
    result = run("train", path, "--output", folder / "model")
    assert result.exit_code == 0, result.output
    return folder


def test_columns_keep_their_units(table):
    """Noise and network are in the unit of each, though the configuration says nothing of it."""
    result = run("sample", table / "model", "--count", 400, "--output", table / "x.npy")
    assert result.exit_code == 0, result.output
    x = np.load(table / "x.npy")
    assert np.abs(x.mean(0) / [1000, 0.01] - [1, 0]).max() < 0.3
    assert np.abs(x.std(0) / [200, 0.01] - 1).max() < 0.3


def test_other_data_are_read_as_the_model_s_own(table):
    other = table / "other.csv"
    other.write_text((table / "flowers.csv").read_text())
    result = run("evaluate", table / "model", "--data", other, "--count", 5)
    assert result.exit_code == 0, result.output


def test_no_picture_of_what_is_no_image(table):
    """Said before anything is sampled."""
    result = run("sample", table / "model", "--output", table / "y.npy", "--png", table / "y.png")
    assert result.exit_code == 1
    assert "--png: expected events that are images" in result.output
    assert not (table / "y.npy").exists()
