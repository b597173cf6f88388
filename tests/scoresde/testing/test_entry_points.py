"""How laws find what they are about, and make one."""

import distributions
import pytest
import torch

from estimators import Denoising, Gaussian
from scoresde import PCA, DiagonalSDE, Identity, plugins
from scoresde.testing import EstimatorLaws, SolverLaws, conformance
from scoresde.testing.conformance import LAWS, arguments, conforming

SOURCE = """
class Mine:
    laws = {"tolerance": 0.5, "adaptive": True}

    def __init__(self, steps=5, eta=0.0):
        self.steps, self.eta = steps, eta
"""


def test_every_group_has_laws():
    assert set(LAWS) == set(plugins.GROUPS)


def test_what_is_installed_is_found(tmp_path, monkeypatch):
    entries = "one = mine_plugin:Mine\nanother-one = mine_plugin:Mine"
    distributions.write(tmp_path, "mine", "scoresde.solvers", entries, SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.refresh()
    try:
        found = conformance("mine")
    finally:
        plugins.refresh()
    assert sorted(found) == ["Test_solvers_another_one", "Test_solvers_one"]
    laws = found["Test_solvers_one"]()
    assert isinstance(laws, SolverLaws)
    assert (laws.adaptive, laws.tolerance) == (True, 0.5)
    assert vars(laws.make(7, 0.25)) == {"steps": 7, "eta": 0.25}


def test_nothing_installed_is_no_success():
    with pytest.raises(
        ValueError, match=r"distribution: expected an installed one .*, got nowhere"
    ):
        conformance("nowhere")


def test_what_is_supplied_goes_by_its_meaning():
    made = PCA(**arguments("bases", PCA))
    assert made.dim == 32
    assert arguments("estimators", Denoising).keys() == {"sde", "network"}


def test_an_example_is_of_the_arguments_that_there_are():
    """A child that is made of other things has its parent's."""

    class Child(DiagonalSDE):
        def __init__(self, basis):
            super().__init__(None, basis)

    assert "speeds" in arguments("sdes", DiagonalSDE)
    assert arguments("sdes", Child).keys() == {"basis"}


def test_an_argument_that_nobody_knows_is_named():
    def unknown(event_shape, temperature):
        """Never made."""

    with pytest.raises(
        TypeError, match=r"temperature: expected a default, or a value in .*example"
    ):
        arguments("bases", unknown)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_estimator_says_whether_it_is_exact(dtype):
    laws = conforming("estimators", "gaussian", Gaussian)()
    assert isinstance(laws, EstimatorLaws)
    assert laws.exact
    assert not conforming("estimators", "denoising", Denoising).exact
    z = torch.zeros(1, 3, dtype=dtype)
    assert laws.make().denoise(z, 0.5).dtype == dtype


def test_what_is_said_of_one_is_said_last():
    assert not conforming("estimators", "gaussian", Gaussian, exact=False).exact
    assert isinstance(conforming("bases", "identity", Identity)().make(), Identity)


class Misspelt(Gaussian):
    example = {"average": [0.0, 0.0, 0.0]}  # noqa: RUF012
    laws = {"exakt": True}  # noqa: RUF012


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: arguments("estimators", Misspelt), r"example: .*'average'"),
        (lambda: conforming("estimators", "mine", Misspelt), r"laws: .*'exakt'"),
        (lambda: conforming("solver", "mine", Misspelt), r"group: .*'solver'"),
    ],
)
def test_what_would_be_lost_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
