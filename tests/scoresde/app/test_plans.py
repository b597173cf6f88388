"""Section ``plan`` of a file: made of the data, remembered, and walked."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import torch
from commands import edited, run
from PIL import Image

from scoresde import VP, DiagonalSDE, Haar, Learned, LogLinear
from scoresde.app import config as config_module
from scoresde.app.model import Model
from scoresde.app.parts import data_of
from scoresde.data.events import Batches, events
from scoresde.planning import DenoisingErrors, kurtosis, plan, replan, spectra
from solvers import DDIM

FILE = """
[data]
source = "{folder}/images"
mode = "L"
[sde]
name = "diagonal"
schedule = "log-linear"
[sde.basis]
name = "haar"
levels = 1
[estimator]
name = "multi-scale"
[estimator.networks]
name = "residual-mlp"
width = 8
depth = 1
[solver]
name = "ddim"
[plan]
evaluations = 4
[training]
steps = 2
batch_size = 8
measurements = 1
"""
OWN = "levels = 1\n", 'levels = 1\n[sde.schedule]\nname = "log-linear"\n'


def images(folder, count=40):
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        light = draw.integers(40, 200)  # more power in broad shapes
        shades = (light + draw.normal(0, 20, (8, 8))).clip(0, 255).astype("u1")
        Image.fromarray(shades).save(folder / "images" / f"{i:02}.png")
    path = folder / "config.toml"
    path.write_text(FILE.format(folder=folder))
    return path


def trained(path, *flags):
    return run("train", path, "--output", path.parent / "model", *flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = images(tmp_path_factory.mktemp("plans"))
    result = trained(path)
    assert result.exit_code == 0, result.output
    assert "planned: " in result.output
    return path.parent


def known(folder):
    """What Python plans for the same data."""
    train, _ = data_of(config_module.read(folder / "config.toml"))
    return torch.cat(list(Batches(train)))


def test_a_folder_of_images_sampled_by_the_plan(folder, tmp_path):
    result = run("sample", folder / "model", "--count", 3, "--output", f"{tmp_path}/new/")
    assert result.exit_code == 0, result.output
    assert [Image.open(path).size for path in sorted((tmp_path / "new").iterdir())] == [(8, 8)] * 3


def test_the_plan_is_that_of_python(folder):
    model, x = Model.load(folder / "model"), known(folder)
    sde, basis = model.estimator.sde, model.estimator.sde.basis
    tails = kurtosis(basis, x)
    made = plan(basis, LogLinear(), spectra(basis, x), DDIM(), evaluations=4, kurtosis=tails)
    assert torch.equal(model.solver.times(sde), made.times)
    assert model.solver.steps == sum(made.steps) == 4
    assert sde.drop == made.sde.drop
    assert 0 < sde.drop[1] < 1
    t = torch.tensor([0.3, 0.9]).double().unsqueeze(-1)
    assert torch.equal(sde.at(t).sigma, made.sde.at(t).sigma)
    assert [stage.stage.dim for stage in model.estimator.stages] == [16, 64]
    assert model.facts["plan"]["stages"] == list(made.steps)


def test_samples_walk_its_times(folder, tmp_path, monkeypatch):
    asked, times = [], DDIM.times
    monkeypatch.setattr(
        DDIM, "times", lambda self, sde: asked.append(times(self, sde)) or asked[-1]
    )
    own, walked = Model.load(folder / "model").facts["plan"]["solver"]["grid"], []
    arguments = ("sample", folder / "model", "--count", 2, "--output", tmp_path / "x.npy")
    for flags in ([], ["--eta", 1.0], ["--steps", 5], ["--solver", "ddim"]):
        result = run(*arguments, *flags)
        assert result.exit_code == 0, result.output
        walked.append({(times.tolist() == own, len(times)) for times in asked})
        asked.clear()
    assert walked == [{(True, 5)}, {(True, 5)}, {(False, 6)}, {(False, 51)}]


def test_densities_do_so_too(folder):
    result = run("evaluate", folder / "model", "--count", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output[result.output.index("{") :])["count"] == 2


def test_another_plan_is_another_run(folder, tmp_path):
    text = (folder / "config.toml").read_text()
    path = tmp_path / "other.toml"
    arguments = ("train", path, "--output", folder / "model")
    path.write_text(text.replace("evaluations = 4", "evaluations = 4\nkurtosis = true"))
    assert run(*arguments).exit_code == 0  # the same
    path.write_text(text.replace("evaluations = 4", "evaluations = 5"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert "is another one: plan.evaluations: expected 4, got 5; --rep" in result.output


def test_of_an_sde_that_says_its_stages_steps_are_planned(tmp_path):
    """They can be planned anew, and the run is the same one."""
    drop = '"log-linear"\nscale = "data_std"\ndrop = [1.0, 0.5]\n'
    path = edited(images(tmp_path), ('"log-linear"\n', drop))
    for old, new in (("= 4", "= 4"), ("evaluations = 4", "evaluations = 6")):
        assert trained(edited(path, (old, new))).exit_code == 0
    model, x = Model.load(tmp_path / "model"), known(tmp_path)
    sde = model.estimator.sde
    assert sde.drop == [1.0, 0.5]
    tails = kurtosis(sde.basis, x)
    made = replan(sde, spectra(sde.basis, x), DDIM(), evaluations=6, kurtosis=tails)
    assert torch.equal(model.solver.times(sde), made.times)
    assert model.solver.steps == 6


def test_delays_are_planned_and_planned_on(tmp_path):
    """And where stages are kept, those of the file are walked."""
    path = edited(images(tmp_path), ("evaluations = 4", "evaluations = 5\ndelays = true"))
    edited(path, ('"log-linear"', '"vp"'))
    assert trained(path).exit_code == 0
    model, x = Model.load(tmp_path / "model"), known(tmp_path)
    sde, basis = model.estimator.sde, model.estimator.sde.basis
    measured = spectra(basis, x), DDIM()
    options = {"evaluations": 5, "kurtosis": kurtosis(basis, x)}
    made = plan(basis, VP(), *measured, **options, delays=True)
    t = torch.tensor([0.05, 0.3, 0.9]).double().unsqueeze(-1)
    assert torch.equal(sde.at(t).sigma, made.sde.at(t).sigma)
    assert torch.equal(model.solver.times(sde), made.times)
    late = '"vp"\nscale = "data_std"\ndrop = [1.0, 1.0]\nspeeds = 2.0\ndelays = [0.4, 0.0]'
    result = trained(edited(path, ('"vp"', late)), "--replace")
    assert "plan: delays: expected none" in result.output
    assert trained(edited(path, ("\ndelays = true", "")), "--replace").exit_code == 0
    model = Model.load(tmp_path / "model")
    sde = model.estimator.sde
    assert sde.clock.delays.tolist() == [0.4, 0.0]
    assert torch.equal(model.solver.times(sde), replan(sde, *measured, **options).times)
    assert set(sde.breakpoints()) < set(model.solver.times(sde).tolist())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("evaluations = 4", "", "plan: expected a cost, evaluations or an error, got none"),
        ("evaluations = 4", "steps = 4", r"plan\.steps: unknown"),
        ("evaluations = 4", "evaluations = 1", "plan: evaluations: expected at least 2, got 1"),
        ("evaluations = 4", "evaluations = 4.5", "plan: evaluations: expected a whole number"),
        ("evaluations = 4", "cost = 0", "plan: cost: expected"),
        ("evaluations = 4", 'error = "small"', "plan: error: expected a"),
        ("evaluations = 4", "cost = 3.0\nkurtosis = 1", "plan: kurtosis: expected one of False"),
        ("evaluations = 4", "cost = 3.0\nevents = 1", "plan: events: expected"),
        ('"ddim"', '"ddim"\nsteps = 4', r"solver\.steps: expected none, as \[plan\] finds it"),
        ('"ddim"', '"ddim"\neta = 1.0', r"plan: solver: expected a deterministic one"),
        ('"log-linear"', '"log-linear"\nspeeds = 2.0', r"sde\.speeds: expected none, as \[plan\]"),
        ('"log-linear"', '"log-linear"\ndelays = [0.2, 0.0]', r"sde\.delays: expected none, as"),
        ("evaluations = 4", "evaluations = 4\ndelays = 1", "plan: delays: expected one of False"),
        ("[plan]", "[plan.plan]", r"plan\.plan: unknown"),
        ("[plan]", "[plam]", r"plam: unknown; did you mean 'plan'"),
        ("levels = 1", 'levels = 4', r"sde\.basis"),
        ('schedule = "log-linear"', "", r"plan: expected an sde with a schedule"),
        ('"log-linear"', '{ name = "learned", components = 2 }', r"schedule: .*all blocks"),
        ("evaluations = 4", "evaluations = 4\nlearned = 1", "plan: learned: expected one of False"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong(old, new, message, tmp_path):
    result = trained(edited(images(tmp_path, 4), (old, new)))
    assert result.exit_code == 1
    assert re.search(message, result.output.splitlines()[-1]), result.output
    assert "Traceback" not in result.output


PARTS = (
    (
        'mode = "L"',
        'mode = "L"\n[data.parts]\ny = { name = "downsample", factor = 4 }\nx = "whole"',
    ),
    ('name = "haar"', 'name = "joint"\n[sde.basis.bases.x]\nname = "haar"'),
    ('name = "multi-scale"', 'name = "cmde"\nnoise = 0.3'),
)
"""Of low resolution, and what is sampled given it."""


def test_of_parts_that_are_given_the_other_is_planned(tmp_path):
    path = edited(images(tmp_path), *PARTS)
    result = trained(path)
    assert result.exit_code == 0, result.output
    model, basis = Model.load(tmp_path / "model"), Haar((1, 8, 8), levels=1)
    sde = model.estimator.sde
    x = sde.basis.split(known(tmp_path))["x"]
    tails = kurtosis(basis, x)
    made = plan(basis, LogLinear(), spectra(basis, x), DDIM(), evaluations=4, kurtosis=tails)
    assert torch.equal(model.solver.times(sde), made.times)
    assert sde.drop == [1.0, *made.sde.drop]
    at, wanted = (s.at(torch.tensor([[0.3], [0.9]]).double()) for s in (sde, made.sde))
    assert torch.equal(at.sigma[:, 1:], wanted.sigma)
    # what is given ends with the noise that its estimator is to have, in units of itself
    y = sde.basis.split(known(tmp_path))["y"]
    last = sde.at(torch.ones(1).double())
    noise = (last.sigma / last.alpha)[0] / y.sub(y.mean(0)).square().mean().sqrt()
    assert float(noise) == pytest.approx(0.3, rel=1e-3)
    out = f"{tmp_path}/new/"
    result = run("sample", tmp_path / "model", "--data", tmp_path / "images", "--count", 1,
                 "--output", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len([*(tmp_path / "new").iterdir()]) == 40


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "noise = 0.3",
            'noise = 0.3\ngiven = "x"',
            "plan: parts: expected one part that is not gi",
        ),
        (
            '"log-linear"',
            '"log-linear"\ndrop = [1, 1, 0.5]',
            r"sde\.drop: expected none beside parts",
        ),
        (
            "evaluations = 4",
            "evaluations = 4\nlearned = true",
            r"plan\.learned: expected none besid",
        ),
        ('"ddim"', '"ddim"\neta = 1.0', r"plan: solver: expected a deterministic one"),
    ],
)
def test_a_file_with_parts_that_is_wrong(old, new, message, tmp_path):
    result = trained(edited(images(tmp_path, 4), *PARTS, (old, new)))
    assert result.exit_code == 1
    assert re.search(message, result.output.splitlines()[-1]), result.output


LEARNED = (
    ('"log-linear"', '"learned"'),
    ('name = "multi-scale"', 'name = "multi-scale"\nweighting = "likelihood"'),
    ("steps = 2", "steps = 20\nlr = 0.1"),
)


@pytest.mark.parametrize("parts", [(), PARTS])
def test_a_schedule_that_is_learned_has_steps_of_its_own(parts, tmp_path):
    """Stages stay as they were; steps are those of what the schedule has become."""
    path = edited(
        images(tmp_path), *(edit for edit in LEARNED if not parts or "multi" not in edit[0])
    )
    path = edited(path, *parts)
    result = trained(path)
    assert result.exit_code == 0, result.output
    model = Model.load(tmp_path / "model")
    sde, facts = model.estimator.sde, model.facts["plan"]
    x, basis, count = known(tmp_path), Haar((1, 8, 8), levels=1), len(sde.drop) - 2
    x = sde.basis.split(x)["x"] if parts else x
    tails, bands = kurtosis(basis, x), spectra(basis, x)
    first = plan(basis, Learned(), bands, DDIM(), evaluations=4, kurtosis=tails)
    assert facts["sde"]["drop"][count:] == first.sde.drop
    own = {name: values[count:] for name, values in facts["sde"].items()}
    own = DiagonalSDE(copy.deepcopy(sde.schedule), basis, **own)
    made = replan(own, bands, DDIM(), evaluations=4, kurtosis=tails)
    assert torch.equal(model.solver.times(sde), made.times)
    assert not torch.equal(made.times, first.times)
    if parts:  # nothing is left to do
        again = trained(path)
        assert again.exit_code == 0, again.output
        assert Model.load(tmp_path / "model").facts == model.facts


def test_steps_for_what_networks_miss(folder, tmp_path):
    """Planned again when training is over, of the same run."""
    shutil.copytree(folder, tmp_path / "copy")
    path = edited(tmp_path / "copy" / "config.toml", ("= 4", "= 4\nlearned = true"))
    before = Model.load(tmp_path / "copy" / "model").facts["plan"]
    result = trained(path)
    assert result.exit_code == 0, result.output
    model = Model.load(tmp_path / "copy" / "model")
    _, held_out = data_of(config_module.read(path))
    x, basis, sde = known(folder), model.estimator.sde.basis, model.estimator.sde
    noise = torch.Generator().manual_seed(0)
    y = events(held_out, torch.Generator().manual_seed(0))
    missed = DenoisingErrors.of(model.estimator, y, generator=noise)
    options = {"evaluations": 4, "kurtosis": kurtosis(basis, x), "learned": missed}
    made = replan(sde, spectra(basis, x), DDIM(), **options)
    assert torch.equal(model.solver.times(sde), made.times)
    assert model.facts["plan"]["sde"] == before["sde"]
    assert model.facts["plan"]["solver"] != before["solver"]


def test_a_model_without_its_plan_is_damaged(folder, tmp_path):
    model = Model.load(folder / "model")
    for made in (None, {}, {"sde": {}, "solver": {"steps": 1, "grid": [1.0, 0.5]}}):
        model.facts["plan"] = made
        model.save(tmp_path / "damaged")
        result = run("sample", tmp_path / "damaged", "--output", tmp_path / "x.npy")
        assert result.exit_code == 1
        assert (
            "weights and config do not fit" in result.output or "times: expected" in result.output
        )


def test_times_in_a_file(tmp_path):
    """What was planned elsewhere is entries of the file."""
    path = edited(
        images(tmp_path), ("[plan]\nevaluations = 4\n", "steps = 2\ngrid = [1.0, 0.5, 0.01]\n")
    )
    edited(path, ('"log-linear"', '"log-linear"\ndrop = [1.0, 0.5]\nspeeds = [1.0, 2.0]'))
    assert trained(path).exit_code == 0
    model = Model.load(tmp_path / "model")
    assert model.solver.times(model.estimator.sde).tolist() == [1.0, 0.5, 0.01]
    for old, new, message in (
        ("steps = 2\ng", "steps = 3\ng", "solver: steps: expected 2, as many as lie between"),
        ("0.5, 0.01]\n", "0.4, 0.01]\n", "solver: times: expected 0.5 among them"),
        ("[1.0, 0.4", "[0.4, 1.0", "solver: times: expected a decreasing sequence"),
        ("[0.4, 1.0, 0.01]", '["a"]', "solver: grid: expected a number or a list of numbers"),
    ):
        result = trained(edited(path, (old, new)), "--replace")
        assert message in result.output, result.output
        if "steps" in message:
            edited(path, (new, old))
