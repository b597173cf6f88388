"""Guidance: posteriors of linear observations under an unconditional model."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mixture, numbers, random_covariance, sdes, states, times

from estimators import ClassifierFree, Gaussian, GaussianMixture, Guidance
from estimators.conjugate_gradients import conjugate_gradients
from estimators.guidance import METHODS
from scoresde import (
    VP,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    LogLinear,
    Noise,
    ReverseSDE,
    ScoreEstimator,
    condition,
    log_prob,
)
from solvers import DDIM, Adaptive, ExponentialMultistep, Heun

pytestmark = pytest.mark.usefixtures("float64")


def problem(sde, seed, m=2, s=0.3):
    """Gaussian data, an observation, and the exact estimator of the posterior."""
    g = torch.Generator().manual_seed(seed)
    n = sde.basis.dim
    mean, cov = torch.randn(n, generator=g), random_covariance(n, g)
    A, y = torch.randn(m, n, generator=g), torch.randn(m, generator=g)
    gain = cov @ A.mT @ torch.linalg.inv(A @ cov @ A.mT + s**2 * torch.eye(m))
    shape = sde.basis.event_shape
    prior = Gaussian(sde, mean.reshape(shape), cov)
    posterior = Gaussian(sde, (mean + gain @ (y - A @ mean)).reshape(shape), cov - gain @ A @ cov)
    return prior, posterior, lambda x: sde.basis.flatten(x) @ A.mT, y


@pytest.mark.parametrize("method", ["moments", "evidence"])
@given(data=st.data(), seed=st.integers(0, 99))
def test_moments_are_exact_for_gaussian_data(method, data, seed):
    sde = data.draw(sdes())
    prior, posterior, operator, y = problem(sde, seed)
    guided = Guidance(prior, operator, y, 0.3, method=method)
    t, z = data.draw(times(sde))[0], data.draw(states(sde))
    found, wanted = guided.denoise(z, t.squeeze()), posterior.denoise(z, t.squeeze())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@given(variance=numbers(0.2, 3.0), t=numbers(0.05, 1.0), s=numbers(0.1, 1.0))
def test_isotropic_is_exact_for_independent_components(variance, t, s):
    sde = DiagonalSDE(VP(), Identity((3,)))
    cov = variance * torch.eye(3)
    A, y = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), torch.tensor([1.0, -2.0])
    gain = cov @ A.mT @ torch.linalg.inv(A @ cov @ A.mT + s**2 * torch.eye(2))
    guided = Guidance(
        Gaussian(sde, torch.zeros(3), cov),
        lambda x: x @ A.mT,
        y,
        s,
        method="isotropic",
        data_std=variance**0.5,
    )
    z = torch.randn(4, 3)
    wanted = Gaussian(sde, gain @ y, cov - gain @ A @ cov).denoise(z, t)
    torch.testing.assert_close(guided.denoise(z, t), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "method", ["moments", "evidence", "isotropic", "point", "proximal", "spectral"]
)
def test_every_method_is_its_formula(method, t, dtype):
    """Of correlated components, sample by sample: of residuals that differ in length."""
    s, strength, std = 0.3, 1.7, torch.tensor([0.5, 1.0, 2.0])
    sde = DiagonalSDE(VP(), Identity((3,), dict.fromkeys("abc", 1)), [1.0, 0.8, 1.5])
    prior, _, operator, y = problem(sde, 2, s=s)
    A = operator(torch.eye(3)).mT
    guided = Guidance(
        prior, lambda x: x @ A.mT.to(x), y, s, method=method, strength=strength, data_std=std
    )
    z = torch.tensor([[0.1, -0.2, 0.3], [2.0, 0.5, -4.0], [-9.0, 7.0, 1.0]])
    alpha, sigma = (v.expand(3) for v in sde.kernel(torch.tensor([t])))
    power, cov = sigma**2, prior.covariances[0]
    gain = cov * alpha @ torch.linalg.inv(alpha[:, None] * cov * alpha + torch.diag(power))
    left = cov - gain @ (alpha[:, None] * cov)  # the covariance of the clean state
    clean = prior.means[0] + (z - alpha * prior.means[0]) @ gain.mT
    miss = y - clean @ A.mT
    outside = left
    if method == "spectral":
        basis, values, right = torch.linalg.svd(A / s, full_matrices=False)
        noisy = (right**2 @ (power / alpha**2)).sqrt() * values
        share = torch.where(noisy >= 1, 1.0, strength * noisy)
        pull = (miss / s) @ basis / values * share
    elif method == "point":
        pull = strength * miss / miss.norm(dim=-1, keepdim=True)
    else:
        alone = torch.diag(std**2 * power / (alpha**2 * std**2 + power))
        inside = left if method in ("moments", "evidence") else alone
        if method == "proximal":
            inside = outside = strength * alone
        pull = torch.linalg.solve(A @ inside @ A.mT + s**2 * torch.eye(2), miss.mT).mT
    found = guided.denoise(z.to(dtype), t)
    precise = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    step = pull @ right if method == "spectral" else pull @ A @ outside
    torch.testing.assert_close(found, (clean + step).to(dtype), **precise)


@pytest.mark.parametrize("solver", [ExponentialMultistep(40), DDIM(100, eta=1.0), Heun(30)])
@pytest.mark.parametrize("basis", ["identity", "haar"])
def test_every_solver_samples_the_posterior(solver, basis):
    if basis == "haar":
        sde = DiagonalSDE(LogLinear(), Haar((4,), 1), speeds=[1.0, 2.0])
    else:
        sde = DiagonalSDE(VP(), Identity((4,)), speeds=[1.0, 0.8, 1.5, 2.0])
    prior, posterior, operator, y = problem(sde, 4)
    x = solver.sample(Guidance(prior, operator, y, 0.3), (3000,))
    z = sde.basis(x)
    assert (z.mean(0) - posterior.means[0]).abs().max() < 0.12
    assert (torch.cov(z.mT) - posterior.covariances[0]).abs().max() < 0.15


def test_samples_with_steps_of_their_own_keep_what_is_known_of_them():
    """Observations, conditions and probes stay with their samples when others leave the batch."""
    sde = DiagonalSDE(VP(), Identity((2,)), speeds=[1.0, 2.0])
    model = mixture(sde, 3)
    g, adaptive = torch.Generator().manual_seed(0), Adaptive(rtol=3e-4, atol=3e-4)
    y = torch.linspace(-2, 2, 3).unsqueeze(-1)
    guided = Guidance(model, lambda x: x.sum(-1, keepdim=True), y, 0.3)

    class Towards(ScoreEstimator):
        """The wrapped estimator's data, moved by a condition."""

        def __init__(self, inner):
            super().__init__(inner.sde)
            self.inner = inner

        def denoise(self, z, t, condition=None):
            alpha = self.sde.kernel(self.sde.time(t, z)).alpha
            return self.inner.denoise(z - alpha * condition, t) + condition

    moved = ClassifierFree(Towards(guided), torch.zeros(2))
    shift = torch.randn(2, 3, 2, generator=g)
    z = torch.randn(2, 3, 2, generator=g)
    found = {}
    for solver in (adaptive, ExponentialMultistep(200)):
        reverse = ReverseSDE(moved, 0.0, shift)
        found[solver] = solver.integrate(reverse, z, -solver.times(sde), Noise())
        options = {"condition": shift, "trace": Hutchinson(3), "generator": g.manual_seed(1)}
        value = log_prob(moved, z, solver, errors=False, **options)
        assert value.evaluations > 20
        found[solver] = torch.cat([found[solver].flatten(), value.value.flatten()])
    torch.testing.assert_close(*found.values(), rtol=1e-3, atol=2e-3)


