"""Images in zip files, which are read as folders are."""

import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import load, split
from scoresde.data.image_files import image_files
from scoresde.internals import limits


def paint(path):
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three images, two of them below, and what is no image."""
    folder = tmp_path / "photos"
    for below in ("", "b", "b/a", ".hidden", "__MACOSX"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    for name in ("c.png", "b/de.png", "b/a/efg.PNG", ".hidden/f.png", "._c.png"):
        paint(folder / name)
    (folder / "__MACOSX" / "._c.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def pack(path, folder, within="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in folder.rglob("*"):
            archive.write(file, within + str(file.relative_to(folder)))
    return path


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("within", ["", "photos/", "a/photos/"])
def test_a_zip_file_is_a_folder(tmp_path, folder, within, method, lazy):
    """With the folder that was packed or without it."""
    packed = pack(tmp_path / "images.ZIP", folder, within, method)
    (folder / "__MACOSX" / "._c.png").unlink()
    wanted, found = (load(path, subfolders=True, lazy=lazy) for path in (folder, packed))
    assert (found.name, found.bins) == ("images", 256)
    assert np.array_equal(found.read(slice(None)), wanted.read(slice(None)))
    assert [str(path) for path in image_files(packed, True).paths] == [
        "c.png",
        "b/de.png",
        "b/a/efg.PNG",
    ]
    assert len(load(packed, subfolders=False)) == 1
    with pytest.raises(ValueError, match=r"images\.ZIP: expected images in no subfolder, got b/de"):
        load(packed)


def test_every_process_has_a_place_of_its_own_in_the_file(tmp_path, folder, monkeypatch):
    """One that was forked would read where its parent, or a sibling, has just been."""
    data = load(pack(tmp_path / "images.zip", folder), subfolders=True, lazy=True)
    part, opened = split(data, 0.7)[0], []
    whole, real = part.read(slice(None)), zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: opened.append(path) or real(path))
    for process in (os.getpid(), 1, 1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        assert torch.equal(part.read(slice(None)), whole)
    assert opened == [tmp_path / "images.zip"] * 2


def test_what_is_no_zip_file(tmp_path, folder):
    packed = pack(tmp_path / "images.zip", folder)
    content = packed.read_bytes()
    for damaged in (b"", b"no zip file", content[: len(content) // 2]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"images\.zip: cannot be read as a zip file"):
            load(packed, subfolders=True)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("notes.txt", "no image")
    with pytest.raises(
        ValueError, match=r"images\.zip: expected a folder with images in it, got no"
    ):
        load(packed)


def test_damage_is_named(tmp_path):
    paint(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.writestr("b.png", b"no image")
    with pytest.raises(ValueError, match=r"x\.zip/b\.png: expected an image of"):
        load(tmp_path / "x.zip")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[60] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip: cannot be read as a zip file: Bad CRC-32"):
        load(tmp_path / "x.zip")


def altered(path, name, **fields):
    """Other numbers in the central directory, where it says how large a member is."""
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\1\2")
    places = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I")}
    for field, value in fields.items():
        offset, form = places[field]
        struct.pack_into(form, content, start + offset, value)
    path.write_bytes(content)


def test_a_member_may_cost_no_more_than_it_says(tmp_path):
    """A bomb of 16 MB that claims a few bytes, or the memory of a few, or to take many."""

    def bomb():
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(2**24))

    bomb()
    altered(tmp_path / "x.zip", "a.png", size=1000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.zip"):
        load(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    bomb()
    altered(tmp_path / "x.zip", "a.png", packed=2**30)
    with (
        limits.memory_limit(2**24),
        pytest.raises(ValueError, match=r"a\.png: expected at most 0.0156 GiB"),
    ):
        load(tmp_path / "x.zip")


def test_two_images_have_two_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", b"")
    with pytest.raises(ValueError, match=r"x\.zip: expected images of different names, got a\.png"):
        load(tmp_path / "x.zip")


def test_members_that_are_not_read(tmp_path):
    paint(tmp_path / "a.png")
    for fields, message in (
        ({"flags": 1}, "expected an image without a password, got an encrypted one"),
        ({"method": 12}, "expected an image that is stored or deflated, got 12"),
    ):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.write(tmp_path / "a.png", "a.png")
        altered(tmp_path / "x.zip", "a.png", **fields)
        with pytest.raises(ValueError, match=rf"x\.zip/a\.png: {message}"):
            load(tmp_path / "x.zip")
