"""Labels and conditions through the command line: from files to files, by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

from scoresde.app.conditions import classes_of
from scoresde.app.model import Model
from scoresde.app.parts import data_of
from scoresde.app.previews import previews
from scoresde.data import load
from scoresde.training.distributed import SINGLE_PROCESS

GUIDED = """
[data]
source = "{source}"
{options}
[sde]
name = "diagonal"
schedule = "cosine"
basis = "identity"
scale = "data_std"
[estimator]
name = "classifier-free"
guidance = 1.5
[estimator.estimator]
name = "denoising"
[estimator.estimator.network]
name = "residual-mlp"
width = 16
depth = 1
[solver]
name = "exponential-multistep"
steps = 4
[training]
steps = {steps}
batch_size = 32
lr = 1e-2
ema = 0.9
measurements = 1
"""


def train(folder, source, options, steps=2, name="model", edits=()):
    path = folder / "labels.toml"
    text = GUIDED.format(source=source, options=options, steps=steps)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return run("train", path, "--output", folder / name)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Dark cats, bright dogs, some with a bright corner: images in folders, and a model of them."""
    folder = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for name, shade, count in (("cat", 60, 30), ("dog", 190, 10)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            noisy = np.clip(shade + 20 * rng.standard_normal((4, 4)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "images" / name / f"{i:02}.png")
    result = train(folder, folder / "images", 'labels = true\nmode = "L"', steps=150)
    assert result.exit_code == 0, result.output
    return folder


def said(result, line):
    assert result.exit_code == 0, result.output
    assert line in result.stdout.splitlines(), result.output


def test_from_folders_of_images_to_folders_of_images(pets, tmp_path):
    sample = ("sample", pets / "model", "--count", 12, "--output")
    asked = ("--label", "dog", "--label", "cat")
    said(run(*sample, f"{tmp_path}/both/", *asked), "labels: dog (6), cat (6)")
    data = load(tmp_path / "both", labels=True, mode="L")
    assert data.classes == ("cat", "dog")
    bright = data.values.double().flatten(1).mean(1) > 125
    assert torch.equal(bright.long(), data.condition)
    said(run(*sample, f"{tmp_path}/dogs/", "--label", "1"), "labels: dog (12)")
    dogs = load(tmp_path / "dogs", mode="L")  # of one class: no folders in it
    assert (dogs.values.double().flatten(1).mean(1) > 125).all()
    said(
        run(*sample, tmp_path / "drawn.npz"),
        "labels: cat (9), dog (3) (drawn as in the data; --label chooses)",
    )
    with np.load(tmp_path / "drawn.npz") as drawn:
        assert drawn["x"].dtype == np.uint8
        assert drawn["label"].tolist() == ["cat"] * 9 + ["dog"] * 3
    said(run(*sample, tmp_path / "x.png", *asked), "labels: dog (6), cat (6)")


def samples(pets, tmp_path, *options):
    path = tmp_path / "x.npy"
    result = run("sample", pets / "model", "--count", 6, "--output", path, *options)
    assert result.exit_code == 0, result.output
    return np.load(path).astype(float)


def test_guidance_is_chosen_when_samples_are_drawn(pets, tmp_path):
    dog = ("--label", "dog")
    told = samples(pets, tmp_path, *dog)
    assert np.array_equal(told, samples(pets, tmp_path, *dog, "--guidance", 1.5))
    unguided = samples(pets, tmp_path, *dog, "--guidance", 0)
    assert np.array_equal(unguided, samples(pets, tmp_path, "--label", "cat", "--guidance", 0))
    plain = samples(pets, tmp_path, *dog, "--guidance", 1)
    assert not np.array_equal(plain, told)
    never = ("--guidance", 3, "--guidance-interval", 1e8, 1e9)
    assert np.array_equal(plain, samples(pets, tmp_path, *dog, *never))
    model = Model.load(pets / "model", options={"guidance": 3.0, "interval": [0.1, 2.0]})
    assert (model.estimator.guidance, model.estimator.interval) == (3.0, (0.1, 2.0))
    assert Model.load(pets / "model").estimator.guidance == 1.5


def test_densities_are_those_given_labels_without_guidance(pets, tmp_path):
    """And classes are known by name, whatever others there are."""

    def nats(*options):
        result = run("evaluate", pets / "model", "--json", *options)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :])["nats"]

    dogs, cats = tmp_path / "dogs", tmp_path / "cats"
    shutil.copytree(pets / "images" / "dog", dogs / "dog")
    shutil.copytree(pets / "images" / "dog", cats / "cat")
    right, wrong = nats("--data", dogs), nats("--data", cats)
    assert right > wrong + 1
    assert right == nats("--data", dogs, "--guidance", 1)
    assert right != nats("--data", dogs, "--guidance", 1.5)
    assert np.isfinite(nats("--count", 2))
    shutil.copytree(dogs / "dog", dogs / "wolf")
    result = run("evaluate", pets / "model", "--data", dogs)
    assert result.output.splitlines()[-1] == (
        "Error: data: expected classes among cat, dog, got wolf"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "wolf"], "--label: expected one of cat, dog, or its number, got 'wolf'"),
        (["--label", "2"], "--label: expected one of cat, dog, or its number, got '2'"),
        (
            ["--label", "cat", "--label", "dog", "--count", 1],
            "--count: expected at least 2, one for each --label, got 1",
        ),
        (["--condition", "x.npy"], "--condition: expected a model of data with such conditions"),
        (["--label", "cat", "--condition", "x.npy"], "--condition: expected none beside --label"),
        (["--guidance", -1], "Error: --guidance: expected a finite number of at least 0, got -1.0"),
        (["--guidance", "nan"], "Error: --guidance: expected a finite number of at least 0"),
        (["--guidance-interval", 2, 1], "Error: --guidance-interval: expected two numbers of at"),
        (["--guidance-interval", -1, 1], "Error: --guidance-interval: expected two numbers of at"),
    ],
)
def test_what_cannot_be_asked_is_named(pets, tmp_path, options, message):
    result = run("sample", pets / "model", "--output", tmp_path / "x.npy", *options)
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1]
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    ("names", "label", "found"),
    [
        (["5", "6", "7"], "6", 1),
        (["5", "6", "7"], "0", None),
        (["1", "2", "3"], "1", 0),
        (["1", "2", "3"], "0", None),
        (["cat", "2"], "0", None),
        (["0", "1"], "1", 1),
        (["cat", "dog"], "1", 1),
    ],
)
def test_a_number_that_is_a_name_is_that_class(names, label, found):
    facts = {"classes": names}
    if found is None:
        with pytest.raises(ValueError, match=f"--label: expected one of {', '.join(names)}, got"):
            classes_of(facts, [label], 2, torch.Generator())
    else:
        assert classes_of(facts, [label], 2, torch.Generator()).tolist() == [found] * 2