def test_what_has_not_entered_yet_keeps_its_own_variance():
    basis = Haar((4,), 1)
    sde = DiagonalSDE(LogLinear(14.0, -14.0), basis, speeds=[1.0, 2.0], drop=[1.0, 0.5])
    z_cov = torch.block_diag(
        random_covariance(2, torch.Generator().manual_seed(0)), torch.eye(2) * 0.25
    )
    mean = torch.tensor([1.0, -1.0, 0.5, 0.0])
    to_events = basis.synthesise(torch.eye(4)).mT
    x_cov = to_events @ z_cov @ to_events.mT
    A, y, s = torch.tensor([[1.0, 0.5, 0.0, -1.0]]), torch.tensor([2.0]), 0.2
    prior = Gaussian(sde, to_events @ mean, x_cov)
    guided = Guidance(prior, lambda x: x @ A.mT, y, s, data_mean=mean, data_std=[1.0, 0.5])
    gain = x_cov @ A.mT / (A @ x_cov @ A.mT + s**2)
    exact = Gaussian(
        sde, to_events @ mean + gain @ (y - A @ (to_events @ mean)), x_cov - gain @ A @ x_cov
    )
    z = torch.randn(3, 2)
    torch.testing.assert_close(guided.denoise(z, 0.8), exact.denoise(z, 0.8), rtol=1e-5, atol=1e-6)
    x = ExponentialMultistep(60).sample(guided, (4000,))
    assert (basis(x).mean(0) - exact.means[0]).abs().max() < 0.08
    assert (torch.cov(basis(x).mT) - exact.covariances[0]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("method", "close"), [("moments", 0.1), ("isotropic", 0.25), ("point", 1.0)]
)
def test_mixtures_are_guided_to_the_right_mode(method, close):
    sde = DiagonalSDE(VP(), Identity((2,)))
    means = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    prior = GaussianMixture(sde, [0.5, 0.5], means, [0.1 * torch.eye(2)] * 2)
    guided = Guidance(
        prior, lambda x: x[..., :1], torch.tensor([1.8]), 0.2, method=method, data_std=2.0
    )
    x = ExponentialMultistep(60).sample(guided, (1000,))
    wanted = 2.0 + 0.1 / (0.1 + 0.04) * (1.8 - 2.0)
    assert (x[:, 0].mean() - wanted).abs() < close
    assert (x[:, 1].mean() - 2.0).abs() < close


