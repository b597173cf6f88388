"""Labels and conditions from files: folders by class, columns, arrays, built-in sets."""

import zipfile

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from scoresde.data import load

SHADES = {"zebra": [10, 20], "cat": [30], "ant/small": [40, 50]}


@pytest.fixture
def folder(tmp_path):
    """Images whose shade says which they are, in folders of their class."""
    for name, shades in SHADES.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for shade in shades:
            Image.new("L", (4, 4), shade).save(tmp_path / "pets" / name / f"{shade}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_subfolders_are_classes_with_their_names(folder, lazy, packed):
    source = folder
    if packed:
        source = folder.parent / "pets.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(folder.rglob("*.png")):
                archive.write(path, path.relative_to(folder.parent))
    data = load(source, labels=True, mode="L", lazy=lazy)
    assert data.classes == ("ant", "cat", "zebra")
    values, told = data.pairs(slice(None))
    wanted = {10: "zebra", 20: "zebra", 30: "cat", 40: "ant", 50: "ant"}
    found = {int(v[0, 0, 0]): data.classes[int(t)] for v, t in zip(values, told, strict=True)}
    assert found == wanted


def test_a_folder_by_class_without_labels_is_what_it_was(folder):
    with pytest.raises(ValueError, match="images in no subfolder"):
        load(folder)
    data = load(folder, subfolders=True)
    assert data.condition is data.classes is None
    with pytest.raises(ValueError, match="subfolders: expected True with labels, got False"):
        load(folder, labels=True, subfolders=False)
    Image.new("L", (4, 4)).save(folder / "stray.png")
    with pytest.raises(ValueError, match=r"image in the folder of its class, got stray.png"):
        load(folder, labels=True)
    with pytest.raises(ValueError, match="labels: expected one of False, True, got 'yes'"):
        load(folder, labels="yes")


TABLE = "length,weight,species,age\n.5,1.5,rose,3\n.6,2.5,lily,4\n.75,3.25,rose,5\n"


def csv(tmp_path):
    path = tmp_path / "flowers.csv"
    path.write_text(TABLE)
    return path


def arrow(tmp_path):
    path = tmp_path / "flowers.parquet"
    names, *rows = [line.split(",") for line in TABLE.split()]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    numbers = {n: [float(v) for v in columns[n]] for n in ("length", "weight", "age")}
    parquet.write_table(pyarrow.table({**columns, **numbers}).select(names), path)
    return path


every_table = pytest.mark.parametrize("write", [csv, arrow])


@every_table
def test_a_column_of_names_is_what_events_are_conditioned_on(tmp_path, write):
    data = load(write(tmp_path), labels="species", columns=["weight", "length"])
    assert data.columns == ("weight", "length")
    assert data.classes == ("lily", "rose")
    assert data.condition.tolist() == [1, 0, 1]
    torch.testing.assert_close(data.values[1], torch.tensor([2.5, 0.6]))
    data = load(write(tmp_path), labels="species", continuous=True)
    assert data.columns == ("length", "weight", "age")


def test_a_column_of_whole_numbers_has_classes_by_size(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n.5,10\n.6,9\n.7,10\n")
    data = load(path, labels="b")
    assert (data.classes, data.condition.tolist()) == (("9", "10"), [1, 0, 1])


@every_table
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_columns_of_numbers_are_vectors(tmp_path, write, dtype):
    data = load(write(tmp_path), condition=["age", "weight"], columns=["length"], dtype=dtype)
    assert data.columns == ("length",)
    assert data.condition.dtype == (torch.float32 if dtype is None else torch.float64)
    assert data.condition.tolist() == [[3.0, 1.5], [4.0, 2.5], [5.0, 3.25]]
    assert data.values.shape == (3, 1)
    with pytest.raises(ValueError, match=r"columns: expected others than labels and cond.*weight"):
        load(write(tmp_path), condition=["weight"], columns=["length", "weight"])
    with pytest.raises(ValueError, match=r"columns: expected some of length.*, got size"):
        load(write(tmp_path), condition=["size"])
    with pytest.raises(ValueError, match="condition: expected a list of names, got 'age'"):
        load(write(tmp_path), condition="age")
    with pytest.raises(ValueError, match="condition: expected None with labels, got both"):
        load(write(tmp_path), condition=["age"], labels="species")
    with pytest.raises(ValueError, match="labels: expected the name of a column, got True"):
        load(write(tmp_path), labels=True)


def test_a_row_without_a_class_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n.5,rose\n.6,\n")
    with pytest.raises(ValueError, match=r"line 3, column b: expected a class, got ''"):
        load(path, labels="b")
    path.write_text("a,b\n.5,1.5\n.6,NA\n")
    with pytest.raises(ValueError, match=r"line 3, column 2 \(b\): expected a finite number"):
        load(path, condition=["b"])
    with pytest.raises(ValueError, match=r"x.csv, condition: expected finite"):
        load(path, condition=["b"], missing="nan")
    path.write_text("a,b\n.5,1.5\nNA,.5\n")
    with pytest.raises(ValueError, match="line 3: expected a value in every line"):
        load(path, condition=["b"], missing="nan")
    table = pyarrow.table({"a": [0.5, 0.6], "b": ["rose", None]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column 'b': expected a class in every row"):
        load(tmp_path / "x.parquet", labels="b")


def test_whole_numbers_of_parquet_are_classes_and_real_ones_are_not(tmp_path):
    table = pyarrow.table({"a": [0.5, 0.6], "b": [10, 9], "c": [1.5, 2.5], "d": [True, False]})
    path = tmp_path / "x.parquet"
    parquet.write_table(table, path)
    found = load(path, labels="b", columns=["a"])
    assert (found.classes, found.condition.tolist()) == (("9", "10"), [1, 0])
    assert load(path, labels="d", columns=["a"]).classes == ("False", "True")
    with pytest.raises(ValueError, match=r"column 'c': expected names or whole numbers, got 1.5"):
        load(path, labels="c", columns=["a"])


def test_arrays_beside_the_events(tmp_path):
    path, x = tmp_path / "x.npz", np.random.default_rng(0).random((3, 2, 2), "f4")
    np.savez(path, x=x, y=np.array([7, 5, 7]), v=x[:, 0])
    labelled = load(path, key="x", labels="y")
    assert (labelled.classes, labelled.condition.tolist()) == (("5", "7"), [1, 0, 1])
    vectors = load(path, key="x", condition="v")
    assert torch.equal(vectors.condition, torch.from_numpy(x[:, 0]))
    with pytest.raises(ValueError, match=r"x.npz, v: expected whole numbers \(N,\), got float32"):
        load(path, key="x", labels="v")
    with pytest.raises(ValueError, match="labels: expected one of x, y, v, got z"):
        load(path, key="x", labels="z")
    with pytest.raises(ValueError, match="key: expected one of x, v, got None"):
        load(path, labels="y")
    np.savez(path, x=x, y=np.array([7, 5, 7]))
    assert torch.equal(load(path, labels="y").values, torch.from_numpy(x))
    np.savez(path, x=x, y=np.array([7, 5]))
    with pytest.raises(ValueError, match="condition: expected one for each of 3 events, got 2"):
        load(path, labels="y")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="labels: expected None for a single array, got y"):
        load(tmp_path / "x.npy", labels="y")


def test_digits_know_which_they_are():
    data = load("digits", labels=True)
    assert data.classes == tuple("0123456789")
    assert data.condition[:10].tolist() == list(range(10))
    assert load("digits").condition is None
