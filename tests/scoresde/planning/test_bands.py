"""What plans know of data."""

import pytest
import torch

from scoresde import Haar, Identity, LogLinear
from scoresde.planning import kurtosis, plan, spectra
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

BASIS = Haar((1, 8, 8), 2)


def test_spectra_are_eigenvalues_of_many_events():
    x = torch.randn(4000, 1, 8, 8) @ torch.randn(8, 8)
    found = spectra(BASIS, x)
    z = BASIS(x)
    for name, block in BASIS.blocks.slices.items():
        own = torch.linalg.eigvalsh(torch.cov(z[:, block].mT, correction=0)).flip(0)
        torch.testing.assert_close(found[name], own, rtol=0.05, atol=0.02 * float(own.mean()))
        torch.testing.assert_close(found[name].sum(), own.sum())


@pytest.mark.parametrize("count", [20, 100])
def test_spectra_of_few_events_are_shrunk(count):
    """Their eigenvalues are spread further than the data's, of which the sum is kept."""
    true = torch.linspace(2, 0.1, 64)
    x = torch.randn(count, 64) * true.sqrt()
    z = x - x.mean(0)
    raw = torch.linalg.eigvalsh(z.mT @ z / count).flip(0)
    found = spectra(Identity((64,)), x)["all"]
    assert (found - true).square().sum() < 0.5 * (raw - true).square().sum()
    torch.testing.assert_close(found.sum(), raw.sum())
    assert (found.diff() <= 0).all()


def test_spectra_of_data_that_hardly_vary():
    assert spectra(Identity((3,)), torch.ones(5, 3))["all"].tolist() == [0, 0, 0]
    assert spectra(Identity((1,)), torch.tensor([[1.0], [-1.0]]))["all"].tolist() == [1.0]
    with pytest.raises(ValueError, match="data: expected at least one event"):
        spectra(Identity((3,)), torch.ones(0, 3))


def test_kurtosis_is_each_coefficients_own():
    """Coefficients of different power are no outliers."""
    torch.manual_seed(0)
    x = torch.randn(20000, 2) * torch.tensor([1.0, 9.0]) + 5
    heavy = torch.distributions.Laplace(0.0, 1.0).sample((20000, 2))
    basis = Identity((4,), {"normal": 2, "laplace": 2})
    found = kurtosis(basis, torch.cat([x, heavy], 1))
    assert found["normal"] == pytest.approx(3, rel=0.05)
    assert found["laplace"] == pytest.approx(6, rel=0.1)
    assert kurtosis(basis, torch.ones(9, 4)) == {"normal": 3.0, "laplace": 3.0}


def test_plans_hold_for_other_data_of_the_kind():
    """Of images drawn again from the same ones."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(400, 1, 2, 2), scale_factor=4)
    x = 2 * coarse + 0.3 * torch.randn(400, 1, 8, 8) * torch.rand(400, 1, 1, 1).exp()
    made = []
    for _ in range(3):
        drawn = x[torch.randint(len(x), (len(x),))]
        known = spectra(BASIS, drawn)
        solver = ExponentialMultistep(order=2)
        made.append(
            plan(BASIS, LogLinear(), known, solver, cost=2.7, kurtosis=kurtosis(BASIS, drawn))
        )
    assert len({m.steps for m in made}) == 1
    assert max(m.error for m in made) < 2 * min(m.error for m in made)
