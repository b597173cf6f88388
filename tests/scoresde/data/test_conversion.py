"""Numbers of files: told apart after they are rounded, or refused."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import load
from scoresde.data.conversion import conversion

NORMAL = np.random.default_rng(0).normal(size=(400, 1))
ONES = np.ones((400, 1))


@pytest.mark.parametrize(
    "column",
    [
        1.7e9 + NORMAL,
        1e-300 * NORMAL,
        1e300 * NORMAL,
        1e-44 * NORMAL,
        -1e7 + NORMAL,
        np.where(np.arange(400)[:, None] == 7, 0, 1.7e9 + NORMAL),
        np.where(np.arange(400)[:, None] % 2, NORMAL, 1.7e9 + NORMAL),
        1e9 + np.arange(400.0)[:, None] + 0.5,
    ],
    ids=["time", "small", "large", "subnormal", "far", "outlier", "half", "counted"],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_float64_that_merges_is_refused_or_kept(tmp_path, column, lazy):
    path = tmp_path / "t.npy"
    np.save(path, np.hstack([NORMAL, column]))
    with pytest.raises(ValueError, match=r"t\.npy, component 1: .*float32 tells apart, got 4?0?"):
        load(path, lazy=lazy)
    kept = load(path, lazy=lazy, dtype="float64").read(slice(None))
    assert kept.dtype == torch.float64
    assert np.array_equal(kept.numpy()[:, 1:], column)


@pytest.mark.parametrize(
    "column",
    [
        NORMAL,
        1e3 + NORMAL,
        1e-30 * NORMAL,
        ONES * 0.1,
        ONES * 0.1 + 1e-17 * NORMAL,
        (np.arange(400) % 7 * 0.1)[:, None] * (1 + 1e-16 * np.sign(NORMAL)),
        np.float32(1.7e9 + NORMAL).astype("f8"),
        np.where(np.arange(400)[:, None] == 7, 1.7e9, NORMAL),
        np.where(np.arange(400)[:, None] < 200, np.nan, NORMAL),
    ],
)
def test_what_float32_tells_apart_is_read(tmp_path, column):
    np.save(tmp_path / "t.npy", np.hstack([NORMAL, column]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load(tmp_path / "t.npy", missing="nan")
    assert data.values.dtype == torch.float32
    assert np.array_equal(data.values.numpy()[:, 1:], column.astype("f4"), equal_nan=True)


def test_a_column_of_a_table_is_named(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{x},{1.7e9 + x!r}" for x in NORMAL[:, 0].tolist()]
    path.write_text("\n".join(["length,time", *lines]))
    with pytest.raises(ValueError, match=r"t\.csv, column 'time': .* \(dtype='float64' keeps them"):
        load(path)
    assert len(load(path, dtype="float64").values[:, 1].unique()) == 400
    assert load(path, dtype="float32").values.dtype == torch.float32


def test_a_default_dtype_that_holds_all_is_asked_nothing(tmp_path):
    np.save(tmp_path / "t.npy", 1.7e9 + NORMAL)
    torch.set_default_dtype(torch.float64)
    try:
        assert len(load(tmp_path / "t.npy").values.unique()) == 400
    finally:
        torch.set_default_dtype(torch.float32)


@given(st.integers(1, 4096), st.integers(1, 5000), st.integers(1, 4))
def test_any_sizes_are_looked_at(count, size, files):
    arrays = [np.full((count, size), 0.5, "f4")[:2] for _ in range(files)]
    convert, bins = conversion("x", arrays)
    assert bins is None
    assert convert(arrays[0]).shape == arrays[0].shape


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([[1.0, 0.5], [2, 1]], "component 0"),
        ([[1.0, 0], [2, 1]], "all 2 components"),
        ([[1.0, 0, 0.5], [2, 1, 1]], "components 0, 1"),
        ([[1.0], [2]], "component 0"),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_whole_numbers_are_not_read_as_real_ones_in_silence(tmp_path, array, said, dtype):
    np.save(tmp_path / "t.npy", np.array(array, dtype))
    with pytest.warns(UserWarning, match=rf"t\.npy, {said}: whole numbers are read as real ones"):
        load(tmp_path / "t.npy")


@pytest.mark.parametrize("array", [[[1.0, 0.5], [1, 1]], [[1.0, 0.5]], [[3.0], [3]]])
def test_a_constant_is_no_count(tmp_path, array):
    np.save(tmp_path / "t.npy", np.array(array))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "t.npy")
