"""Kernels of a few numbers per component: against moment equations, and where they are known."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from scoresde import Dynamics

DYNAMICS = {
    "cld": Dynamics.cld(),
    "cld that starts at rest": Dynamics.cld(gamma=0.0),
    "cld with much friction": Dynamics.cld(friction=6.0),
    "psld": Dynamics.psld(),
    "hold": Dynamics.hold(),
}
STATIONARY = {
    "cld": [1.0, 0.25],
    "cld that starts at rest": [1.0, 0.25],
    "cld with much friction": [1.0, 9.0],
    "psld": [1.0, 0.25],
    "hold": [1.0, 1.0, 1.0],
}


@pytest.fixture(params=DYNAMICS.values(), ids=DYNAMICS.keys())
def dynamics(request):
    return request.param


def test_the_kernel_obeys_the_moment_equations(dynamics):
    """``a' = A a`` and ``S' = A S + S A^T + Q``, integrated by others."""
    k, a = dynamics.copies, dynamics.drift.numpy()
    q, start = dynamics.g2.diag().numpy(), dynamics.start.square().diag().numpy()

    def rates(s, y):
        mean, covariance = y[:k], y[k:].reshape(k, k)
        return [*(a @ mean), *(a @ covariance + covariance @ a.T + q).ravel()]

    ends = [0.01, 0.3, 2.0]
    first = [1.0, *[0.0] * (k - 1), *start.ravel()]
    found = solve_ivp(rates, (0, 2), first, "DOP853", ends, rtol=1e-12, atol=1e-15).y.T
    kernel = dynamics.kernel(torch.tensor(ends, dtype=torch.float64))
    known = torch.from_numpy(found)
    covariance = known[:, k:].reshape(-1, k, k)
    torch.testing.assert_close(kernel.mean, known[:, :k], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kernel.root @ kernel.root.mT, covariance, rtol=1e-8, atol=1e-13)
    snr = torch.einsum("ni,nij,nj->n", kernel.mean, torch.linalg.inv(covariance), kernel.mean)
    torch.testing.assert_close(kernel.log_snr, snr.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DYNAMICS)
def test_what_is_stationary_stays(name):
    """``exp(A s) P exp(A s)^T + int = P``, with the masses that are said, whatever ``s``."""
    dynamics, s = DYNAMICS[name], torch.tensor([1e-6, 0.1, 3.0, 1e6], dtype=torch.float64)
    stationary = torch.tensor(STATIONARY[name], dtype=torch.float64).diag()
    flow, covariance = dynamics.transition(s)
    kept = flow @ stationary @ flow.mT + covariance
    torch.testing.assert_close(kept, stationary.expand(4, -1, -1), rtol=1e-12, atol=1e-12)


def test_velocities_start_with_their_share():
    for dynamics, masses in (
        (Dynamics.cld(3.0), [9 / 4]),
        (Dynamics.psld(3.0, 0.5), [16 / 25]),
        (Dynamics.hold(), [1.0, 1.0]),
    ):
        assert dynamics.start.tolist() == pytest.approx([0.0, *(0.2 * m**0.5 for m in masses)])


def test_a_double_eigenvalue_has_its_closed_form():
    """``exp(A s) = e^(-2 s/G) (1 + (A + 2/G) s)`` where damping is critical."""
    dynamics, s = Dynamics.cld(friction=1.5), 0.7
    flow, _ = dynamics.transition(torch.tensor(s, dtype=torch.float64))
    a, one = dynamics.drift, torch.eye(2, dtype=torch.float64)
    wanted = math.exp(-2 * s / 1.5) * (one + (a + 2 / 1.5 * one) * s)
    torch.testing.assert_close(flow, wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("name", "root"), [("cld", -2.0), ("psld", -1.005), ("hold", -(3**0.5))])
def test_damping_is_critical(name, root):
    """All eigenvalues are one: ``A - root`` is nilpotent."""
    a = DYNAMICS[name].drift
    shifted = a - root * torch.eye(len(a), dtype=torch.float64)
    power = torch.linalg.matrix_power(shifted, len(a))
    torch.testing.assert_close(power, torch.zeros_like(power), rtol=0, atol=1e-13)


def test_the_signal_is_lost_as_fast_as_is_said(dynamics):
    s = torch.tensor([1e-5, 0.02, 0.5, 3.0], dtype=torch.float64)
    log_snr, slope = torch.func.jvp(
        lambda s: dynamics.kernel(s).log_snr, (s,), (torch.ones_like(s),)
    )
    kernel = dynamics.kernel(s)
    torch.testing.assert_close(slope, -kernel.decay, rtol=1e-7, atol=0)
    torch.testing.assert_close(log_snr, kernel.log_snr)
    assert (kernel.decay > 0).all()


def test_what_is_seen_is_data_and_noise(dynamics):
    """``u = r y`` with ``r a = 1`` and ``r S r = 1/|rho|^2``."""
    kernel = dynamics.kernel(torch.tensor([1e-4, 0.1, 2.0], dtype=torch.float64))
    torch.testing.assert_close((kernel.readout * kernel.mean).sum(-1), torch.ones(3).double())
    seen = (kernel.root.mT @ kernel.readout.unsqueeze(-1)).square().sum((-1, -2))
    torch.testing.assert_close(seen.log(), -kernel.log_snr, rtol=1e-9, atol=1e-9)


def test_log_snrs_are_met(dynamics):
    """``diffused`` is the inverse of the log-SNR, and its derivative that of one."""
    log_snrs = torch.tensor([40.0, 12.0, 3.0, -1.0, -14.0, -30.0], dtype=torch.float64)
    s, slope = torch.func.jvp(dynamics.diffused, (log_snrs,), (torch.ones_like(log_snrs),))
    kernel = dynamics.kernel(s)
    torch.testing.assert_close(kernel.log_snr, log_snrs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, -1 / kernel.decay, rtol=1e-8, atol=0)
    assert float(dynamics.diffused(torch.tensor([torch.inf]))) < 1e-19
    near = dynamics.diffused(log_snrs.float())  # to all digits, whatever they come in
    torch.testing.assert_close(near, s, rtol=1e-6, atol=0)


def test_log_snrs_that_are_learned_move_what_is_diffused(dynamics):
    """The derivative of an inverse, as schedules whose log-SNRs are parameters need it."""
    log_snrs = torch.tensor([8.0, 0.0, -8.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dynamics.diffused, (log_snrs,), eps=1e-5, rtol=1e-5)


def test_with_a_large_mass_the_position_alone_is_variance_preserving():
    """The velocity is not felt any more: ``a_x = e^(-s/2)`` and ``S_xx = 1 - a_x^2``."""
    dynamics = Dynamics.psld(friction=1.0, leak=1.0 - 1e-5)
    kernel = dynamics.kernel(torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64))
    alpha, sigma = kernel.mean[:, 0], kernel.root[:, 0, 0]
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3).double(), rtol=1e-4, atol=0)
    wanted = torch.exp(-torch.tensor([0.05, 0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(alpha, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Dynamics.cld(friction=0.0), "friction"),
        (lambda: Dynamics.cld(friction=3.6e16), "friction"),
        (lambda: Dynamics.cld(friction=1e-200), "friction"),
        (lambda: Dynamics.psld(friction=2**1100), "friction"),
        (lambda: Dynamics.psld(friction=b"4"), "friction"),
        (lambda: Dynamics.psld(1e-5, 1e-6), "drift"),
        (lambda: Dynamics.psld(1e-300, 1e-301), "leak"),
        (lambda: Dynamics.hold(gamma=1e300), "gamma"),
        (lambda: Dynamics.cld(gamma=-1.0), "gamma"),
        (lambda: Dynamics.psld(2.0, 2.0), "leak"),
        (lambda: Dynamics(torch.eye(2), torch.ones(3), torch.zeros(2)), "drift, g2, start"),
        (lambda: Dynamics(torch.eye(2), -torch.ones(2), torch.zeros(2)), "g2"),
        (lambda: Dynamics(-torch.eye(2), torch.tensor([0.0, 1.0]), torch.zeros(2)), "g2"),
        (lambda: Dynamics(-torch.eye(2), torch.ones(2), torch.ones(2)), "start"),
        (lambda: Dynamics(-torch.eye(2), torch.ones(2), torch.tensor([0.0, -1.0])), "start"),
        (lambda: Dynamics(torch.eye(2), torch.ones(2), torch.zeros(2)), "drift"),
    ],
)
def test_what_is_no_dynamics_is_refused(make, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        make()
