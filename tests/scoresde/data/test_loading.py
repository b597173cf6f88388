"""Sources: what reads them, and their options."""

import os

import numpy as np
import pytest
from PIL import Image

from scoresde.data import load, split
from scoresde.data.loading import READERS


def test_missing_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean 'digits'.*patches"):
        load("digit")
    for name in ("a.npy", "folder", "folder/a.npz", "a.csv", "a.parquet", "a.pt"):
        with pytest.raises(FileNotFoundError, match=name):
            load(tmp_path / name)


def test_options_of_another_source_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"size: no option of digits"):
        load("digits", size=8)
    with pytest.raises(TypeError, match=r"fraems: no option of .*did you mean 'frames'"):
        load(tmp_path, fraems="first")


@pytest.mark.parametrize(
    "name",
    ["a.pt", "a.pth", "a.pkl", "a.txt", "a.xlsx", "a.h5", "a.json", "a.csv.gz", "a", "a.eps"],
)
def test_what_is_not_read_is_told_what_is(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x05.")
    known = (
        r"expected \.npy, \.npz, \.csv, \.tsv, \.parquet, \.zip, or a folder of arrays or images"
    )
    with pytest.raises(ValueError, match=known) as refused:
        load(tmp_path / name)
    assert "pickle" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp"])
def test_an_image_is_a_single_event(tmp_path, name):
    for file in (name, "other.png"):
        Image.new("RGB", (4, 4), "red" if file == name else "blue").save(tmp_path / file)
    x = load(tmp_path / name).values[:]
    assert x.shape == (1, 3, 4, 4)
    assert x[0, 0].float().mean() > 250
    with pytest.raises(ValueError, match="expected two events or more to split, got 1"):
        split(load(tmp_path / name), 0.5)


def test_arrays_beside_images_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    np.save(tmp_path / "stray.npy", np.ones((2, 3)))
    (tmp_path / "stray.npy").rename(tmp_path / "stray.NPY")
    with pytest.raises(ValueError, match=r"got stray\.NPY beside a\.png and 1 more"):
        load(tmp_path)
    (tmp_path / "stray.NPY").rename(tmp_path / ".stray.npy")
    assert load(tmp_path).values.shape == (2, 3, 4, 4)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in READERS])
@pytest.mark.parametrize("make", [pipe, device], ids=lambda make: make.__name__)
def test_what_has_no_end_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: expected a file, got a (pipe|device)"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
@pytest.mark.parametrize("make", [pipe, device], ids=lambda make: make.__name__)
def test_what_has_no_end_is_refused_in_a_folder(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: expected a file, got a (pipe|device)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("b.npz", r"no \.npz file and no array in a subfolder, got b\.npz"),
        ("below/b.npy", "no array in a subfolder, got below/b.npy"),
        ("below/b.png", r"of arrays or of images, got a\.npy beside below/b\.png"),
    ],
)
def test_nothing_beside_arrays_is_left_out(tmp_path, other, message):
    np.save(tmp_path / "a.npy", np.full((2, 3), 0.5, "f4"))
    (tmp_path / "below").mkdir()
    (tmp_path / other).touch()
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_capitals_make_no_difference(tmp_path):
    for name in ("a.npy", "B.NPY"):
        np.save(tmp_path / "new.npy", np.full((2, 3), 0.5, "f4"))
        (tmp_path / "new.npy").rename(tmp_path / name)
    assert load(tmp_path).values.shape == (4, 3)


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.full((2, 3), 0.5, "f4"))
    monkeypatch.chdir(tmp_path)
    assert len(load(".")) == 2
    with pytest.raises(ValueError, match=r"source: expected a data set, .* got an empty name"):
        load("")
