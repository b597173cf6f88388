"""Runs of the command line: interrupted, finished, extended, replaced."""

import os
import re
import shutil
import signal

import pytest
from commands import config, edited, run, state
from forks import forked, needs_fork

from scoresde.app import config as config_module
from scoresde.app.cli import main
from scoresde.app.model import Model

MORE = ("steps = 3\n", "steps = 5\n")


def test_a_finished_run_is_extended(tmp_path):
    """By the same command with more steps, to what a run of so many would have been taken up to."""
    path, out = config(tmp_path), tmp_path / "out"
    edited(path, ("batch_size = 8", "batch_size = 8\nmeasured_events = 4096"))
    assert run("train", path, "--output", out).exit_code == 0
    first = sorted(file.name for file in out.iterdir())
    again = run("train", path, "--output", out)
    assert again.exit_code == 0, again.output
    assert "this run is over, at step 3" in again.output
    assert sorted(file.name for file in out.iterdir()) == first
    result = run("train", edited(path, MORE), "--output", out)
    assert result.exit_code == 0, result.output
    assert state(out / "training")["step"] == 5
    assert sorted(file.name for file in out.iterdir()) != first
    assert Model.load(out).settings["training"]["steps"] == 5


@pytest.mark.parametrize(
    ("edits", "key"),
    [
        ([("batch_size = 8", "batch_size = 9")], r"training\.batch_size: expected 8, got 9"),
        ([("width = 16", "width = 17"), MORE], r"estimator\.network\.width: expected 16, got 17"),
        ([("log-linear", "vp")], r"sde\.schedule\.name: expected log-linear, got vp"),
        ([('"digits"', '"digits"\nheld_out = 0.2')], "data"),
        ([("steps = 3\n", "steps = 2\n")], r"training\.steps: expected 3 or more, got 2"),
    ],
)
def test_another_run_is_trained_only_when_told_to(tmp_path, edits, key):
    path, out = config(tmp_path), tmp_path / "out"
    assert run("train", path, "--output", out).exit_code == 0
    before = sorted(file.name for file in out.rglob("*"))
    edited(path, *edits)
    result = run("train", path, "--output", out)
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert re.match(rf"Error: --output: the run in .* is another one: .*{key}", last), last
    assert last.endswith("; --replace trains anew")
    assert sorted(file.name for file in out.rglob("*")) == before
    result = run("train", path, "--output", out, "--replace")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.rglob("*")) != before
    assert Model.load(out).settings == config_module.read(path)


def test_replace_trains_anew_where_nothing_has_changed(tmp_path):
    path, out = config(tmp_path), tmp_path / "out"
    assert run("train", path, "--output", out).exit_code == 0
    seconds = state(out / "training")["seconds"]
    result = run("train", path, "--output", out, "--replace")
    assert result.exit_code == 0, result.output
    assert "over" not in result.output
    assert state(out / "training")["seconds"] != seconds


def test_a_damaged_run_is_replaced_when_told_to(tmp_path):
    path, out = config(tmp_path), tmp_path / "out"
    assert run("train", path, "--output", out).exit_code == 0
    weights = next((out / "training").glob("model-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    result = run("train", path, "--output", out)
    assert result.exit_code == 1
    assert "truncated or altered" in result.output
    assert result.output.endswith("; --replace trains anew\n")
    result = run("train", path, "--output", out, "--replace")
    assert result.exit_code == 0, result.output
    assert state(out / "training")["step"] == 3


def test_a_finished_model_without_its_run(tmp_path):
    """As models of others are, or when disk space was short."""
    path, out = config(tmp_path), tmp_path / "out"
    assert run("train", path, "--output", out).exit_code == 0
    shutil.rmtree(out / "training")
    before = sorted(file.name for file in out.iterdir())
    result = run("train", edited(path, MORE), "--output", out)
    assert result.output.startswith(f"Error: --output: {out} holds a finished model, and nothing")
    assert sorted(file.name for file in out.iterdir()) == before
    assert run("train", path, "--output", out, "--replace").exit_code == 0
    assert sorted(file.name for file in out.iterdir()) != before


def train(number, *arguments):
    """The command, which gets a signal within its third update."""
    from scoresde.training.state import TrainingState

    update, calls = TrainingState.update, []

    def interrupted(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return update(self, *args, **kwargs)

    TrainingState.update = interrupted
    main(["train", *map(str, arguments)], prog_name="scoresde")


@needs_fork
@pytest.mark.parametrize(
    ("number", "replace"), [(signal.SIGINT, ["--replace"]), (signal.SIGTERM, [])]
)
def test_what_was_interrupted_is_saved_and_goes_on(tmp_path, number, replace):
    """It ends as a run that nobody has interrupted."""
    path = edited(config(tmp_path), ("steps = 3\n", "steps = 6\n"))
    assert run("train", path, "--output", tmp_path / "whole").exit_code == 0
    out = tmp_path / "out"
    if replace:  # of another run, that is over
        edited(path, ("width = 16", "width = 8"))
        assert run("train", path, "--output", out).exit_code == 0
        edited(path, ("width = 8", "width = 16"))
    done = forked(train, number, path, "--output", out, *replace)
    assert done.returncode == 128 + number, done.stderr
    assert f"{out / 'training'}: saved; the same command goes on from there\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(out / "training")["step"] == 3
    result = run("train", path, "--output", out, *replace)
    assert result.exit_code == 0, result.output
    weights = [
        sorted(p.name for p in (tmp_path / name).glob("model-*")) for name in ("whole", "out")
    ]
    assert weights[0] == weights[1]  # names are digests


def test_ctrl_c_before_anything_is_trained(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoresde.app.model.data_of", interrupted)
    result = run("train", config(tmp_path), "--output", tmp_path / "out")
    assert result.exit_code == 130
    assert result.output == "interrupted\n"
    assert not (tmp_path / "out").exists()


def test_a_run_that_gets_nowhere_saves_nothing(tmp_path):
    path = edited(config(tmp_path), ("batch_size = 8", "batch_size = 8\nlr = 1e30"))
    result = run("train", path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert re.match("Error: .* is (nan|inf)|Error: .*not finite", result.output.splitlines()[-1])
    assert not (tmp_path / "out" / "config.json").exists()
