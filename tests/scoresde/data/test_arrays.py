"""Arrays of files: all numbers, or a message."""

import math
import zipfile

import numpy as np
import pytest
import torch

from scoresde.data import load
from scoresde.internals import limits


def test_float_arrays_come_in_the_default_dtype(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 2, 3))
    for dtype in ("<f2", ">f4", "<f8", ">f8"):
        np.save(tmp_path / "a.npy", np.asfortranarray(array.astype(dtype))[::-1])
        data = load(tmp_path / "a.npy")
        assert (data.bins, data.values.dtype, data.name) == (None, torch.float32, "a.npy")
        assert np.allclose(data.values.numpy(), array[::-1], atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "given_bins", "bins", "read"),
    [
        ("uint8", None, 256, torch.uint8),
        ("uint8", 7, 7, torch.uint8),
        ("bool", None, 2, torch.uint8),
        (">i4", 7, 7, torch.int64),
        ("uint64", 7, 7, torch.int64),
        ("int8", 7, 7, torch.int64),
    ],
)
def test_integer_arrays(tmp_path, dtype, given_bins, bins, read):
    array = (np.arange(6).reshape(2, 3) % bins).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy", bins=given_bins)
    assert (data.bins, data.values.dtype) == (bins, read)
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
        (
            np.array([[{}]]),
            {},
            TypeError,
            "real numbers, got Python objects",
        ),
        (np.ones((2, 3), complex), {}, TypeError, "real numbers, got an array of complex128"),
        (np.array([["a"]]), {}, TypeError, "real numbers, got an array of <U1"),
        (np.float64(1), {}, ValueError, r"shape \(N, \*event\), no size 0, got \(\)"),
        (np.ones(3), {}, ValueError, r"got \(3,\)"),
        (np.ones((0, 3)), {}, ValueError, r"got \(0, 3\)"),
        (np.ones((3, 0)), {}, ValueError, r"got \(3, 0\)"),
        (np.array([[1, math.nan]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.array([[1, math.inf]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.full((2, 3), 0.5), {"bins": 4}, ValueError, r"whole numbers of 4 bins, got \[0.5"),
        (np.array([[1.0, math.nan]]), {"bins": 4}, ValueError, "expected whole numbers"),
        (
            np.ones((2, 3), int),
            {},
            ValueError,
            "number of bins of int64 data, or continuous=True",
        ),
        (np.ones((2, 3), int), {"bins": 1}, ValueError, "a whole number of at least 2, got 1"),
        (np.array([[4, 0]]), {"bins": 4}, ValueError, "from 0 to 3, got 0 to 4"),
        (np.array([[-1, 0]]), {"bins": 4}, ValueError, "from 0 to 3, got -1 to 0"),
    ],
)
def test_arrays_that_will_not_do(tmp_path, array, options, error, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        load(tmp_path / "a.npy", **options)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"garbled", b"PK\x03\x04garbled", b"\x93NUMPY\x01\x00"])
def test_garbled_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as \.npy or \.npz") as refused:
        load(tmp_path / name)
    assert "pickle" not in str(refused.value)


def header(shape, dtype="<f8", version=(1, 0)):
    """The start of a ``.npy`` file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("shape", ["(1000000000, 10)", "(2, 3)", "(-1, 3)", f"({2**62}, 4)"])
def test_claims_of_a_header_are_held_against_the_file(tmp_path, shape, lazy):
    path = tmp_path / "a.npy"
    path.write_bytes(header(shape) + bytes(47))
    with pytest.raises(ValueError, match=r"a\.npy: expected numbers of shape .*, got 47 bytes"):
        load(path, lazy=lazy)


def test_headers_without_a_bound_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(header("(2, 3)", version=(2, 0)) + bytes(99))
    with pytest.raises(ValueError, match=r"a\.npy: .*format: expected 1\.0"):
        load(path)


def test_packed_zeros_may_cost_no_more_than_the_bound(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)))
    with (
        limits.memory_limit(20_000_000),
        pytest.raises(ValueError, match=r"a\.npz, x: expected at most"),
    ):
        load(path)
    assert load(path).values.shape == (1000, 1000)


@pytest.mark.parametrize("shape", ["(1000000000, 10)", "(2, 3)"])
def test_claims_within_an_archive(tmp_path, shape):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header(shape) + bytes(47))
    with pytest.raises(ValueError, match=r"a\.npz, x: expected numbers of shape .*, got 47 bytes"):
        load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_are_packed_as_numpy_does(tmp_path, method):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", header("(2, 3)") + bytes(48))
    with pytest.raises(ValueError, match=r"a\.npz, x: expected .* stored or deflated"):
        load(path)


def test_a_sparse_array_may_cost_no_more_than_the_bound(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        file.write(header(f"({2**30}, 1)"))
        file.truncate(2**34)
    with pytest.raises(ValueError, match=r"a\.npy: expected at most 1 GiB"):
        load(path)
    assert load(path, lazy=True).read(slice(2)).tolist() == [[0], [0]]


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i4", "uint8"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_the_order_of_memory_does_not_matter(tmp_path, dtype, name):
    array = np.asfortranarray(np.arange(24).reshape(2, 3, 4) % 5).astype(dtype, order="F")
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, array)
    data = load(tmp_path / name, continuous=True)
    assert data.values.tolist() == array.tolist()


def test_values_are_a_copy_of_the_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.full((2, 3), 0.5, "f4"))
    data = load(path)
    np.save(path, np.full((2, 3), 1.5, "f4"))
    assert data.values.tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize("lazy", [False, True])
def test_missing_values_of_arrays(tmp_path, lazy):
    np.save(tmp_path / "a.npy", np.array([[math.nan, 0.5], [1.5, math.nan]]))
    data = load(tmp_path / "a.npy", missing="nan", lazy=lazy)
    assert data.read(slice(None)).isnan().tolist() == [[True, False], [False, True]]


def test_integers_as_real_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[300, -2]]))
    assert load(tmp_path / "a.npy", continuous=True).values.tolist() == [[300.0, -2.0]]
    np.save(tmp_path / "a.npy", np.array([[2**53, 1]]))
    with pytest.raises(ValueError, match=r"a\.npy: expected whole numbers below 2\*\*53"):
        load(tmp_path / "a.npy", continuous=True)
    np.save(tmp_path / "a.npy", np.array([[0.0, 3.0], [1.0, 2.0]]))
    assert load(tmp_path / "a.npy", bins=4).values.tolist() == [[0, 3], [1, 2]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_two_arrays_of_one_name_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 3), 0.5))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(ValueError, match=r"a\.npz: expected arrays of different names, got x"):
        load(tmp_path / "a.npz", key="x")


@pytest.mark.parametrize("missing", [None, "nan"])
@pytest.mark.parametrize("value", [1e39, -1e300])
def test_numbers_that_float32_has_no_room_for(tmp_path, value, missing):
    np.save(tmp_path / "a.npy", np.array([[value, 0.5], [2.5, 1.5]]))
    with pytest.raises(ValueError, match=r"float32 holds \(dtype='float64' may\), got 1e\+"):
        load(tmp_path / "a.npy", missing=missing)
    assert load(tmp_path / "a.npy", dtype="float64", missing=missing).values[0, 0] == value


def test_nan_is_told_what_reads_it(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[math.nan, 0.5], [2.5, 1.5]]))
    with pytest.raises(ValueError, match=r"missing= lets NaN stand for missing values.* \[0, 0\]"):
        load(tmp_path / "a.npy")


def test_infinity_is_no_missing_value_and_has_its_place(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[math.nan, 0.5], [2.5, math.inf]]))
    with pytest.raises(ValueError, match=r"1 NaN or infinite of 4, the first at \[1, 1\]"):
        load(tmp_path / "a.npy", missing="nan")
