"""Tables in whatever they come: they are given back in the same."""

import numpy as np
import pandas as pd
import pytest
import torch

from scoresde.data import Dataset
from scoresde.tables.form import Form

FRAME = pd.DataFrame(
    {
        "price": np.array([0.5, np.nan, 2.5], "f4"),
        "rooms": [2, 3, 4],
        "town": ["a", None, "b"],
        "grade": pd.Categorical(["low", "high", "low"], ["low", "high", "never"], ordered=True),
        "sold": [True, False, True],
        "rated": pd.Categorical([True, None, True]),
        "n": pd.array([1, None, 3], "Int64"),
        7: pd.array(["x", None, "y"], "string"),
    },
    index=[10, 20, 30],
)
TABLES = {
    "frame": FRAME,
    "floats": np.array([[0.5, 1.0], [np.nan, 3.0]], "f4"),
    "whole numbers": np.array([[1, 2], [3, 4]], "i2"),
    "objects": np.array([[1.5, "a"], [None, "b"]], object),
    "words": np.array([["a", "b"], ["c", "d"]]),
    "structured": np.array([(0.5, 1, "a"), (1.5, 2, "b")], [("u", "f4"), ("v", "i8"), ("w", "U2")]),
    "tensor": torch.tensor([[1, 2], [3, 4]], dtype=torch.int16),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_came_in_comes_back(name):
    table = TABLES[name]
    form, cells = Form.read("X", table)
    filled = [np.where(c.missing, c.values[~c.missing][0], c.values) for c in cells]
    for cell, values in zip(cells, filled, strict=True):
        cell.values[cell.missing] = values[cell.missing]
    back = form.restore([c.values for c in cells], getattr(table, "index", None))
    assert type(back) is type(table)
    if name == "frame":
        pd.testing.assert_frame_equal(back, table.ffill().bfill(), check_dtype=True)
        assert list(back["grade"].cat.categories) == ["low", "high", "never"]
        return
    assert back.dtype == table.dtype
    assert back.shape == table.shape
    known = [c for row in table.tolist() for c in row if c is not None and c == c]
    given = [c for row in back.tolist() for c in row]
    assert sorted(map(str, known)) == sorted({*map(str, given)})


def test_names():
    assert Form.read("X", FRAME)[0].names == tuple(FRAME.columns)
    assert Form.read("X", TABLES["structured"])[0].names == ("u", "v", "w")
    assert Form.read("X", TABLES["floats"])[0].names == (0, 1)
    data = Dataset("mine", torch.ones(3, 2), columns=("a", "b"))
    assert Form.read("X", data)[0].names == ("a", "b")
    assert Form.read("X", [[1.5, "a"], [2.5, "b"]])[1][0].values.tolist() == [1.5, 2.5]


def test_missing_values_of_every_kind():
    missing = [cell.missing.tolist() for cell in Form.read("X", FRAME)[1]]
    assert missing == [FRAME[name].isna().tolist() for name in FRAME]
    masked = np.ma.MaskedArray([[1.5], [2.5]], [[True], [False]])
    assert Form.read("X", masked)[1][0].missing.tolist() == [True, False]
    odd = np.array([[None, 1], [np.nan, 2], [pd.NA, 3], ["a", 4]], object)
    assert Form.read("X", odd)[1][0].missing.tolist() == [True, True, True, False]


def _lists():
    table = np.empty((2, 1), object)
    table[1, 0] = [1]
    return table


WRONG = {
    "X: expected rows of columns": np.zeros(3),
    "X: expected rows, got none": np.zeros((0, 2)),
    "X: expected columns, got none": np.zeros((3, 0)),
    "X: expected rows of one length": [[1], [1, 2]],
    "X: expected an array of rows": "flowers.csv",
    "X, columns: expected different names": pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
    "X: expected a table of columns alone": Dataset(
        "d", torch.ones(2, 2), condition=torch.ones(2, 1)
    ),
    "column 0: expected finite numbers": np.array([[np.inf], [1.0]]),
    "column 0: expected whole numbers below 2**53": np.array([[2**60], [1]]),
    "column 0: expected numbers or words, got complex128": np.ones((2, 1), complex),
    "column 0: expected numbers or words, got [1]": _lists(),
    "column 'd': expected numbers or words, got datetime64[ns]": pd.DataFrame(
        {"d": pd.date_range("2020", periods=3)}
    ),
}


def test_a_data_frame_that_is_none_of_pandas():
    """It has the same name."""
    frame = type("DataFrame", (), {"__module__": "polars", "columns": ["a"], "dtypes": [int]})
    with pytest.raises(TypeError, match=r"a data frame of pandas, .* got polars\.DataFrame$"):
        Form.read("X", frame())


@pytest.mark.parametrize("said", WRONG)
def test_what_is_no_table(said):
    with pytest.raises((TypeError, ValueError)) as error:
        Form.read("X", WRONG[said])
    assert str(error.value).startswith(said)
