"""Models of events with parts: trained from a file, and sampled given a part."""

import json
import re
import sys

import distributions
import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

from scoresde import plugins
from scoresde.app.model import Model
from scoresde.app.sampling_task import ObservedParts
from scoresde.data import digits, quantize, read_images

FILE = """
[data]
{data}
[sde]
name = "diagonal"
basis = "joint"
scale = 1.0
[sde.schedule]
name = "ve"
sigma_min = 5e-3
sigma_max = 8.0
[estimator]
name = "{name}"
{options}
[estimator.networks]
name = "residual-mlp"
width = 8
depth = 1
[solver]
name = "exponential-multistep"
steps = 3
eta = 1.0
[training]
steps = 2
batch_size = 8
measurements = 1
"""

HALVES = """
source = "digits"
held_out = 0.9
[data.parts]
y = { name = "crop", columns = [0, 4] }
x = { name = "crop", columns = [4, 8] }
"""

TABLE = """
source = "{folder}/table.csv"
[data.parts]
x = ["c", "a"]
y = ["b"]
"""


def train(folder, data, name="cde", options="", *flags):
    path = folder / "config.toml"
    path.write_text(FILE.format(data=data, name=name, options=options))
    return run("train", path, "--output", folder / "model", *flags)


def trained(folder, *arguments):
    result = train(folder, *arguments)
    assert result.exit_code == 0, result.output
    return folder / "model"


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("halves"), HALVES)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = np.random.default_rng(0).normal(size=(30, 3))
    text = "\n".join(",".join(map(str, row)) for row in rows)
    (folder / "table.csv").write_text(f"a,b,c\n{text}\n")
    return trained(folder, TABLE.format(folder=folder))


def left(path, count=3):
    values = np.arange(count * 32, dtype="u1").reshape(count, 1, 8, 4) % 17
    np.save(path, values)
    return path


def test_halves_given_the_others(halves, tmp_path):
    out, png = tmp_path / "x.npy", tmp_path / "x.png"
    given = left(tmp_path / "y.npy")
    result = run("sample", halves, "--given", given, "--count", 2, "--output", out, "--png", png)
    assert result.exit_code == 0, result.output
    x = np.load(out)
    assert x.shape == (6, 1, 8, 4)
    assert x.dtype == np.uint8
    assert x.max() <= 16
    assert Image.open(png).format == "PNG"


def test_samples_are_those_of_what_is_given(halves, tmp_path):
    """One after the other: the same rows alone, by Python, are the same."""
    out, given = tmp_path / "x.npy", left(tmp_path / "y.npy")
    assert run("sample", halves, "--given", f"y={given}", "--output", out, "--count", 2,
               "--seed", 3).exit_code == 0  # fmt: skip
    model = Model.load(halves)
    known = ObservedParts.read(model, [str(given)], torch.Generator().manual_seed(3))
    estimator = known.estimator(2)
    assert torch.equal(known.parts["y"][1], estimator.observation.values[2, :32].reshape(1, 8, 4))
    x = model.solver.sample(estimator, (6,), generator=torch.Generator().manual_seed(3))
    known.export(2).writer(tmp_path / "again.npy")(x)
    assert np.array_equal(np.load(tmp_path / "again.npy"), np.load(out))


