"""Samples as files: what was data comes back as data."""

import csv
import errno
import math
import os
import stat
import tempfile
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scoresde.app.export import Export
from scoresde.data import dequantize, load

DTYPES = [torch.float32, torch.float64]


def export(shape, bins=None, **options):
    return Export(event_shape=shape, bins=bins, **options)


def integers(bins, *shape):
    """Levels of which every one is there, and samples that lie in their cells."""
    values = torch.arange(math.prod(shape)).reshape(shape) * 7 % bins
    return values, dequantize(values, bins, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bins", [2, 17, 256, 257, 65536])
def test_integers_are_written_as_the_data_were(tmp_path, bins):
    values, x = integers(bins, 50, 1, 6, 5)
    export((1, 6, 5), bins).writer(tmp_path / "x.npy")(x)
    found = load(tmp_path / "x.npy", bins=bins)
    assert torch.equal(found.values.long(), values)
    assert np.load(tmp_path / "x.npy").dtype == (np.uint8 if bins <= 256 else np.uint16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_numbers_are_written_as_they_are(tmp_path, dtype):
    x = torch.randn(7, 2, 3, dtype=dtype)
    export((2, 3)).writer(tmp_path / "x.npy")(x)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("delimiter", "decimal"), [(",", "."), (";", ","), ("\t", ".")])
def test_a_table_has_the_header_of_the_data(tmp_path, dtype, delimiter, decimal):
    """Every number is read as the one that was written, whatever its size."""
    x = torch.cat([torch.randn(5, 2, dtype=dtype) * 10.0**power for power in (-30, -5, 0, 7, 30)])
    columns = ['length (cm), "long"', "Länge;Höhe"]
    own = export((2,), columns=columns, delimiter=delimiter, decimal=decimal)
    own.writer(tmp_path / "x.csv")(x)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    assert header == columns
    found = [[float(cell.replace(decimal, ".")) for cell in row] for row in rows]
    assert torch.equal(torch.tensor(found, dtype=torch.float64).to(dtype), x)


def test_a_table_of_integers(tmp_path):
    values, x = integers(12, 9, 3)
    export((3,), 12, columns=["a", "b", "c"]).writer(tmp_path / "x.csv")(x)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0] == "a,b,c"
    assert [list(map(int, line.split(","))) for line in lines[1:]] == values.tolist()


@pytest.mark.parametrize("columns", [None, ["1", "2", "3"]])
def test_a_table_without_names_has_no_header(tmp_path, columns):
    x = torch.randn(4, 3)
    export((3,), columns=columns).writer(tmp_path / "x.csv")(x)
    assert torch.equal(load(tmp_path / "x.csv").values, x)


@pytest.mark.parametrize("header", [True, False])
def test_a_header_that_was_asked_for(tmp_path, header):
    x = torch.randn(4, 2)
    export((2,), columns=["1", "2019"], header=header).writer(tmp_path / "x.csv")(x)
    found = load(tmp_path / "x.csv", header=header)
    assert found.columns == (("1", "2019") if header else ("1", "2"))
    assert torch.equal(found.values, x)


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pictures(tmp_path, bins, channels):
    """In the order of their names; from black to white in equal steps."""
    values, x = integers(bins, 12, channels, 6, 5)
    export((channels, 6, 5), bins).writer(f"{tmp_path}/new/")(x)
    paths = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in paths] == [f"{i:02}.png" for i in range(12)]
    mode = "L" if channels == 1 else "RGB"
    assert {Image.open(path).mode for path in paths} == {mode}
    found = load(tmp_path / "new", mode=mode).values
    shades = {
        int(value): float(found[values == value].double().mean()) for value in values.unique()
    }
    assert shades[0] == 0.0
    assert shades[bins - 1] == 255.0
    torch.testing.assert_close(found, (values * (255 / (bins - 1))).round().to(torch.uint8))


@pytest.mark.parametrize("bins", [257, 1000, 65536])
def test_many_levels_take_16_bits(tmp_path, bins):
    values, x = integers(bins, 3, 1, 40, 50)
    export((1, 40, 50), bins).writer(f"{tmp_path}/new/")(x)
    for i, path in enumerate(sorted((tmp_path / "new").iterdir())):
        found = np.asarray(Image.open(path)).astype(float) / 65535 * (bins - 1)
        np.testing.assert_array_equal(found.round(), values[i, 0])


