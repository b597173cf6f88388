"""Tables of numbers, in text and from elsewhere."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import load, text
from scoresde.internals import limits

NAMES = ["a", "b b", "c"]


def write(folder, content, name="a.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(data):
    """As lists, with None where missing."""
    return [[None if math.isnan(v) else v for v in row] for row in data.values.tolist()]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("", ["1", "2", "3"]),
        ("a,b b,c\n", NAMES),
        ('"a", b b ,c\n', NAMES),
        ("\ufeffa,b b,c\r\n", NAMES),
        ('a,"b b",c\r', NAMES),
    ],
)
def test_tables(tmp_path, header, names):
    path = write(tmp_path, header + '1,-2.5,3e2\n\n 4, +5 ,"6.5"\n')
    data = load(path, continuous=True)
    assert (data.name, data.bins, data.values.dtype) == ("a.csv", None, torch.float32)
    assert data.columns == tuple(names)
    assert data.values.tolist() == [[1, -2.5, 300], [4, 5, 6.5]]
    chosen = load(path, columns=[names[2], names[0]], continuous=True)
    assert chosen.values.tolist() == [[300, 1], [6.5, 4]]
    assert chosen.columns == (names[2], names[0])
    assert load(path, columns=[names[1]]).values.tolist() == [[-2.5], [5]]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "a;b\n1,5;2\n3;4,25\n", {"delimiter": ";", "decimal": ","}),
        ("a.csv", '"1,5","2"\n"3","4,25"\n', {"decimal": ",", "delimiter": ","}),
        ("a.tsv", "a\tb\n1.5\t2\n3\t4.25\n", {}),
        ("a.TSV", "a|b\n1.5|2\n3|4.25\n", {"delimiter": "|"}),
        ("a.csv", "# by hand\n#\n1.5,2\n# more\n3,4.25\n", {"comment": "#"}),
        ("a.csv", "a,b\r1.5,2\r3,4.25\r", {}),
        ("a.csv", "é,b\n1.5,2\n3,4.25\n".encode("latin-1"), {"encoding": "latin-1"}),
        ("a.csv", "é,b\n1.5,2\n3,4.25\n".encode("utf-16"), {}),
        ("a.csv", b"\xfe\xff" + "é,b\n1.5,2\n3,4.25\n".encode("utf-16-be"), {}),
        ("a.csv", "é,b\n1.5,2\n3,4.25\n".encode("utf-32"), {}),
        ("a.csv", '"first\nname",b\n1.5,2\n3,4.25\n', {}),
    ],
)
def test_ways_to_write_a_table(tmp_path, name, content, options):
    data = load(write(tmp_path, content, name), **options)
    assert data.values.tolist() == [[1.5, 2], [3, 4.25]]


@pytest.mark.parametrize(
    ("text", "header", "columns", "count"),
    [
        ("2019,2020\n1.5,2.5\n", True, ("2019", "2020"), 1),
        ("2019,2020\n1.5,2.5\n", False, ("1", "2"), 2),
        ("kind,2020\n1.5,2.5\n", True, ("kind", "2020"), 1),
        ("1.5,2.5\n1,2\n", None, ("1", "2"), 2),
        ("7,7\n1.5,2.5\n", None, ("1", "2"), 2),
    ],
)
def test_headers_of_numbers(tmp_path, text, header, columns, count):
    data = load(write(tmp_path, text), header=header)
    assert (data.columns, len(data)) == (columns, count)


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None"]
)
def test_missing_values(tmp_path, cell):
    path = write(tmp_path, f"a,b\n1.5,{cell}\n{cell},2.5\n")
    data = load(path, missing="nan")
    assert rows(data) == [[1.5, None], [None, 2.5]]
    assert data.missing
    with pytest.raises(ValueError, match=r"line 2, column 2 \(b\): .*missing='nan' reads it"):
        load(path)


def test_numbers_beside_a_missing_value_make_an_event(tmp_path):
    path = write(tmp_path, "1.5,,2\n,3,4.5\n")
    assert rows(load(path, missing="nan")) == [[1.5, None, 2], [None, 3, 4.5]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "a.csv: expected lines of numbers, got none"),
        ("\n\n", {}, "a.csv: expected lines of numbers, got none"),
        ("a,b\n", {}, "a.csv: expected lines of numbers, got none"),
        ("1.5,2\n3\n", {}, r"a\.csv, line 2: expected 2 columns, got 1"),
        ("1.5,2\n\n3,4,5\n", {}, r"a\.csv, line 3: expected 2 columns, got 3"),
        ("a,b\n1,1e999\n", {}, r"line 2, column 2 \(b\): .*float64 holds, got '1e999'"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "columns: expected some of a, b, got c"),
        ("1.5,2\n", {"columns": ["0"]}, "columns: expected some of 1, 2, got 0"),
        ('a,"b\n1,2\n', {}, "a.csv, line 2: cannot be read as CSV: unexpected end"),
        ('a,b\n1,"2"3\n', {}, "a.csv, line 2: cannot be read as CSV"),
        ("a\n1.5\n\n2\n", {}, "a.csv, line 3: expected a number, got an empty line"),
        ("a\n1.5\n\n2\n", {"missing": "nan"}, "line 3: expected a number, got an empty line"),
        ("a,b\n1,2\n,\n", {"missing": "nan"}, "line 3: expected a value in every line, got none"),
        (
            "a,b\n1,\n2,\n",
            {"missing": "nan"},
            "columns: expected values in every one, got none in b",
        ),
        (
            "a,b\n1,inf\n",
            {"missing": "nan"},
            r"column 2 \(b\): expected a finite number, got 'inf'",
        ),
        ("a\n1.5\n", {"missing": "drop"}, "missing: expected one of None, 'nan', got 'drop'"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, options, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        load(path, **options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x,x,y\n1,2,3\n", {}, "columns: expected different names, got x twice"),
        ("x,x,y\n1,2,3\n", {"columns": ["y", "x"]}, "expected different names, got x twice"),
        ("x,y\n1,2\n", {"columns": ["x", "x"]}, "expected different names, got x twice"),
        ("x, x\n1,2\n", {}, "expected different names, got x twice"),
        (",x\n1,2\n", {}, r"column 1: expected a name, got none \(columns=\[...\] leaves it out"),
        ("x,y,\n1,2,\n", {}, "column 3: expected a name, got none"),
        (",x,\n1,2,\n", {}, "column 1: expected a name, got none"),
        ("2019,2020\n1,2\n", {}, "line 1: .*got whole numbers, .*header=True .*header=False"),
        ("0,1,2\n1.5,2,3\n", {}, "line 1: .*got whole numbers, all different"),
        ("5\n6\n", {}, "line 1: .*got whole numbers, all different"),
        ("name,2020\nrose,2\n", {}, r"line 1: .*got '2020' beside others \(header=True"),
        ("rose,1.5\nlily,2\n", {"columns": ["2"]}, "line 1: .*got '1.5' beside others"),
        ("Inf,-inf\n1,2\n", {}, "line 1: .*got 'Inf' beside others"),
        ("x,N/A\n1,2\n", {}, "line 1: .*got 'N/A' beside others"),
        ("x,1_000\n1,2\n", {}, "line 1: .*got '1_000' beside others"),
        ("1,5;2,5\n3,5;4,5\n", {"delimiter": ";"}, "line 1: .*got '1,5' beside others"),
        ("x,%\n1,2\n", {}, "line 1: .*got '%' beside others"),
        ("x,\0y\n1,2\n", {}, "line 1: expected text, got null characters"),
        ("a;b\n1,5;2,5\n", {}, r"line 2: expected 1 columns, got 3 \(delimiter=';' may"),
        ("# a b\n1 2\n", {"delimiter": " "}, r"line 1: .*got '#' at its start \(comment='#'"),
        ("a,b\n1,2\n", {"header": 1}, "header: expected one of None, False, True, got 1"),
        ("a,b\n1,2\n", {"columns": "a"}, "columns: expected a list of names, got 'a'"),
        ("a,b\n1,2\n", {"columns": []}, r"columns: expected a list of names, got \[\]"),
        ("1.5,2\n", {"columns": [1]}, r"columns: expected a list of names, got \[1\]"),
    ],
)
def test_names_that_are_not_clear(tmp_path, text, options, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        load(path, **options)


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("1;2", "delimiter=';' reads it"),
        ("1\t2", r"delimiter='\\t' reads it"),
        ("1,5", "decimal=',' reads it"),
        ("1,234,567", "without separators of thousands"),
        ("1'234", "without separators of thousands"),
        ("1_000", "without separators of thousands"),
        ("1 000", "without separators of thousands"),
        ("rose", r"columns=\[...\] leaves the column out; categories become numbers"),
        ("2024-05-17", "dates as days since the first"),
        ("17/05/2024", "dates as days since the first"),
        ("17.05.2024", "dates as days since the first"),
        ("12:30", "dates as days since the first"),
        ("2024-05-17T12:00:00Z", "dates as days since the first"),
        ("True", "categories become numbers"),
        ("0x1p3", "expected a finite number, got '0x1p3'"),
        ("\u0661", "expected a finite number"),
        ("1e", "expected a finite number"),
        (".", "expected a finite number"),
        ("--1", "expected a finite number"),
        ("inf", "expected a finite number, got 'inf'"),
        ("-Infinity", "expected a finite number, got '-Infinity'"),
        ("$5", "expected a finite number, got '\\$5'"),
        ("5%", "expected a finite number, got '5%'"),
        ("1\x00", "a.csv, line 2"),
        ("9007199254740993", "a number that a float64 holds"),
        ("12345678901234567890123", "a number that a float64 holds"),
        ("1e-400", "a number that a float64 holds"),
        ("-1e400", "a number that a float64 holds"),
    ],
)
def test_cells_that_are_no_numbers(tmp_path, cell, hint):
    path = write(tmp_path, f'a,b\n1,"{cell}"\n')
    with pytest.raises(ValueError, match=hint) as refused:
        load(path)
    assert "line 2" in str(refused.value)


@pytest.mark.parametrize("cell", ["1.234", "1.234,5", "1 234"])
def test_decimal_commas_leave_no_room_for_points(tmp_path, cell):
    path = write(tmp_path, f"a;b\n1;{cell}\n")
    with pytest.raises(ValueError, match="expected a finite number"):
        load(path, delimiter=";", decimal=",")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "delimiter: expected one character"),
        ({"delimiter": "::"}, "delimiter: expected one character"),
        ({"delimiter": 1}, "delimiter: expected one character"),
        ({"delimiter": "e"}, "delimiter: expected one character"),
        ({"delimiter": "."}, "delimiter: expected one character"),
        ({"decimal": ","}, "delimiter: expected what stands between cells if not a comma"),
        ({"delimiter": '"'}, "delimiter: expected one character"),
        ({"decimal": ";"}, "decimal: expected one of"),
        ({"comment": ""}, "comment: expected"),
        ({"comment": 1}, "comment: expected"),
        ({"encoding": "nothing"}, "encoding: expected one of Python's, got 'nothing'"),
        ({"encoding": "zip"}, "encoding: expected one of Python's"),
        ({"encoding": 1}, "encoding: expected one of Python's"),
        ({"dtype": "float16"}, "dtype: expected one of None, 'float32', 'float64'"),
        ({"continuous": 1}, "continuous: expected one of False, True"),
        ({"bins": "4"}, "bins: expected a whole number"),
        ({"bins": 2.0}, "bins: expected a whole number"),
        ({"bins": 4, "continuous": True}, "bins: expected None for what continuous=True"),
        ({"bins": 4, "dtype": "float64"}, "dtype: expected None for data of 4 bins"),
        ({"bins": 4, "missing": "nan"}, "missing: expected False for integers"),
    ],
)
def test_options_that_will_not_do(tmp_path, options, message):
    path = write(tmp_path, "a,b\n1,2\n0,3\n")
    with pytest.raises(ValueError, match=message):
        load(path, **options)


def test_whole_numbers_are_read_as_what_the_options_say(tmp_path):
    path = write(tmp_path, "age,height,one\n3,1.5,1\n0,2.5,1\n2,1,1\n")
    with pytest.warns(UserWarning, match=r"a\.csv, column 'age': whole numbers .*bins=") as told:
        load(path)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path, continuous=True).values[:, 0].tolist() == [3, 0, 2]
        data = load(path, columns=["age"], bins=4)
    assert (data.bins, data.columns, data.values.tolist()) == (4, ("age",), [[3], [0], [2]])
    with pytest.raises(ValueError, match=r"a\.csv: expected whole numbers of 4 bins"):
        load(path, bins=4)
    with pytest.raises(ValueError, match=r"from 0 to 2, got 0 to 3"):
        load(path, columns=["age"], bins=3)


def test_text_that_is_not_as_it_is_said_to_be(tmp_path):
    path = write(tmp_path, b"1.5,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match=r"a\.csv: cannot be read as CSV: .*encoding="):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"b\.csv"):
        load(tmp_path / "b.csv")


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
    )
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_come_back(tmp_path_factory, dtype, table):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_text("".join(",".join(map(repr, row)) + "\n" for row in table))
    data = load(path, header=False, continuous=True, dtype=dtype)
    assert data.values.dtype == getattr(torch, dtype)
    assert data.values.tolist() == table


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_float64_comes_back_whole(tmp_path_factory, row):
    path = tmp_path_factory.mktemp("table") / "a.tsv"
    path.write_text("\t".join(repr(value).replace(".", ",") for value in row))
    data = load(path, decimal=",", header=False, dtype="float64", continuous=True)
    assert data.values.tolist() == [row]


def test_a_wide_table_takes_as_long_as_a_long_one(tmp_path):
    """40,000 columns: names are looked up once for all."""
    count = 40_000
    names = [f"column {i}" for i in range(count)]
    path = write(tmp_path, ",".join(names) + "\n" + ",".join(["0.5"] * count) + "\n")
    assert load(path, columns=names[::-1]).columns == tuple(names[::-1])
    with pytest.raises(
        ValueError, match=r"some of column 0, .* and 39990 more, got absent"
    ) as told:
        load(path, columns=["absent"])
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("record", ["1.5," * 40, '"\n",' * 60], ids=["long", "of many lines"])
def test_a_record_has_an_end(tmp_path, record):
    path = write(tmp_path, "a,b\n" + record)
    with limits.memory_limit(100 * text.CHARACTER):
        with pytest.raises(ValueError, match=r"a\.csv, line \d+: expected at most 100 characters"):
            load(path)
        path = write(tmp_path, "a,b\n" + "1.5,2.5\n" * 40)
        assert len(load(path, continuous=True)) == 40


def test_text_of_numpy_is_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3))
    with io.BytesIO() as file:
        np.savetxt(file, values, delimiter=",", header="a,b,c")
        path = write(tmp_path, file.getvalue())
    found = load(path, comment="#", dtype="float64").values.numpy()
    assert np.array_equal(found, values)


@pytest.mark.parametrize(
    ("options", "cell", "hint"),
    [
        ({"delimiter": ";", "decimal": ","}, "1.234,5", "without separators of thousands"),
        ({"delimiter": ";", "decimal": ","}, "1.234.567,5", "without separators of thousands"),
        ({}, "inf", "got 'inf'$"),
        ({"missing": "nan"}, "-Infinity", "got '-Infinity'$"),
    ],
)
def test_hints_that_help(tmp_path, options, cell, hint):
    path = tmp_path / "x.csv"
    path.write_text(f"a\n{cell}\n")
    with pytest.raises(ValueError, match=hint):
        load(path, **options)
