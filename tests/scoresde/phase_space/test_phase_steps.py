"""Steps in phase space: against closed forms, and against many short ones."""

import pytest
import torch

from scoresde import Dynamics
from scoresde.phase_space.steps import phase_step, symmetric_root

DYNAMICS = {"cld": Dynamics.cld(), "psld": Dynamics.psld(), "hold": Dynamics.hold()}
LATE = torch.tensor([0.1, 0.6, 2.5], dtype=torch.float64)
EARLY = torch.tensor([0.05, 0.1, 1.3], dtype=torch.float64)
LAST = {"rtol": 1e-7, "atol": 1e-8}


@pytest.fixture(params=DYNAMICS.values(), ids=DYNAMICS.keys())
def dynamics(request):
    return request.param


def covariance(root):
    return root @ root.mT


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.7])
def test_marginals_are_kept_by_every_eta(dynamics, eta):
    """Of a point mass, whose denoised mean is constant: mean and covariance."""
    start, end = dynamics.kernel(LATE), dynamics.kernel(EARLY)
    step = phase_step(dynamics, LATE, EARLY, eta)
    mean = (step.decay @ start.mean.unsqueeze(-1)).squeeze(-1) + step.gains[..., 0]
    torch.testing.assert_close(mean, end.mean, rtol=1e-12, atol=1e-12)
    moved = covariance(step.decay @ start.root) + covariance(step.noise_std)
    torch.testing.assert_close(moved, covariance(end.root), rtol=1e-9, atol=1e-12)


def test_the_reverse_sde_is_the_bridge(dynamics):
    """With ``eta = 1``: ``S_s exp(A (t - s))^T S_t^-1``, in closed form."""
    start, end = dynamics.kernel(LATE), dynamics.kernel(EARLY)
    flow, _ = dynamics.transition(LATE - EARLY)
    decay = covariance(end.root) @ flow.mT @ torch.linalg.inv(covariance(start.root))
    step = phase_step(dynamics, LATE, EARLY, 1.0)
    torch.testing.assert_close(step.decay, decay, **LAST)
    rest = covariance(end.root) - decay @ flow @ covariance(end.root)
    torch.testing.assert_close(covariance(step.noise_std), rest, **LAST)


def test_there_and_back_is_the_identity(dynamics):
    """Without noise, whatever grows with the level of noise."""
    down, up = phase_step(dynamics, LATE, EARLY, 0.0), phase_step(dynamics, EARLY, LATE, 0.0)
    one = torch.eye(dynamics.copies, dtype=torch.float64).expand_as(up.decay)
    torch.testing.assert_close(up.decay @ down.decay, one, rtol=0, atol=1e-6)
    # a mean of v on the way down is one of 1 - v on the way up
    back = up.decay @ down.gains[..., 1:2] + up.gains[..., :1] - up.gains[..., 1:2]
    torch.testing.assert_close(back, torch.zeros_like(back), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_polynomials_are_integrated(dynamics, eta):
    """``v``, ``v^2`` and ``v^3`` over one step are those over its two halves."""
    middle = (LATE + EARLY) / 2
    first, last, whole = (
        phase_step(dynamics, a, b, eta) for a, b in ((LATE, middle), (middle, EARLY), (LATE, EARLY))
    )
    share = (first.h / whole.h)[:, None]
    rest = 1 - share
    one, line, curve = (v.unbind(-1) for v in (first.gains, last.gains, whole.gains))
    onward = (last.decay @ first.gains).unbind(-1)
    halves = [
        onward[0] + line[0],
        share * onward[1] + share * line[0] + rest * line[1],
        share**2 * onward[2] + share**2 * line[0] + 2 * share * rest * line[1] + rest**2 * line[2],
        share**3 * (onward[3] + line[0])
        + 3 * share**2 * rest * line[1]
        + 3 * share * rest**2 * line[2]
        + rest**3 * line[3],
    ]
    assert len(one) == 4
    for found, wanted in zip(halves, curve, strict=True):
        torch.testing.assert_close(found, wanted, **LAST)


def test_what_stands_still_stays(dynamics):
    step = phase_step(dynamics, LATE, LATE, 1.0)
    one = torch.eye(dynamics.copies, dtype=torch.float64).expand_as(step.decay)
    torch.testing.assert_close(step.decay, one, rtol=0, atol=1e-9)
    for none in (step.gains, step.noise_std, step.h):
        torch.testing.assert_close(none, torch.zeros_like(none), rtol=0, atol=1e-7)


def test_a_root_of_what_rounding_made_negative():
    root = symmetric_root(torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-17]], dtype=torch.float64))
    torch.testing.assert_close(root, torch.full((2, 2), 0.5**0.5, dtype=torch.float64))
