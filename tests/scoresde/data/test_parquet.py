"""Tables in Parquet files."""

import contextlib
import sys

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from scoresde.data import load
from scoresde.internals import limits


def write(folder, columns, **options):
    path = folder / "a.parquet"
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_numbers_come_back(tmp_path, kind, compression):
    values = np.random.default_rng(0).normal(size=(1000, 2)).astype(kind)
    columns = {"a": values[:, 0], "b": values[:, 1]}
    path = write(tmp_path, columns, compression=compression, row_group_size=300)
    data = load(path, columns=["b", "a"])
    assert (data.name, data.columns, data.bins) == ("a.parquet", ("b", "a"), None)
    assert np.array_equal(data.values.numpy(), values[:, ::-1].astype("f4"))
    assert load(path, dtype="float64").values.dtype == torch.float64


def test_whole_numbers_and_booleans(tmp_path):
    path = write(tmp_path, {"a": [3, 0, 2], "b": [True, False, True], "c": [0.5, 1, 2]})
    with pytest.warns(UserWarning, match="columns 'a', 'b': whole numbers"):
        assert load(path).values.tolist() == [[3, 1, 0.5], [0, 0, 1], [2, 1, 2]]
    data = load(path, columns=["a", "b"], bins=4)
    assert (data.bins, data.values.tolist()) == (4, [[3, 1], [0, 0], [2, 1]])
    path = write(tmp_path, {"a": [2**53, 1]})
    with pytest.raises(ValueError, match="column 'a': expected whole numbers below"):
        load(path, continuous=True)


@pytest.mark.parametrize("gap", [None, float("nan")])
def test_missing_values(tmp_path, gap):
    path = write(tmp_path, {"a": [0.5, gap], "b": [1.5, 2.5]})
    assert load(path, missing="nan").values.isnan().tolist() == [[False, False], [True, False]]
    with pytest.raises(ValueError, match=r"nulls|a\.parquet: expected finite numbers"):
        load(path)
    whole = write(tmp_path, {"a": pyarrow.array([2**52 + 1, None]), "b": [0.5, 1.5]})
    found = load(whole, missing="nan", dtype="float64", continuous=True).values
    assert found[0, 0] == 2**52 + 1


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"a": ["x", "y"]},
            {},
            r"column 'a': expected numbers, got string \(columns=",
        ),
        ({"a": [[1], [2]]}, {}, "column 'a': expected numbers, got list"),
        ({"a": [{"b": 1}]}, {}, "column 'a': expected numbers, got struct"),
        ({"a": np.array(["2024-05-17"], "M8[D]")}, {}, "column 'a': expected numbers, got date32"),
        ({"a": pyarrow.array([1]).cast(pyarrow.decimal128(25, 2))}, {}, "got decimal128"),
        ({"a": pyarrow.array(["x"]).dictionary_encode()}, {}, "got dictionary"),
        ({"a": pyarrow.nulls(2)}, {}, "column 'a': expected numbers, got null"),
        ({"a": [1.5]}, {"columns": ["b"]}, "columns: expected some of a, got b"),
        ({"a": pyarrow.array([], "double")}, {}, "expected rows of numbers, got none"),
        ({"": [1.5]}, {}, "column 1: expected a name"),
    ],
)
def test_tables_that_will_not_do(tmp_path, columns, options, message):
    path = write(tmp_path, columns)
    with pytest.raises(ValueError, match=message):
        load(path, **options)


def test_names_that_are_not_clear(tmp_path):
    numbers = pyarrow.array([0.5])
    path = write(tmp_path, pyarrow.Table.from_arrays([numbers] * 3, ["x", "x", "x.y"]))
    with pytest.raises(ValueError, match="expected different names, got x twice"):
        load(path)
    assert load(path, columns=["x.y"]).values.tolist() == [[0.5]]
    path = write(tmp_path, {"x": [0.5], "x.y": [1.5]})
    assert load(path, columns=["x"]).values.tolist() == [[0.5]]


def test_an_index_of_pandas_is_no_column(tmp_path):
    table = pyarrow.table({"a": [0.5], "__index_level_0__": [7]})
    pandas = b'{"index_columns": ["__index_level_0__"], "columns": []}'
    path = write(tmp_path, table.replace_schema_metadata({b"pandas": pandas}))
    with pytest.raises(ValueError, match=r"columns of data alone, got the index __index_level_0__"):
        load(path)
    assert load(path, columns=["a"]).values.tolist() == [[0.5]]


@pytest.mark.parametrize("content", [b"", b"garbled", b"PAR1" * 9, b"PAR1" + bytes(40) + b"PAR1"])
def test_garbled_files(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        load(tmp_path / "a.parquet")


def test_cut_and_flipped_files(tmp_path):
    path = write(tmp_path, {"a": np.random.default_rng(0).normal(size=200)})
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place])
        with pytest.raises(ValueError, match=r"a\.parquet"):
            load(path)
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        with contextlib.suppress(ValueError):
            load(path, dtype="float64", missing="nan")


def test_repeated_numbers_may_cost_no_more_than_the_bound(tmp_path):
    path = write(tmp_path, {"a": np.full(1_000_000, 0.5)})
    assert path.stat().st_size < 20_000
    with (
        limits.memory_limit(10_000_000),
        pytest.raises(ValueError, match=r"a\.parquet: expected at most"),
    ):
        load(path)
    assert len(load(path)) == 1_000_000


def test_a_description_may_cost_no_more_than_the_bound(tmp_path):
    path = write(tmp_path, {f"column {i}": [0.5] for i in range(300)})
    with (
        limits.memory_limit(1_000_000),
        pytest.raises(ValueError, match="description: expected at most"),
    ):
        load(path)


def test_without_pyarrow(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[tables\]'"):
        load(tmp_path / "a.parquet")
