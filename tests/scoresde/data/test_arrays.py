"""Arrays of files: all numbers, or a message."""

import math
import re

import numpy as np
import pytest
import torch

from scoresde.data import load


def test_float_arrays_come_in_the_default_dtype(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 2, 3))
    for dtype in ("<f2", ">f4", "<f8", ">f8"):
        np.save(tmp_path / "a.npy", np.asfortranarray(array.astype(dtype))[::-1])
        data = load(tmp_path / "a.npy")
        assert (data.levels, data.values.dtype, data.name) == (None, torch.float32, "a.npy")
        assert np.allclose(data.values.numpy(), array[::-1], atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "given_levels", "levels", "read"),
    [
        ("uint8", None, 256, torch.uint8),
        ("uint8", 7, 7, torch.uint8),
        ("bool", None, 2, torch.uint8),
        (">i4", 7, 7, torch.int64),
        ("uint64", 7, 7, torch.int64),
        ("int8", 7, 7, torch.int64),
    ],
)
def test_integer_arrays(tmp_path, dtype, given_levels, levels, read):
    array = (np.arange(6).reshape(2, 3) % levels).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy", levels=given_levels)
    assert (data.levels, data.values.dtype) == (levels, read)
    assert data.values.tolist() == array.astype(int).tolist()


def test_arrays_of_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, one=np.ones((2, 3)))
    assert load(path).values.shape == (2, 3)
    np.savez_compressed(path, one=np.ones((2, 3)), two=np.zeros((4, 5)))
    assert load(path, key="two").values.shape == (4, 5)
    for key in (None, "three"):
        with pytest.raises(ValueError, match=f"one of one, two, got {key}"):
            load(path, key=key)
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match="key: expected None"):
        load(tmp_path / "a.npy", key="one")


@pytest.mark.parametrize(
    ("array", "options", "error", "message"),
    [
        (np.array([[{}]]), {}, ValueError, "Object arrays"),
        (np.ones((2, 3), complex), {}, TypeError, "real numbers, got an array of complex128"),
        (np.array([["a"]]), {}, TypeError, "real numbers, got an array of <U1"),
        (np.float64(1), {}, ValueError, r"shape \(N, \*event\), no size 0, got \(\)"),
        (np.ones(3), {}, ValueError, r"got \(3,\)"),
        (np.ones((0, 3)), {}, ValueError, r"got \(0, 3\)"),
        (np.ones((3, 0)), {}, ValueError, r"got \(3, 0\)"),
        (np.array([[1, math.nan]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.array([[1, math.inf]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.ones((2, 3)), {"levels": 4}, ValueError, "levels: expected None for float64"),
        (np.ones((2, 3), int), {}, ValueError, "levels: expected the number of levels of int64"),
        (np.ones((2, 3), int), {"levels": 1}, ValueError, "levels: expected 2 to 65536, got 1"),
        (np.array([[4, 0]]), {"levels": 4}, ValueError, "from 0 to 3, got 0 to 4"),
        (np.array([[-1, 0]]), {"levels": 4}, ValueError, "from 0 to 3, got -1 to 0"),
    ],
)
def test_arrays_that_will_not_do(tmp_path, array, options, error, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        load(tmp_path / "a.npy", **options)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"garbled", b"PK\x03\x04garbled", b"\x93NUMPY\x01\x00"])
def test_garbled_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        load(tmp_path / name)