def test_what_is_given_is_made_of_whole_events(halves, tmp_path):
    whole, out, png = tmp_path / "whole.npy", tmp_path / "x.npy", tmp_path / "x.png"
    np.save(whole, np.arange(3 * 64, dtype="u1").reshape(3, 1, 8, 8) % 17)
    result = run(
        *("sample", halves, "--data", whole, "--count", 2, "--output", out, "--png", png),
    )
    assert result.exit_code == 0, result.output
    assert np.load(out).shape == (6, 1, 8, 4)
    assert Image.open(png).format == "PNG"
    model, generator = Model.load(halves), torch.Generator().manual_seed(0)
    parts = ObservedParts.of_whole(model, [str(whole)], generator).parts
    assert [*parts] == ["y"]
    assert np.array_equal(quantize(parts["y"], 17), np.load(whole)[..., :4])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "{wide}"), "got {{'y': [1, 6, 4], 'x': [1, 6, 4]}} in {wide}"),
        (("--data", "{y}", "--given", "{y}"), "--data: expected none beside --given, got"),
        (("--data", "{none}"), "no such file"),
    ],
)
def test_whole_events_of_another_kind(flags, message, halves, tmp_path):
    names = {"y": left(tmp_path / "y.npy"), "none": tmp_path / "no.npy", "wide": tmp_path / "w.npy"}
    np.save(names["wide"], np.zeros((2, 1, 6, 8), "u1"))
    flags = [flag.format(**names) for flag in flags]
    result = run("sample", halves, *flags, "--output", tmp_path / "x.npy")
    assert result.exit_code == 1
    assert message.format(**names) in result.output, result.output


def test_a_conditional_density(halves):
    result = run("evaluate", halves, "--count", 3, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output[result.output.index("{") :])
    # of the 32 numbers that are not given, of models that are hardly trained
    assert report["bits_per_dim"] == pytest.approx(
        -report["nats"] / (32 * np.log(2)) + np.log2(17 / 2)
    )


@pytest.mark.parametrize("name", ["cdiffe", "cmde", "vs-cmde"])
def test_the_others_have_samples_and_no_density(name, tmp_path):
    options = {"cmde": "noise = 0.5", "vs-cmde": "updates = 1"}.get(name, "")
    model = trained(tmp_path, HALVES, name, options)
    given = left(tmp_path / "y.npy")
    result = run("sample", model, "--given", given, "--count", 1, "--output", tmp_path / "x.npy")
    assert result.exit_code == 0, result.output
    result = run("evaluate", model, "--count", 2)
    assert "components that do not diffuse" in result.output
    assert run("train", tmp_path / "config.toml", "--output", model).exit_code == 0  # goes on


def test_rows_of_a_table(table, tmp_path):
    (tmp_path / "y.csv").write_text("b\n0.5\n-1\n")
    out = tmp_path / "x.csv"
    result = run("sample", table, "--given", tmp_path / "y.csv", "--count", 2, "--output", out)
    assert result.exit_code == 0, result.output
    lines = out.read_text().splitlines()
    assert lines[0] == "c,a"
    assert len(lines) == 5
    report = run("evaluate", table, "--count", 2, "--json")
    assert report.exit_code == 0, report.output


def test_other_data_of_a_table(table, tmp_path):
    (tmp_path / "other.csv").write_text("b,c,a\n1,2,3\n4,5,6\n")
    result = run("evaluate", table, "--data", tmp_path / "other.csv", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output[result.output.index("{") :])["count"] == 2


def pictures(folder, count=6, size=8, mode="RGB"):
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for i in range(count):
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        Image.fromarray(numbers.integers(256, size=shape, dtype="u1")).save(folder / f"{i}.png")
    return folder


def test_pairs_of_two_folders(tmp_path):
    high, low = pictures(tmp_path / "high"), pictures(tmp_path / "low", size=4, mode="L")
    parts = f'[data.parts]\ny = {{ source = "{low}", mode = "L" }}\nx = {{ source = "{high}" }}'
    model = trained(tmp_path, parts)
    out = f"{tmp_path}/out/"
    whole = ("--data", f"y={low}/0.png", "--data", f"x={high}/0.png")
    for given, count in ((("--given", low), 6), (("--given", low / "0.png"), 1), (whole, 1)):
        result = run("sample", model, *given, "--count", 2, "--output", out)
        assert result.exit_code == 0, result.output
        assert read_images(out).values.shape == (2 * count, 3, 8, 8)
        for file in (tmp_path / "out").iterdir():
            file.unlink()


