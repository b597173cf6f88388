"""The command line, as a user types it."""

import json
import math
import os
import re
import runpy
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from commands import config, run
from forks import forked, needs_fork
from PIL import Image

from scoresde.app.cli import main
from scoresde.app.model import Model
from scoresde.app.reports import as_json
from scoresde.solver import Solver
from solvers import DDIM


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
    assert report["evaluations"] == 4 + 3  # for the solver's error
    assert 3 < report["bits_per_dim"] < 10  # of a model hardly trained, in four steps
    assert (report["trace_stderr"] > 0) == bool(trace)
    assert report["solver_error"] > 0


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


def test_samples_are_data_again(model, tmp_path):
    """Of the bins that the model knows, whatever the file says of them."""
    path = tmp_path / "x.npy"
    assert run("sample", model, "--count", 6, "--output", path).exit_code == 0
    assert np.load(path).dtype == np.uint8
    assert np.load(path).max() <= 16
    result = run("evaluate", model, "--data", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["count"] == 6
    np.save(path, np.full((3, 1, 8, 8), 17, "u1"))
    assert "integers from 0 to 16" in run("evaluate", model, "--data", path).output


def test_many_samples_are_drawn_some_at_a_time(model, tmp_path, monkeypatch):
    sizes, sample = [], Solver.sample

    def spy(self, estimator, shape, **options):
        sizes.append(shape)
        return sample(self, estimator, shape, **options)

    monkeypatch.setattr(Solver, "sample", spy)
    result = run("sample", model, "--count", 5000, "--output", tmp_path / "x.npy")
    assert result.exit_code == 0, result.output
    assert sizes == [(4096,), (904,)]
    x = np.load(tmp_path / "x.npy")
    assert len(x) == 5000
    assert not np.array_equal(x[:904], x[4096:])


def test_a_folder_of_pictures_of_all_bins(model, tmp_path):
    result = run("sample", model, "--count", 12, "--output", f"{tmp_path}/new/")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "new").glob("??.png"))) == 12
    again = run("sample", model, "--count", 12, "--output", f"{tmp_path}/new/")
    assert again.output.startswith("Error: --output: expected a new or an empty folder")


def test_json_is_json(model):
    """One probe has no standard error."""
    result = run("evaluate", model, "--count", 2, "--json", "--hutchinson", 1)

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    assert json.loads(result.stdout, parse_constant=refuse)["trace_stderr"] is None


