"""The estimator that laws try solvers on, against the closed form that users have."""

import pytest
import torch

from estimators import Gaussian
from scoresde import VP, DiagonalSDE, Identity, LogLinear
from scoresde.testing import EstimatorLaws
from scoresde.testing.gaussian import GaussianData

MEAN = torch.tensor([1.0, -0.5, 0.3]).double()
COVARIANCE = torch.tensor([[0.5, 0.3, 0.1], [0.3, 1.2, -0.2], [0.1, -0.2, 0.4]]).double()
BLOCKS = Identity((3,), {"a": 2, "b": 1})
SDES = {
    "speeds": lambda: DiagonalSDE(VP(), BLOCKS, [1.0, 0.6], [2.0, 0.8]),
    "clean": lambda: DiagonalSDE(VP(), BLOCKS, [1.0, 0.0]),
    "dropping": lambda: DiagonalSDE(LogLinear(), BLOCKS, drop=[1.0, 0.5]),
}


class TestGaussianData(EstimatorLaws):
    exact = True

    def make(self):
        return GaussianData(SDES["speeds"](), MEAN, COVARIANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("dim", [2, 3])
def test_it_is_the_closed_form(name, dim, dtype):
    own = GaussianData(SDES[name](), MEAN, COVARIANCE).to(dtype)
    known = Gaussian(own.sde, MEAN, COVARIANCE)
    z = torch.randn(7, dim, dtype=dtype)
    for t in (0.9, torch.linspace(0.01, 1.0, 7)):
        torch.testing.assert_close(own.denoise(z, t), known.denoise(z, t))


@pytest.mark.parametrize("name", SDES)
def test_its_law_is_that_of_the_closed_form(name):
    own = GaussianData(SDES[name](), MEAN, COVARIANCE)
    known = Gaussian(own.sde, MEAN, COVARIANCE).marginal(torch.tensor([0.3]).double())
    marginal = own.marginal(0.3)
    torch.testing.assert_close(marginal.mean, known.mean)
    torch.testing.assert_close(
        marginal.covariance_matrix, known.component_distribution.covariance_matrix[0]
    )