def test_the_observation_may_differ_between_samples():
    sde = DiagonalSDE(VP(), Identity((3,)))
    prior, _, operator, _ = problem(sde, 1)
    y = torch.randn(4, 2)
    z = torch.randn(4, 3)
    many = Guidance(prior, operator, y, 0.3).denoise(z, 0.4)
    for i in range(4):
        one = Guidance(prior, operator, y[i], 0.3).denoise(z[i : i + 1], 0.4)
        torch.testing.assert_close(many[i : i + 1], one)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "dps"}, "method: expected one of .*, got 'dps'"),
        ({"y": torch.tensor([torch.nan])}, "y: expected finite"),
        ({"noise": 0.0}, "noise: expected positive"),
        ({"data_std": 0.0}, "data_std: expected positive"),
        ({"iterations": 0}, "iterations: expected a whole number of at least 1"),
        ({"strength": torch.nan}, "strength: expected a finite number"),
        ({"strength": -1e-9}, "strength: expected a finite number of at least 0"),
        ({"estimator": None}, "estimator: expected a ScoreEstimator, got None"),
        ({"operator": None}, "operator: expected a Callable, got None"),
        ({"y": [1.0]}, "y: expected a Tensor"),
        ({"y": torch.ones(2) + 1j}, "y: expected real numbers .*view_as_real"),
    ],
)
def test_bad_guidance(wrong, message):
    prior, _, operator, y = problem(DiagonalSDE(VP(), Identity((3,))), 0)
    arguments = {"estimator": prior, "operator": operator, "y": y, "noise": 0.1, **wrong}
    with pytest.raises((TypeError, ValueError), match=message):
        Guidance(**arguments)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda x: x.sum(-1), r"one from events to \(batch, \.\.\.\), got \(\) of \(3,\)"),
        (lambda x: x[..., :2].sum(-1, keepdim=True), r"what y has, \(batch, 4\), got \(1,\)"),
        (lambda x: x.sum(), r"one from events to \(batch, \.\.\.\)"),
        (lambda x: None, "expected a Tensor, got None"),
        (
            lambda x: torch.fft.fft(x, 4),
            "expected real numbers .*view_as_real.*, got torch.complex",
        ),
    ],
    ids=["no axis of its own", "too few", "of the batch", "nothing", "complex"],
)
def test_operators_that_do_not_give_what_was_observed_are_refused(operator, message):
    """Broadcasting would make something of a batch of as many as there are observations."""
    prior, *_ = problem(DiagonalSDE(VP(), Identity((3,))), 0)
    with pytest.raises((TypeError, ValueError), match=f"operator.*{message}"):
        Guidance(prior, operator, torch.ones(4), 0.1)


