"""What is done between steps, and after the last: correctors, churn, a last denoising."""

import pytest
import readings
import torch
from exact_moments import events, marginal, moments, sample_moments, with_true_prior
from models import SOLVERS
from strategies import gaussian

from estimators import Gaussian, MultiScale
from scoresde import VP, DiagonalSDE, Haar, Identity, LogLinear, Noise, ReverseSDE
from solvers import DDIM, ExponentialMultistep, Langevin

pytestmark = pytest.mark.usefixtures("float64")


def test_langevin_asks_the_estimator_as_the_solver_does():
    """The condition goes along, in the state's dtype, and the defaults are the paper's."""
    asked = []

    class Told(Gaussian):
        def denoisers(self, at, condition=None):
            asked.append((at.like.dtype, condition))
            return super().denoisers(at)

    model = Told(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
    reverse = ReverseSDE(model, 1.0, "told")
    t, z = torch.tensor(0.5, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float32)
    assert Langevin() == Langevin(1, 0.16)
    assert Langevin()(reverse, z, t, Noise()).dtype == torch.float32
    assert asked == [(torch.float32, "told")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2])
def test_langevin_is_its_formula(steps, dtype):
    """Sample by sample, of lengths that differ, with every component's own noise."""
    sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 2.0])
    model = Gaussian(sde, torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    t, snr = torch.tensor(0.3), 0.2
    z = torch.tensor([[0.1, 0.2], [-30.0, 4.0], [2.0, 50.0]], dtype=dtype)
    drawn = torch.randn(2, 3, 2, dtype=dtype)

    class Known(Noise):
        queue = iter(drawn)

        def __call__(self, like):
            return next(self.queue)

    found = Langevin(steps, snr)(ReverseSDE(model), z, t, Known())
    alpha, sigma = (v.to(dtype) for v in sde.kernel(t.reshape(1)))
    for xi in drawn[:steps]:
        pull = alpha * model.denoise(z, t) - z
        z = z + 2 * snr**2 * pull + 2 * snr * sigma * xi
    torch.testing.assert_close(found, z, rtol=1e-5, atol=1e-5)


def bed(eps=0.05):
    sde = DiagonalSDE(VP(0.1, 9.0, eps=eps), Identity((3,)), [1.0, 0.6, 2.0])
    return with_true_prior(gaussian(sde, 3))


def gap(solver, model):
    (mean, covariance), truth = (
        sample_moments(solver, model),
        events(model, marginal(model, model.sde.eps)),
    )
    return float((mean - truth[0]).norm() + (covariance - truth[1]).norm())


def test_langevin_leaves_the_distribution_alone_as_its_steps_shrink():
    """Its bias is of first order in the step ``2 snr^2``, of second in ``snr``."""
    model = bed()
    t = torch.tensor(0.4)
    start = marginal(model, 0.4)
    reverse = ReverseSDE(model)
    errors = []
    for snr in (0.1, 0.05):

        def run(rows, noise, snr=snr):
            z = noise.draw(start, torch.empty(rows, 3))
            return Langevin(round(0.4 / snr**2), snr)(reverse, z, t, noise)

        mean, covariance = moments(run, 3 * 161)
        torch.testing.assert_close(mean, start.mean, rtol=0, atol=1e-9)
        errors.append(float((covariance - start.covariance_matrix).norm()))
    assert errors[0] < 0.05
    assert 3 < errors[0] / errors[1] < 5


def test_langevin_brings_a_wrong_distribution_back():
    model = bed()
    reverse, t = ReverseSDE(model), torch.tensor(0.4)
    torch.manual_seed(0)
    z = Langevin(600, 0.2)(reverse, 3 + torch.zeros(4000, 3), t, Noise())
    truth = marginal(model, 0.4)
    torch.testing.assert_close(z.mean(0), truth.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(z.mT.cov(), truth.covariance_matrix, rtol=0, atol=0.1)


STOCHASTIC = sorted(set(SOLVERS) - {"torchdiffeq"})


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_corrector_composes_with_any_solver(name):
    model, calls = bed(), []

    def corrector(reverse, z, t, noise):
        calls.append(float(t))
        return Langevin(2, 0.1)(reverse, z, t, noise)

    x = SOLVERS[name](8, corrector=corrector).sample(model, (5,))
    assert torch.isfinite(x).all()
    torch.testing.assert_close(torch.tensor(calls), SOLVERS[name](8).times(model.sde)[1:])


def test_a_corrector_mends_what_a_coarse_solver_breaks():
    model = bed()
    plain, corrected = DDIM(6), DDIM(6, corrector=Langevin(60, 0.12))
    assert gap(corrected, model) < gap(plain, model) / 2


@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_churn_keeps_the_distribution(solver):
    """Diffusing forward is exact, so that errors are those of the steps back."""
    model = bed()
    errors = [gap(solver(steps, churn=4 / steps), model) for steps in (20, 40, 80)]
    # of first order: what a multistep solver remembers is lost each time
    assert errors[0] / errors[1] > 1.7
    assert errors[1] / errors[2] > 1.8


def test_churn_raises_the_noise_level_by_its_share():
    model, seen = bed(), []

    class Spy(DDIM):
        def walk(self, sde, y, ts, noise, memory=None):
            seen.append(-ts[0])
            return super().walk(sde, y, ts, noise, memory)

    solver = Spy(10, churn=0.3)
    solver.sample(model, (2,))
    times = solver.times(model.sde)[:-1]
    assert seen[0] == times[0]  # nothing lies beyond
    found = readings.level(model.sde, torch.stack(seen[1:]).unsqueeze(-1))
    wanted = readings.level(model.sde, times[1:].unsqueeze(-1)) + torch.tensor(1.3).log()
    inside = wanted < readings.level(model.sde, torch.tensor([[model.sde.T]]))
    torch.testing.assert_close(found[inside], wanted[inside], rtol=0, atol=2e-3)


def test_the_last_denoising_gives_the_mean_of_clean_data():
    model = bed()
    g = torch.Generator
    noisy = DDIM(9).sample(model, (4,), generator=g().manual_seed(0))
    clean = DDIM(9, final_denoise=True).sample(model, (4,), generator=g().manual_seed(0))
    torch.testing.assert_close(clean, model.denoise(noisy, model.sde.eps))


class Echo(torch.nn.Module):
    def forward(self, x, level):
        return x


def test_only_the_last_state_is_denoised_not_those_between_stages():
    basis = Haar((1, 4, 4), 2)
    sde = DiagonalSDE(LogLinear(), basis, [1.0, 1.5, 3.0], drop=[1.0, 2 / 3, 1 / 3])
    model = MultiScale(sde, [Echo() for _ in range(3)])
    g = torch.Generator
    noisy = DDIM(9).sample(model, (4,), generator=g().manual_seed(0))
    clean = DDIM(9, final_denoise=True).sample(model, (4,), generator=g().manual_seed(0))
    wanted = basis.inverse(model.denoise(basis(noisy), sde.eps))
    torch.testing.assert_close(clean, wanted)
