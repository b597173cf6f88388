"""Columns as coordinates: nothing is lost on the way back, and what they count adds up."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from scoresde.tables.cells import Cells
from scoresde.tables.column import column

RNG = np.random.default_rng(0)
WORDS = np.array(["b", "a", None, "c", "a"] * 20, object)
VALUES = {
    "symmetric": ("number", RNG.standard_normal(300) * 1e-3 + 5),
    "skewed": ("number", np.exp(2 * RNG.standard_normal(300))),
    "skewed down": ("number", -RNG.gamma(0.5, 1e6, 300)),
    "far": ("number", 1e9 + RNG.random(300)),
    "counts": ("count", RNG.poisson(40, 300).astype(float)),
    "years": ("count", 1900 + RNG.integers(0, 120, 300).astype(float)),
    "few": ("category", RNG.integers(3, 9, 300).astype(float)),
    "halves": ("category", RNG.integers(0, 3, 300) / 2),
    "constant": ("category", np.full(5, 7.5)),
    "words": ("category", WORDS),
    "truth": ("category", np.array([True, False, None, False] * 20, object)),
}


def coded(name, u=0.3):
    values = VALUES[name][1]
    found = column(name, Cells(values))
    return found, Cells(values), *found.encode(Cells(values), np.full(len(values), u))


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(name):
    found, cells, z, _ = coded(name)
    assert found.kind == VALUES[name][0]
    back, known = found.decode(z), ~cells.missing
    assert np.isnan(z[~known]).all()
    if found.kind == "number":
        np.testing.assert_allclose(back[known], cells.values[known], rtol=1e-9)
    else:
        assert back[known].tolist() == cells.values[known].tolist()


@pytest.mark.parametrize("name", ["symmetric", "skewed", "skewed down", "counts"])
def test_coordinates_are_standard(name):
    """And much less skewed than values."""
    _, cells, z, _ = coded(name, u=0.5)
    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1, abs=0.01)
    assert abs(stats.skew(z)) < max(0.1, abs(stats.skew(cells.values)) / 3)


@pytest.mark.parametrize("name", ["symmetric", "skewed", "skewed down"])
def test_the_factor_of_a_number_is_a_slope(name):
    found, cells, z, factor = coded(name)
    step = 1e-4 * found.unit
    ends = [found.encode(Cells(cells.values + s), z)[0] for s in (-step, step)]
    smooth = abs(cells.values - found.middle) > step  # in the middle two curves meet
    slope = (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(np.exp(factor)[smooth], slope[smooth], rtol=1e-4)


@pytest.mark.parametrize("u", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["few", "words", "truth", "constant"])
def test_categories_that_are_as_frequent_as_they_were(name, u):
    """Of standard normal coordinates the probability of a category is its share, for any draw."""
    found, cells, z, factor = coded(name, u)
    known = ~cells.missing
    shares = dict(zip(found.values, found.shares, strict=True))
    wanted = [shares[v] for v in cells.values[known]]
    got = np.exp(stats.norm.logpdf(z[known]) + factor[known])
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert sum(shares.values()) == pytest.approx(1)


def test_probabilities_of_counts_are_those_of_their_intervals():
    found, *_ = coded("counts")
    for value in (25.0, 40.0, 61.0):

        def density(u, value=value):
            z, factor = found.encode(Cells(np.array([value])), np.array([u]))
            return np.exp(stats.norm.logpdf(z) + factor).item()

        ends, _ = found.encode(Cells(np.full(2, value)), np.array([0.0, 1.0]))
        mass, _ = integrate.quad(density, 0, 1)
        assert mass == pytest.approx(np.diff(stats.norm.cdf(ends)).item(), rel=1e-6)


@pytest.mark.parametrize("name", VALUES)
def test_order_is_kept(name):
    found, cells, z, _ = coded(name)
    order = np.argsort(z[~cells.missing])
    values = cells.values[~cells.missing][order].tolist()
    assert values == sorted(values)
    assert found.ordered == (name != "words")


def test_samples_stay_where_values_can_be():
    z = np.array([-9.0, 9.0])
    assert coded("skewed")[0].decode(z)[0] == 0
    assert coded("skewed down")[0].decode(z)[1] == 0
    counts = VALUES["counts"][1]
    assert coded("counts")[0].decode(z).tolist() == [counts.min(), counts.max()]


def test_levels_keep_the_order_that_they_are_given():
    cells = Cells(np.array(["low", "high", "low"], object), ("low", "high", "never"), ranked=True)
    found = column("grade", cells)
    assert (found.values, found.ordered) == (("low", "high"), True)


def test_modes():
    found, *_ = coded("words")
    z, _ = found.encode(Cells(np.array(["a", "c", "c"], object)), np.array([0.9, 0.1, 0.8]))
    assert found.decode(found.quantile(torch.tensor(z)[:, None], 0.5).numpy()).tolist() == ["c"]


WRONG = {
    "column 'x': expected some values, got none": (np.full(4, np.nan), None),
    "column 'x': expected whole numbers of a count, got others": (np.array([0.5, 1.0]), "count"),
    "column 'x': expected numbers, got 'a'": (np.array(["a", "b"], object), "number"),
    "column 'x': expected several values of a number": (np.ones(30), "number"),
    "column 'x': expected categories that come again": (
        np.array([str(i) for i in range(50)], object),
        None,
    ),
    "kinds, column 'x': expected one of number, count, category": (np.arange(4.0), "float"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_a_column_cannot_be(said):
    values, kind = WRONG[said]
    with pytest.raises((TypeError, ValueError)) as error:
        column("x", Cells(values), kind)
    assert str(error.value).startswith(said)


def test_values_that_nobody_has_seen():
    found, *_ = coded("words")
    with pytest.raises(ValueError, match=r"column 'words': expected values .*'a', 'b', 'c'.* 'd'"):
        found.encode(Cells(np.array(["d"], object)), np.zeros(1))
    counts, *_ = coded("counts")
    with pytest.raises(ValueError, match=r"column 'counts': expected whole numbers, got \[1.5\]"):
        counts.encode(Cells(np.array([1.5])), np.zeros(1))