def test_models_without_labels_say_so(tmp_path):
    edits = [
        ('[estimator]\nname = "classifier-free"\nguidance = 1.5\n', ""),
        ("[estimator.estimator.network]", "[estimator.network]"),
        ("[estimator.estimator]", "[estimator]"),
    ]
    assert train(tmp_path, "digits", "", edits=edits).exit_code == 0
    for options, message in (
        (("--label", "3"), "--label: expected a model of data with labels, got one without"),
        (("--guidance", 2), "Error: --guidance: expected a model whose estimator guides, such"),
        (("--guidance-interval", 1, 2), "Error: --guidance-interval: expected a model whose est"),
    ):
        result = run("sample", tmp_path / "model", *options, "--output", tmp_path / "x.npy")
        assert message in result.output.splitlines()[-1]
    result = train(tmp_path, "digits", "", name="other")
    assert result.exit_code == 1
    wanted = "estimator.null_condition: expected a value, or labels or a condition in [data], got"
    assert result.output.splitlines()[-1].startswith(f"Error: {wanted}")
    assert train(tmp_path, "digits", "labels = true", edits=edits, name="told").exit_code == 0
    result = run("sample", tmp_path / "told", "--count", 2, "--output", tmp_path / "x.npy")
    assert result.stdout.startswith("labels: ")  # drawn, without any guidance


def test_other_labels_are_another_run(pets, tmp_path):
    shutil.copytree(pets / "images", tmp_path / "images")
    options = 'labels = true\nmode = "L"'
    assert train(tmp_path, tmp_path / "images", options, steps=2).exit_code == 0
    (tmp_path / "images" / "dog" / "00.png").rename(tmp_path / "images" / "cat" / "dog.png")
    result = train(tmp_path, tmp_path / "images", options, steps=3)
    assert result.exit_code == 1
    assert "is another one: data" in result.output.splitlines()[-1]
    assert "condition" in result.output.splitlines()[-1]


