"""Tables through the command line, from a file to a file."""

import json

import numpy as np
import pytest
from commands import CONFIG, config, edited, run

from scoresde.data import load


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
    # and one that was told of no columns, of a file without the one that is no number
    (folder / "numbers.csv").write_text("\n".join(["grams,share", *(line[5:] for line in lines)]))
    path.write_text(
        path.read_text()
        .replace("flowers.csv", "numbers.csv")
        .replace('columns = ["grams", "share"]', "")
        .replace("steps = 200", "steps = 2")
    )
    result = run("train", path, "--output", folder / "all")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_columns_keep_their_units(table, suffix):
    """Noise and network are in the unit of each, though the configuration says nothing of it."""
    path = table / f"x.{suffix}"
    result = run("sample", table / "model", "--count", 400, "--output", path)
    assert result.exit_code == 0, result.output
    x = np.load(path) if suffix == "npy" else load(path, columns=["grams", "share"]).values.numpy()
    assert np.abs(x.mean(0) / [1000, 0.01] - [1, 0]).max() < 0.3
    assert np.abs(x.std(0) / [200, 0.01] - 1).max() < 0.3


def test_other_data_are_read_as_the_model_s_own(table):
    other = table / "other.csv"
    other.write_text((table / "flowers.csv").read_text())
    result = run("evaluate", table / "model", "--data", other, "--count", 5)
    assert result.exit_code == 0, result.output


def test_a_table_that_has_changed_is_another_run(table, tmp_path):
    """Named as the data, not by what has been measured of them."""
    text = (table / "table.toml").read_text()
    path, numbers = tmp_path / "table.toml", tmp_path / "numbers.csv"
    path.write_text(text.replace(str(table), str(tmp_path)))
    numbers.write_text((table / "numbers.csv").read_text())
    assert run("train", path, "--output", tmp_path / "out").exit_code == 0
    numbers.write_text(numbers.read_text().replace("9", "8"))
    result = run("train", path, "--output", tmp_path / "out")
    assert "is another one: data: expected 450 events (2,) of torch.float32" in result.output
    assert "data_mean" not in result.output
    result = run("evaluate", table / "model", "--data", "digits")
    assert result.output.startswith("Error: data: expected real numbers, as trained on, got 17")


def test_columns_are_known_by_name(table):
    """In another order, between others; a file that has not one of them is refused by its name."""
    rows = [line.split(",") for line in (table / "flowers.csv").read_text().splitlines()]
    reports = []
    for name, order in (("same", [0, 1, 2]), ("other", [2, 0, 1]), ("short", [0, 2])):
        path = table / f"{name}.csv"
        path.write_text("\n".join(",".join(row[i] for i in order) for row in rows))
        reports.append(run("evaluate", table / "all", "--data", path, "--count", 5, "--json"))
    same, other = (json.loads(r.stdout) for r in reports[:2])
    assert same["nats"] == other["nats"]
    assert reports[2].output.startswith("Error: columns: expected some of")
    assert "grams" in reports[2].output


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({}, "länge,breite"),
        ({"delimiter": ";", "decimal": ","}, "länge;breite"),
        ({"encoding": "latin-1", "delimiter": "|"}, "länge|breite"),
        ({"header": True}, "länge,2019"),
        ({"header": False}, None),
    ],
)
def test_samples_are_a_table_as_the_data_were(tmp_path, options, header):
    """`evaluate` reads them with the same options, whatever those are."""
    first, decimal = options.get("delimiter", ","), options.get("decimal", ".")
    rng = np.random.default_rng(0)
    lines = [f"{a}{first}{b}".replace(".", decimal) for a, b in rng.normal(size=(60, 2))]
    text = "\n".join([header or lines[0], *lines])
    (tmp_path / "x.csv").write_text(text, encoding=options.get("encoding"))
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    path = config(tmp_path, tmp_path / "x.csv", settings)
    edited(path, ('name = "haar"\nlevels = 2', 'name = "identity"'))
    assert run("train", path, "--output", tmp_path / "out").exit_code == 0
    new = tmp_path / "new.csv"
    result = run("sample", tmp_path / "out", "--count", 9, "--output", new)
    assert result.exit_code == 0, result.output
    lines = new.read_text(encoding=options.get("encoding")).splitlines()
    assert len(lines) == 9 + (header is not None)
    assert header is None or lines[0] == header
    result = run("evaluate", tmp_path / "out", "--data", new, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["count"] == 9


def test_no_picture_of_what_is_no_image(table):
    """Said before anything is sampled."""
    result = run("sample", table / "model", "--output", table / "y.npy", "--png", table / "y.png")
    assert result.exit_code == 1
    assert "--png: expected events that are images" in result.output
    assert not (table / "y.npy").exists()