WEIGHTS = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
WITHOUT = {
    "arrays": lambda x: torch.from_numpy(x.detach().numpy() * 2),
    "no_grad": torch.no_grad()(lambda x: 2 * x[..., :2]),
    "detached, weights apart": lambda x: x.detach() @ WEIGHTS.to(x.dtype),
    "comparisons": lambda x: x > 0,
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operator", WITHOUT)
def test_operators_without_derivatives_are_refused(operator, method, dtype):
    """By them nothing would be observed, and samples be those of the model."""
    prior, *_ = problem(DiagonalSDE(VP(), Identity((3,))), 0)
    torch.set_default_dtype(dtype)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(ValueError, match=r"operator: .*gradients"):
            Guidance(prior, WITHOUT[operator], torch.ones(3), 0.1, method=method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS[:-1])
def test_operators_whose_derivatives_are_0_are_named(method, dtype):
    prior, *_ = problem(DiagonalSDE(VP(), Identity((3,))), 0)
    torch.set_default_dtype(dtype)
    with pytest.warns(UserWarning, match=r"operator: .* derivatives of 0"):
        Guidance(prior, torch.round, torch.ones(3), 0.1, method=method)
    for operator in (torch.square, torch.relu, lambda x: x - x.roll(1, -1)):
        with warnings.catch_warnings(action="error"):
            Guidance(prior, operator, torch.ones(3), 0.1, method=method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_operators_of_another_dtype_see_events_in_that_of_the_observation(method, dtype):
    """Or in that of states: numbers that a function holds are not found out otherwise."""
    prior, *_ = problem(DiagonalSDE(VP(), Identity((3,))), 0)
    torch.set_default_dtype(torch.float32)
    wide, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    z, options = torch.randn(4, 3, dtype=dtype), {"noise": 0.3, "method": method}
    wanted = Guidance(prior, lambda x: x @ wide.to(x), y, **options).denoise(z, 0.5)
    found = Guidance(prior, lambda x: x @ wide, y, **options).denoise(z, 0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    narrow = Guidance(prior, lambda x: x @ wide.float(), y, **options).denoise(z.float(), 0.5)
    torch.testing.assert_close(narrow, wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 5, 60])
def test_a_matrix_that_is_not_symmetric_leads_nowhere_worse(iterations):
    """As a learned Jacobian is none; of one that is, all are solved."""
    generator = torch.Generator().manual_seed(0)
    shape = (20, 60, 60)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64) / 60**0.5
    right = torch.randn(20, 60, generator=generator, dtype=torch.float64)

    def missed(matrix, iterations):
        found = conjugate_gradients(
            lambda v: torch.einsum("kij,kj->ki", matrix, v), right, iterations
        )
        gap = right - torch.einsum("kij,kj->ki", matrix, found)
        return gap.norm(dim=-1) / right.norm(dim=-1)

    skewed = torch.eye(60, dtype=torch.float64) + matrix / 2
    misses, before = (missed(skewed, k) for k in (iterations, iterations // 2))
    assert (misses <= before + 1e-9).all()
    assert (misses < 1).all()
    if iterations == 60:
        even = torch.eye(60, dtype=torch.float64) + matrix @ matrix.mT
        assert (missed(even, 60) < 1e-6).all()


class Turning(ScoreEstimator):
    """What a network may say: its Jacobian is no covariance, but for one direction."""

    def denoise(self, z, t, condition=None):
        return z * torch.tensor([-1.0, 0.5]).to(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_no_covariance_are_left(dtype):
    model = Turning(DiagonalSDE(VP(), Identity((2,))))
    z = torch.tensor([[0.3, -0.2]], dtype=dtype)
    guided = Guidance(model, lambda x: x[..., :1], torch.ones(1), 0.1)
    assert torch.equal(guided.denoise(z, 0.9), model.denoise(z, 0.9))
    guided = Guidance(model, lambda x: x[..., 1:], torch.ones(1), 1e-3)
    torch.testing.assert_close(
        guided.denoise(z, 0.9), torch.tensor([[-0.3, 1.0]], dtype=dtype), atol=1e-4, rtol=0
    )
    both = Guidance(model, lambda x: x, torch.ones(2), 0.1).denoise(z, 0.9)
    assert (both - model.denoise(z, 0.9)).norm() < 3


def test_what_is_seen_has_a_batch_that_fits_what_is_known():
    joint = Joint(a=(1,), b=(2,))
    model = Gaussian(
        DiagonalSDE(VP(), joint, joint.per_block(a=0, b=1)), torch.zeros(3), torch.eye(3)
    )
    known = condition(model, a=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"y: expected batches that fit each other, got \(2,\)"):
        Guidance(known, lambda x: x[..., :1], torch.zeros(2, 1), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_clean_is_left_as_it_is(method, dtype):
    joint = Joint(a=(1,), b=(2,))
    sde = DiagonalSDE(VP(), joint, joint.per_block(a=0, b=1))
    covariance = torch.eye(3) + 0.5
    model, z = Gaussian(sde, torch.zeros(3), covariance), torch.randn(4, 3, dtype=dtype)
    guided = Guidance(model, lambda x: x.sum(-1, keepdim=True), torch.ones(1), 0.1, method=method)
    moved = guided.denoise(z, 0.5) - model.denoise(z, 0.5)
    assert not moved[:, 0].any()
    assert moved[:, 1:].all()