@given(count=st.integers(1, 30), bins=st.integers(2, 300), shape=st.sampled_from([(3,), (1, 2, 2)]))
def test_levels_survive(tmp_path_factory, count, bins, shape):
    values, x = integers(bins, count, *shape)
    path = tmp_path_factory.mktemp("x") / "x.npy"
    export(shape, bins).writer(path)(x)
    assert torch.equal(load(path, bins=bins).values.long(), values)


def test_one_picture_of_all(tmp_path):
    export((3, 4, 4)).writer(tmp_path / "x.PNG")(torch.zeros(10, 3, 4, 4))
    assert Image.open(tmp_path / "x.PNG").format == "PNG"


def test_an_existing_file_is_replaced_and_an_empty_folder_filled(tmp_path):
    for _ in range(2):
        export((2,)).writer(tmp_path / "x.npy")(torch.zeros(3, 2))
    (tmp_path / "new").mkdir()
    export((1, 2, 2), 2).writer(tmp_path / "new")(torch.zeros(3, 1, 2, 2))
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "x.npy"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_others_may_see_what_the_umask_lets_them(tmp_path):
    export((1, 2, 2), 2).writer(f"{tmp_path}/new/")(torch.zeros(3, 1, 2, 2))
    (tmp_path / "own").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "own")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    ("path", "shape", "bins", "message"),
    [
        ("x.npx", (2,), None, r"expected \.npy, \.npz, \.csv, .*, or a folder .*, got .*x\.npx"),
        ("x.pt", (2,), None, r"expected \.npy, .*x\.pt"),
        ("x", (2,), None, r"expected \.npy, "),
        (".npy", (2,), None, r"expected \.npy, "),
        (
            "x.csv",
            (1, 2, 2),
            None,
            r"vectors for \.csv \(\.npy takes all\), got \(1, 2, 2\) of real",
        ),
        ("x.csv", (), None, r"vectors for \.csv"),
        ("x.png", (2,), None, r"events that are images, .*got \(2,\)"),
        ("x.png", (4, 2, 2), 256, r"events that are images, .*got \(4, 2, 2\)"),
        ("new/", (2,), 256, "events that are images"),
        (
            "new/",
            (1, 2, 2),
            None,
            r"at most 65536 bins for PNG .*got \(1, 2, 2\) of real numbers",
        ),
        ("new/", (3, 2, 2), 257, r"at most 256 bins for PNG .*of integers of 257 bins"),
    ],
)
def test_what_is_not_written_is_refused_before_there_are_samples(
    tmp_path, path, shape, bins, message
):
    with pytest.raises(
        ValueError, match=rf"^--output: expected .*{message.removeprefix('expected ')}"
    ):
        export(shape, bins).writer(f"{tmp_path}/{path}", "--output")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path():
    with pytest.raises(ValueError, match=r"path: expected .*, got an empty path"):
        export((2,)).writer("")


@pytest.mark.parametrize("path", ["nowhere/x.npy", "nowhere/new/", "file/x.npy", "full", "full/"])
def test_where_nothing_can_be_written(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OSError, match=r"nowhere|file|new or an empty folder"):
        export((1, 2, 2), 2).writer(f"{tmp_path}/{path}")


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """A disk that is full at the third picture."""
    save, saved = Image.Image.save, []

    def full(image, path, *args, **options):
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(image, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    write = export((1, 2, 2), 2).writer(f"{tmp_path}/new/")
    with pytest.raises(OSError, match="No space"):
        write(torch.zeros(5, 1, 2, 2))
    assert len(saved) == 3
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_is_named(tmp_path, monkeypatch):
    def full(dir):
        raise OSError(errno.ENOSPC, "No space left on device", f"{dir}/tmpabc")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.npy'$"):
        Export(event_shape=(2,)).writer(tmp_path / "x.npy")


def test_many_images_are_written_one_after_the_other(tmp_path):
    """Beside the samples there is the memory of a few of them."""
    x = torch.rand(200, 3, 64, 64) * 2 - 1
    write = Export(event_shape=(3, 64, 64), bins=256).writer(f"{tmp_path}/new/")
    tracemalloc.start()
    write(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * x.nbytes / 3
    assert len(list((tmp_path / "new").iterdir())) == 200