def test_lines_say_what_is_known(model):
    result = run("evaluate", model, "--count", 2, "--hutchinson", 1)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    assert "trace_stderr" not in lines  # of one probe
    assert "nan" not in result.stdout
    assert re.fullmatch(r"-?\d{1,6}(\.\d{1,5})?", lines["nats"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_null(value):
    assert json.loads(as_json({"nats": value, "count": 3})) == {"nats": None, "count": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eta", "1e300"), r"solver: eta: expected a finite number from 0 to 1000, got 1e\+300"),
        (("--eta", "nan"), "solver: eta: expected a finite number .* got nan"),
        (("--steps", 2 * 10**9), "solver: steps: expected a whole number of at most 1000000"),
        (("--count", 10**12), "--count: expected at most 1 GiB, got .* SCORESDE_MEMORY"),
        (("--count", 2**63 - 1), "--count: expected at most 1 GiB"),
        (("--solver", "torchdiffeq", "--eta", 1), "eta: expected 0"),
        (("--solver", "dimm"), "did you mean 'ddim'"),
        (("--solver", "test_cli:nothing", "--allow-imports"), "expected a Solver, got None"),
        (
            ("--solver", "test_cli:exits", "--allow-imports"),
            r"solver: test_cli:exits failed: SystemExit: 0",
        ),
        (("--solver", ""), "no plugin ''"),
        (("--solver", "test_cli:SHELF", "--allow-imports"), "solver: 'test_cli:SHELF': .* called"),
        (("--solver", "test_cli:Exiting", "--allow-imports"), "something exited .* status 0"),
        (("--solver", "test_cli:Broken", "--allow-imports"), "AttributeError: .*--debug shows"),
        (("--solver", "test_cli:Full", "--allow-imports"), "MemoryError"),
        (
            ("--solver", "test_cli:Short", "--allow-imports"),
            r"samples: .*\(64, 1, 8, 8\) from Short",
        ),
        (("--solver", "test_cli:Deep", "--allow-imports"), "RecursionError: .*--debug shows"),
    ],
)
def test_samples_that_cannot_be_drawn(model, tmp_path, options, message):
    """One line, and a status that says so; at once, where no solver has to be tried."""
    result = run("sample", model, "--output", tmp_path / "x.npy", *options)
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert re.match(rf"Error: .*{message}", last), result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


SHELF = 3


def nothing():
    """Returns no solver."""


def exits():
    raise SystemExit(0)


class Exiting(DDIM):
    def rsample(self, *_, **__):
        raise SystemExit(0)


class Short(DDIM):
    def rsample(self, *arguments, **options):
        return super().rsample(*arguments, **options)[..., 1:]


class Deep(DDIM):
    def rsample(self, *arguments, **options):
        return self.rsample(*arguments, **options)


class Broken(DDIM):
    def rsample(self, *_, **__):
        return self.nothing


class Full(DDIM):
    def rsample(self, *_, **__):
        raise MemoryError


def test_probes_have_a_bound(model):
    result = run("evaluate", model, "--hutchinson", 10**8)
    assert result.output.startswith("Error: --hutchinson: expected at most 1 GiB")


def test_cite(model):
    output = run("cite", model).output
    for key in ("batzolis2022", "vincent2011", "mallat1989", "lu2022b"):
        assert f"{{{key},\n" in output


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


def test_one_process_is_said_to_be_alone(tmp_path):
    pytest.importorskip("accelerate")
    result = run("train", config(tmp_path), "--output", tmp_path / "out", "--distributed")
    assert result.exit_code == 0, result.output
    assert "--distributed: 1 process on cpu\n" in result.output
    assert "Warning: --distributed: one process trains alone; " in result.output


def one_of_two(rank, port, *arguments):
    """As ``torchrun`` starts them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    main([str(argument) for argument in arguments])


@needs_fork
def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("accelerate")
    path = config(tmp_path)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    one = run("train", path, "--output", tmp_path / "one")
    with ThreadPoolExecutor() as both:
        train = ["train", path, "--output", tmp_path / "two", "--distributed"]
        first, second = both.map(lambda rank: forked(one_of_two, rank, port, *train), range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert one.output.count("trained in") == first.stdout.count("trained in") == 1
    assert "trained in" not in second.stdout
    assert "--distributed: 2 processes on cpu\n" in first.stderr
    models = [Model.load(tmp_path / name).estimator.state_dict() for name in ("one", "two")]
    torch.testing.assert_close(*models)


def test_pictures_have_a_place_before_training(tmp_path):
    (tmp_path / "select").touch()
    path = config(tmp_path)
    result = run("train", path, "--output", tmp_path / "out", "--pictures", tmp_path / "select")
    assert result.exit_code == 1
    assert "select" in result.output
    assert "training:" not in result.output


def warned(*arguments):
    load = Model.load.__func__

    def warning(*args, **kwargs):
        warnings.warn("look\nhere", stacklevel=1)
        return load(*args, **kwargs)

    Model.load = classmethod(warning)
    main(arguments)


@needs_fork
def test_warnings_are_a_line(model):
    assert forked(warned, "cite", str(model)).stderr == "Warning: look here\n"


def to_nobody():
    """As ``scoresde list | head -1`` is, whose reader leaves early."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    main(["list"])


@needs_fork
def test_a_reader_that_leaves_early_is_no_error():
    assert forked(to_nobody).stderr == ""


def as_a_module(name):
    sys.argv = [name, "--version"]
    runpy.run_module(name, run_name="__main__")


@needs_fork
@pytest.mark.parametrize("module", ["scoresde", "scoresde.app.cli"])
def test_as_a_module(module):
    assert forked(as_a_module, module).stdout.startswith("scoresde, version ")


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
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "folder.npy" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    array = tmp_path / "x.npy"
    for options in (
        ("--output", tmp_path / "folder.npy"),
        ("--output", tmp_path / "none" / "x.npy"),
        ("--output", tmp_path / "x.npx"),
        ("--output", tmp_path / "x.csv"),
        ("--output", array, "--png", tmp_path / "none" / "x.png"),
        ("--output", array, "--png", tmp_path / "x.jpg"),
        ("--output", tmp_path / "x.png", "--png", tmp_path / "x.png"),
    ):
        result = run("sample", model, "--count", 1, *options)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert "sampling" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_where(tmp_path):
    result = run("--debug", "sample", tmp_path / "none")
    assert type(result.exception).__name__ == "CheckpointError"


def test_other_data_than_trained_on(model, tmp_path):
    np.save(tmp_path / "x.npy", np.full((4, 1, 8, 8), 0.5))
    result = run("evaluate", model, "--data", tmp_path / "x.npy")
    assert result.output.startswith("Error: x.npy: expected whole numbers of 17 bins, got [0.5]")
    result = run("evaluate", model, "--data", "patches")
    assert result.output.startswith("Error: data: expected 17 bins, as trained on, got 256 bins")


def test_installed_command():
    done = subprocess.run(
        [sys.executable, "-c", "from scoresde.app.cli import main; main()", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("scoresde, version ")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "cite", "list"])
def test_help_is_no_error(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage")
    assert "Error" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "", "--output", "x"),
        ("train", "x", "--output", ""),
        ("evaluate", ""),
        ("cite", ""),
    ],
)
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, arguments):
    """As that of a script's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "expected a path, got an empty one" in result.output
    assert list(tmp_path.iterdir()) == []