def test_arrays_of_one_file(tmp_path):
    path = tmp_path / "pairs.npz"
    x = np.random.default_rng(0).normal(size=(9, 5)).astype("f4")
    np.savez(path, low=x[:, :2], high=x[:, 2:])
    parts = "\n".join(
        f'{n} = {{ source = "{path}", key = "{k}" }}' for n, k in (("y", "low"), ("x", "high"))
    )
    model = Model.load(trained(tmp_path, f"[data.parts]\n{parts}"))
    assert model.facts["parts"] == {"y": [2], "x": [3]}
    assert model.given == ("y",)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ('source = "digits"\nparts = "y"', "", r"data\.parts: expected a table"),
        ('source = "digits"\n[data.parts]\nx = "whole"', "", r"data\.parts: expected two or more"),
        (
            'source = "digits"\n[data.parts]\nx = "whole"\ny = 3',
            "",
            r"data\.parts\.y: expected a n",
        ),
        (
            'source = "digits"\n[data.parts]\nx = "whole"\ny = "smear"',
            "",
            "degradations: no plugin 'smear'",
        ),
        (
            'source = "digits"\n[data.parts]\nx = "whole"\ny = { name = "downsample", by = 2 }',
            "",
            r"data\.parts\.y\.by: unknown",
        ),
        (
            'source = "digits"\n[data.parts]\nx = "whole"\ny = { name = "downsample", factor = 3 }',
            "",
            r"data\..*factor: .*got 3",
        ),
        ('source = "digits"\n[data.parts]\nx = "whole"\ny = ["a"]', "", "parts: expected a table"),
        ('[data.parts]\nx = "whole"\ny = "whole"', "", r"data\.source: expected a data set"),
        (HALVES, 'given = "z"', "estimator: parts: unknown name 'z'"),
        (HALVES, 'given = ["x", "y"]', "estimator: given: expected some of the parts y, x"),
        (HALVES, "noise = 0.5", r"estimator\.noise: unknown"),
        ('source = "digits"', "", r"sde\.basis\.parts: expected a value, or parts in"),
        (
            'source = "digits"\n[data.parts]\nx = "whole"\ny = "mine:Blur"',
            "",
            "is an import path",
        ),
    ],
)
def test_a_file_that_is_wrong(data, options, message, tmp_path):
    result = train(tmp_path, data, "cde", options)
    assert result.exit_code == 1
    error = result.output.splitlines()[-1]
    assert re.search(message, error), error


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Degradations of another distribution."""
    source = "class Fade:\n    def __init__(self, by):\n        self.by = by\n"
    source += "    def __call__(self, x):\n        return x * self.by\n"
    source += "def one():\n    return 1\n"
    entries = "fade = stranger_plugin:Fade\none = stranger_plugin:one"
    distributions.write(tmp_path / "site", "stranger", "scoresde.degradations", entries, source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugins.refresh()
    yield
    sys.modules.pop("stranger_plugin", None)
    monkeypatch.undo()
    plugins.refresh()


def test_a_degradation_of_another_distribution(stranger, tmp_path):
    data = 'source = "digits"\nheld_out = 0.9\n[data.parts]\nx = "whole"\ny = {}'
    model = Model.load(trained(tmp_path, data.format('{ name = "fade", by = 0.0 }')))
    whole = digits().values[:2]
    np.save(tmp_path / "whole.npy", whole.numpy())
    generator = torch.Generator().manual_seed(0)
    y = ObservedParts.of_whole(model, [str(tmp_path / "whole.npy")], generator).parts["y"]
    assert torch.equal(quantize(y, 17), torch.full_like(whole, 8))  # all grey
    for part, message in (
        ('{ name = "fade", with = 1 }', r"data\.parts\.y\.with: unknown"),
        ('"fade"', r"data\.parts\.y\.by: expected a value, got none"),
        ('"one"', r"data\.parts\.y: expected a plugin that makes a function of events, got 1"),
    ):
        result = train(tmp_path, data.format(part), "cde", "", "--replace")
        assert re.search(message, result.output), result.output


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ('x = ["a"]\ny = ["a", "b"]', "every column in one part, got a in several"),
        ('x = ["a"]\ny = ["b"]', "every column in one part, got c in none"),
        ('x = ["a", "d"]\ny = ["b", "c"]', "no column 'd'"),
    ],
)
def test_columns_are_in_one_part_each(parts, message, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n1.5,2,3\n4,5,6\n7,8,9\n")
    result = train(tmp_path, f'source = "{tmp_path}/t.csv"\n[data.parts]\n{parts}')
    assert message in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--given: expected a file of the part 'y' (or --data, whole events), got none"),
        (["x={y}"], "--given: expected a file of the part 'y' (or --data, whole events), got none"),
        (["z={y}"], "--given: expected part=path with one of the parts y, x"),
        (["{y}", "{y}"], "--given: expected a file for each part, got ['y', 'y']"),
        (["{y}", "x={y}"], "observed: expected some of ['y', 'x']"),
        (["{wide}"], "--given: expected events (1, 8, 4) of 'y', as trained on, got (1, 8, 8)"),
        (["{real}"], "expected whole numbers of 17 bins, got [0.5]"),
        (["{none}"], "no such file"),
    ],
)
def test_what_cannot_be_given(given, message, halves, tmp_path):
    names = {"y": left(tmp_path / "y.npy"), "none": tmp_path / "none.npy"}
    for name, values in {"wide": np.zeros((2, 1, 8, 8), "u1"),
                         "real": np.full((2, 1, 8, 4), 0.5, "f4")}.items():  # fmt: skip
        names[name] = tmp_path / f"{name}.npy"
        np.save(names[name], values)
    flags = [flag for text in given for flag in ("--given", text.format(**names))]
    result = run("sample", halves, *flags, "--output", tmp_path / "x.npy")
    assert result.exit_code == 1
    assert message in result.output, result.output


def test_a_model_without_parts_is_given_nothing(tmp_path):
    from commands import config

    assert run("train", config(tmp_path), "--output", tmp_path / "m").exit_code == 0
    result = run("sample", tmp_path / "m", "--given", left(tmp_path / "y.npy"))
    assert "--given: expected a model of events with parts" in result.output
    result = run("sample", tmp_path / "m", "--data", tmp_path / "y.npy")
    assert "--data: expected a model that is given a part of its events" in result.output


def test_other_data_of_parts_with_files_of_their_own(tmp_path):
    high, low = pictures(tmp_path / "high"), pictures(tmp_path / "low", size=4, mode="L")
    parts = f'[data.parts]\ny = {{ source = "{low}", mode = "L" }}\nx = {{ source = "{high}" }}'
    model = trained(tmp_path, parts)
    others = pictures(tmp_path / "b", 3), pictures(tmp_path / "a", 3, size=4)  # in colour
    own = ("--data", f"y={others[1]}", "--data", f"x={others[0]}")
    result = run("evaluate", model, "--json", *own)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output[result.output.index("{") :])["count"] == 3
    wanted = "data: expected y=path and x=path, got"
    for flags in (("--data", high), own[:2], (*own, "--data", high), (*own, *own[:2])):
        result = run("evaluate", model, *flags)
        assert result.exit_code == 1
        assert wanted in result.output.splitlines()[-1], result.output


def test_other_data_of_parts_one_of_which_is_made_of_them(tmp_path):
    high, low = pictures(tmp_path / "high"), pictures(tmp_path / "low", size=4, mode="L")
    parts = f'source = "{high}"\n[data.parts]\ny = {{ source = "{low}", mode = "L" }}\nx = "whole"'
    model = trained(tmp_path, parts)
    both = ("--data", pictures(tmp_path / "b", 3), "--data", f"y={pictures(tmp_path / 'a', 3, 4)}")
    result = run("evaluate", model, "--json", *both)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output[result.output.index("{") :])["count"] == 3
    for flags in (both[:2], both[2:], (*both, "--data", high)):
        assert "data: expected a path and y=path, got" in run("evaluate", model, *flags).output
