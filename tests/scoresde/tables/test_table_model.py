"""Tables as scikit-learn's estimators take them, against a distribution that is known exactly."""

import pickle
import re

import attrs
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from estimators import Gaussian
from scoresde.tables import TableModel

SMALL = {"steps": 3, "width": 8, "random_state": 0}
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
RNG = np.random.default_rng(1)


def frame(count=60):
    rng = np.random.default_rng(2)
    size = rng.standard_normal(count)
    table = pd.DataFrame(
        {
            "price": np.exp(size).astype("f4"),
            "visits": rng.poisson(50 + 9 * size),
            "town": rng.choice(["a", "b"], count),
            "grade": pd.Categorical.from_codes(2 * rng.integers(0, 2, count), ["x", "never", "y"]),
        },
        index=np.arange(count) + 100,
    )
    table.loc[table.index[::7], "price"] = np.nan
    table.loc[table.index[::9], "town"] = None
    return table


@pytest.fixture(scope="module")
def trained():
    return TableModel(**SMALL).fit(frame())


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def exact(request):
    """A model of numbers whose estimator knows their distribution; its dtype; that distribution."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    try:
        table = RNG.standard_normal((400, 3)) @ np.linalg.cholesky(COVARIANCE).T * [1, 10, 0.1] + [
            0,
            5,
            9,
        ]
        model = TableModel(**SMALL).fit(table)
    finally:
        torch.set_default_dtype(default)
    columns = tuple(attrs.evolve(c, power=1.0) for c in model.coordinates_.columns)
    model.coordinates_ = attrs.evolve(model.coordinates_, columns=columns)
    sde = model.model_.estimator.sde
    known = Gaussian(sde, torch.zeros(3), torch.tensor(COVARIANCE, dtype=request.param))
    model.model_ = attrs.evolve(model.model_, estimator=Known(known, request.param))
    unit = np.array([c.unit * c.std for c in columns])
    middle = np.array([c.middle + c.unit * c.mean for c in columns])
    return (
        model,
        request.param,
        stats.multivariate_normal(middle, unit[:, None] * COVARIANCE * unit),
    )


class Known(Gaussian):
    """With a parameter, as what is trained has."""

    def __init__(self, distribution, dtype):
        super().__init__(distribution.sde, torch.zeros(3), torch.tensor(COVARIANCE, dtype=dtype))
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))


def conditional(distribution, row):
    """Mean and deviation of the one number that is missing in a row."""
    (gap,) = np.isnan(row).nonzero()[0]
    rest = np.delete(np.arange(3), gap)
    pull = np.linalg.solve(distribution.cov[np.ix_(rest, rest)], distribution.cov[rest, gap])
    mean = distribution.mean[gap] + pull @ (row - distribution.mean)[rest]
    return gap, stats.norm(
        mean, (distribution.cov[gap, gap] - pull @ distribution.cov[rest, gap]) ** 0.5
    )


def test_densities_are_those_of_the_table(exact):
    model, dtype, distribution = exact
    rows = distribution.rvs(20, random_state=0)
    tolerance = 2e-2 if dtype == torch.float32 else 1e-2
    np.testing.assert_allclose(model.score_samples(rows), distribution.logpdf(rows), atol=tolerance)
    assert model.score(rows) == pytest.approx(distribution.logpdf(rows).mean(), abs=tolerance)


def test_densities_of_what_is_known_of_a_row(exact):
    """Marginals: of one number, of two, of none."""
    model, _, distribution = exact
    rows = distribution.rvs(3, random_state=0)
    rows[0, 1] = rows[1, :2] = rows[2] = np.nan
    pair = stats.multivariate_normal(
        distribution.mean[[0, 2]], distribution.cov[np.ix_([0, 2], [0, 2])]
    )
    wanted = [
        pair.logpdf(rows[0, [0, 2]]),
        stats.norm(distribution.mean[2], distribution.cov[2, 2] ** 0.5).logpdf(rows[1, 2]),
        0.0,
    ]
    np.testing.assert_allclose(model.score_samples(rows), wanted, atol=3e-2)


def test_quantiles_are_those_of_the_conditional_distribution(exact):
    model, _, distribution = exact
    rows = distribution.rvs(6, random_state=3)  # two with the same gap
    rows[np.arange(6), [0, 1, 2] * 2] = np.nan
    found = model.predict(rows, quantiles=[0.1, 0.5, 0.9], draws=2000)
    for i, row in enumerate(rows):
        gap, wanted = conditional(distribution, row)
        for q, table in found.items():
            error = (table[i, gap] - wanted.ppf(q)) / wanted.std()
            assert abs(error) < 0.15
            assert np.delete(table[i], gap).tolist() == np.delete(row, gap).tolist()
    np.testing.assert_array_equal(model.predict(rows, draws=2000), found[0.5])


def test_samples_follow_the_distribution(exact):
    model, _, distribution = exact
    drawn = model.sample(4000)
    unit = np.diag(distribution.cov) ** 0.5
    np.testing.assert_allclose((drawn.mean(0) - distribution.mean) / unit, 0, atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T) / np.outer(unit, unit), COVARIANCE, atol=0.08)


def test_completions_follow_the_distribution(exact):
    model, _, distribution = exact
    row = np.array([[1.0, np.nan, 9.0]])
    drawn = model.sample(4000, given=row)
    _, wanted = conditional(distribution, row[0])
    assert drawn[:, [0, 2]].tolist() == [[1.0, 9.0]] * 4000
    assert abs(drawn[:, 1].mean() - wanted.mean()) < 0.06 * wanted.std()
    assert drawn[:, 1].std() == pytest.approx(wanted.std(), rel=0.06)


def test_samples_come_as_the_table_did(trained):
    table, drawn = frame(), trained.sample(30)
    assert (drawn.dtypes == table.dtypes).all()
    assert list(drawn["grade"].cat.categories) == ["x", "never", "y"]
    assert {*drawn["grade"]} <= {"x", "y"}
    assert not drawn.isna().any().any()
    assert drawn["visits"].between(table["visits"].min(), table["visits"].max()).all()
    assert (drawn["price"] >= 0).all()
    assert trained.feature_names_in_.tolist() == list(table)
    assert trained.n_features_in_ == 4


def test_what_is_known_stays(trained):
    table = frame().iloc[:20]
    filled = trained.predict(table, draws=5)
    assert filled.index.tolist() == table.index.tolist()
    assert not filled.isna().any().any()
    known = table.notna()
    pd.testing.assert_frame_equal(filled.where(known), table.where(known), check_dtype=False)
    drawn = trained.sample(2, given=table)
    assert drawn.index.tolist() == table.index.repeat(2).tolist()
    assert (drawn["visits"].to_numpy() == table["visits"].repeat(2).to_numpy()).all()


def test_targets_may_be_absent(trained):
    """And columns may stand in any order."""
    table = frame().iloc[:5]
    there = trained.predict(table, targets=["town", "visits"], draws=5)
    turned = table.drop(columns=["town", "visits"])[["grade", "price"]]
    pd.testing.assert_frame_equal(trained.predict(turned, ["town", "visits"], draws=5), there)


def test_quantiles_of_what_has_no_order_are_modes(trained):
    table = frame().iloc[:8]
    found = trained.predict(table, targets="town", quantiles=[0.0, 1.0], draws=9)
    assert found[0.0]["town"].tolist() == found[1.0]["town"].tolist()
    apart = trained.predict(table, targets="visits", quantiles=[0.0, 1.0], draws=9)
    assert (apart[0.0]["visits"] < apart[1.0]["visits"]).any()


def test_the_same_seed_is_the_same_model(trained):
    again = TableModel(**SMALL).fit(frame())
    pd.testing.assert_frame_equal(again.sample(3), trained.sample(3))
    rows = frame().iloc[:4]
    assert again.score_samples(rows).tolist() == trained.score_samples(rows).tolist()
    assert not trained.sample(3, random_state=1).equals(trained.sample(3))
    other = TableModel(**{**SMALL, "random_state": 1}).fit(frame())
    assert not other.sample(3).equals(trained.sample(3))
    kept = pickle.loads(pickle.dumps(trained))
    pd.testing.assert_frame_equal(kept.sample(3), trained.sample(3))


def test_it_is_an_estimator_of_scikit_learn():
    model = TableModel(**SMALL, kinds={0: "number"})
    twin = clone(model)
    assert twin is not model
    assert twin.get_params() == model.get_params()
    assert repr(twin) == "TableModel(steps=3, width=8, kinds={0: 'number'}, random_state=0)"
    table = RNG.standard_normal((40, 2))
    scores = cross_val_score(model.set_params(steps=2), table, cv=2)
    assert np.isfinite(scores).all()
    assert not hasattr(model, "model_")
    with pytest.raises(ValueError, match="set_params: expected some of steps"):
        model.set_params(stepz=3)


def test_settings_reach_the_model():
    table = RNG.standard_normal((40, 2))
    settings = {"solver": {"name": "ddim", "steps": 3}, "training": {"steps": 2, "lr": 1e-3}}
    model = TableModel(width=8, settings=settings, random_state=0).fit(table)
    assert model.model_.solver.steps == 3
    assert model.model_.history.stopped is False


NUMBERS = RNG.standard_normal((30, 2))
WRONG = {
    "TableModel: expected one that has been fitted": lambda: TableModel().sample(),
    "X: expected at least 10 rows": lambda: TableModel(**SMALL).fit(NUMBERS[:5]),
    "y: expected None": lambda: TableModel(**SMALL).fit(NUMBERS, NUMBERS[:, 0]),
    "kinds: expected some of the columns 0, 1": lambda: TableModel(kinds={"a": "count"}).fit(
        NUMBERS
    ),
    "held_out: expected a share": lambda: TableModel(held_out=1.5).fit(NUMBERS),
    "random_state: expected a whole number": lambda: TableModel(random_state=-1).fit(NUMBERS),
    "settings: expected no section data": lambda: TableModel(settings={"data": {}}).fit(NUMBERS),
    "settings: expected a Mapping": lambda: TableModel(settings=3).fit(NUMBERS),
    "training: steps: expected a whole": lambda: TableModel(steps=0).fit(NUMBERS),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_fitted(said):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(said)):
        WRONG[said]()


ASKED = {
    "n_samples: expected a whole": lambda m, x: m.sample(0),
    "targets: expected some of 'price'": lambda m, x: m.predict(x, targets="cost"),
    "quantiles: expected a finite number from 0 to 1": lambda m, x: m.predict(x, quantiles=[2]),
    "quantiles: expected a list": lambda m, x: m.predict(x, quantiles=0.5),
    "draws: expected a whole number of at least 1": lambda m, x: m.score_samples(x, draws=0),
    "draws: expected a whole number of at most": lambda m, x: m.predict(x, draws=10**9),
    "X: expected the columns 'price', 'visits', 'town', 'grade', got 'more'": lambda m, x: (
        m.score_samples(x.assign(more=1))
    ),
    "X: expected the columns 'price', 'visits', 'town', 'grade', got none called 'town'": (
        lambda m, x: m.score_samples(x.drop(columns="town"))
    ),
    "column 'town': expected values that were there": lambda m, x: m.predict(x.assign(town="z")),
    "column 'visits': expected whole numbers": lambda m, x: m.predict(x.assign(visits=0.5)),
}


@pytest.mark.parametrize("said", ASKED)
def test_what_cannot_be_asked(trained, said):
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        ASKED[said](trained, frame().iloc[:3])
