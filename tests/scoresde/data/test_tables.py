"""Tables of numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import load

NAMES = ["a", "b b", "c"]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("", ["1", "2", "3"]),
        ("a,b b,c\n", NAMES),
        ('"a" , b b ,c\n', NAMES),
        ("\ufeffa,b b,c\r\n", NAMES),
    ],
)
def test_tables(tmp_path, header, names):
    path = tmp_path / "a.csv"
    path.write_bytes((header + '1,-2.5,3e2\n\n 4, +5 ,"6"\n').encode())
    data = load(path)
    assert (data.name, data.levels, data.values.dtype) == ("a.csv", None, torch.float32)
    assert data.values.tolist() == [[1, -2.5, 300], [4, 5, 6]]
    chosen = load(path, columns=[names[2], names[0]])
    assert chosen.values.tolist() == [[300, 1], [6, 4]]
    assert load(path, columns=[names[1]]).values.tolist() == [[-2.5], [5]]


def test_other_delimiters(tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    assert load(tmp_path / "a.csv", delimiter=";").values.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"line 2, column 1 \(a;b\): .*got '1;2'"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "a.csv: expected lines of numbers, got none"),
        ("a,b\n", {}, "a.csv: expected lines of numbers, got none"),
        ("1,x\n", {}, r"a\.csv, line 1, column 2: expected a finite number, got 'x'"),
        ("1,2\n3\n", {}, r"a\.csv, line 2: expected 2 columns, got 1"),
        ("1,2\n\n3,4,5\n", {}, r"a\.csv, line 3: expected 2 columns, got 3"),
        ("a,b\n1,2\n3,\n", {}, r"a\.csv, line 3, column 2 \(b\): .*got ''"),
        ("a,b\n1,nan\n", {}, r"a\.csv, line 2, column 2 \(b\): .*got 'nan'"),
        ("a,b\n1,1e999\n", {}, r"a\.csv, line 2, column 2 \(b\): .*got '1e999'"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "columns: expected some of a, b, got c"),
        ("1,2\n", {"columns": ["0"]}, "columns: expected some of 1, 2, got 0"),
        ('a,"b\n1,2\n', {}, "a.csv"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, options, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.csv", **options)


def test_tables_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match=r"a\.csv: cannot be read as CSV"):
        load(tmp_path / "a.csv")
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
def test_numbers_come_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_text("".join(",".join(map(repr, row)) + "\n" for row in table))
    assert load(path).values.tolist() == table