def test_multi_scale_models_hear_labels(pets, tmp_path):
    edits = [
        ('basis = "identity"\n', 'basis = {name = "haar", levels = 1}\ndrop = [1.0, 0.7]\n'),
        ('name = "denoising"', 'name = "multi-scale"'),
        ("[estimator.estimator.network]", "[estimator.estimator.networks]"),
    ]
    options = 'labels = true\nmode = "L"'
    result = train(tmp_path, pets / "images", options, steps=10, edits=edits)
    assert result.exit_code == 0, result.output
    model = Model.load(tmp_path / "model")
    heard = [
        stage.network.condition_embedding.num_embeddings
        for stage in model.estimator.estimator.stages
    ]
    assert heard == [3, 3]
    told = [torch.full((2,), label) for label in (0, 1)]
    found = [
        model.solver.sample(model.estimator, (2,), condition=c, generator=torch.Generator())
        for c in told
    ]
    assert (found[0] - found[1]).abs().flatten(1).amax(1).min() > 1e-3


FLOWERS = ["length,weight,species,age"]
for i in range(40):
    age = 10 + i % 20
    FLOWERS.append(
        f"{0.1 * age + 0.01 * (i % 7):.3f},{1.5 + 0.1 * (i % 3):.2f},rose{i % 2},{age}.5"
    )


def test_columns_of_names_come_back_as_a_column(tmp_path):
    (tmp_path / "flowers.csv").write_text("\n".join(FLOWERS))
    options = 'labels = "species"\ncolumns = ["length", "weight"]'
    assert train(tmp_path, tmp_path / "flowers.csv", options).exit_code == 0
    path = tmp_path / "x.csv"
    result = run("sample", tmp_path / "model", "--count", 4, "--output", path, "--label", "rose1")
    said(result, "labels: rose1 (4)")
    assert path.read_text().splitlines()[0] == "length,weight,species"
    found = load(path, labels="species")
    assert (found.classes, found.columns) == (("rose1",), ("length", "weight"))


def test_samples_given_rows_of_numbers(tmp_path):
    """Of any unit: networks hear them in units of their deviations."""
    (tmp_path / "flowers.csv").write_text("\n".join(FLOWERS))
    options = 'condition = ["age"]\ncolumns = ["length"]'
    result = train(tmp_path, tmp_path / "flowers.csv", options, steps=300)
    assert result.exit_code == 0, result.output
    condition_embedding = Model.load(
        tmp_path / "model"
    ).estimator.estimator.network.condition_embedding
    assert float(condition_embedding.mean) == pytest.approx(20, abs=1.0)
    (tmp_path / "ages.csv").write_text("age\n12.5\n27.5\n")
    np.save(tmp_path / "ages.npy", np.array([[12.5], [27.5]]))
    sample = ("sample", tmp_path / "model", "--count", 6, "--guidance", 1, "--output")
    for suffix in ("csv", "npy"):
        path = tmp_path / "x.csv"
        result = run(*sample, path, "--condition", tmp_path / f"ages.{suffix}")
        assert result.exit_code == 0, result.output
        found = load(path, columns=["age", "length"]).values
        assert found[:, 0].tolist() == [12.5] * 3 + [27.5] * 3
        assert (found[:, 1] - 0.1 * found[:, 0]).abs().max() < 0.4
    for options, message in (
        ((), "--condition: expected a file with what samples are conditioned on, (k, 1), got None"),
        (("--condition", tmp_path / "x.npy"), "x.npy: no such file"),
    ):
        result = run(*sample, path, *options)
        assert message in result.output.splitlines()[-1]
    np.save(tmp_path / "wide.npy", np.full((2, 2), 0.5))
    result = run(*sample, path, "--condition", tmp_path / "wide.npy")
    assert "--condition: expected rows [1], got (2, 2)" in result.output.splitlines()[-1]


def test_pictures_on_the_way_have_a_row_of_every_class(pets, tmp_path, monkeypatch):
    """With its name: the second one is of dogs, which are bright."""
    model, figures = Model.load(pets / "model"), []
    look = previews(model, tmp_path / "pictures", SINGLE_PROCESS, *data_of(model.settings))
    monkeypatch.setattr("scoresde.app.plots.save", lambda figure, path: figures.append(figure))
    look(150, model.estimator, None)
    (axes,) = figures[0].axes
    assert axes.get_title() == "after 150 updates"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    shades = axes.images[0].get_array()
    assert shades.shape == (9, 79)  # two rows of 16, with lines between
    cats, dogs = (shades[int(y) - 1 : int(y) + 3].mean() for y in axes.get_yticks())
    assert cats < 0.45 < 0.6 < dogs


@pytest.mark.parametrize("name", ["..", "../../evil", "a/b", ".hidden", ""])
def test_classes_are_no_way_out_of_a_folder(pets, tmp_path, name):
    shutil.copytree(pets / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"dog"', json.dumps(name)))
    result = run("sample", tmp_path / "model", "--count", 40, "--output", f"{tmp_path}/x/")
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()
