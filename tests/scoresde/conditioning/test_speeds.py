"""Noise on a condition: by the speed of its clock, and shrinking in training."""

import math

import pytest
import torch

from estimators import Denoising, ResidualMLP
from scoresde import EDM, VE, VP, DiagonalSDE, Haar, Identity, Joint, LogLinear
from scoresde.conditioning import AnnealedClock, factor_of_noise, slowed
from scoresde.testing import DeviceCalls
from scoresde.training import Training

TIMES = torch.linspace(0.05, 1.0, 7, dtype=torch.float64).unsqueeze(-1)
SCHEDULES = {"VP": VP, "VE": lambda: VE(0.005, 55.0), "EDM": EDM, "LogLinear": LogLinear}


def joint():
    return Joint(y=(2,), x=(3,))


def test_a_slower_clock_is_the_papers_smaller_sigma():
    """Of a variance-exploding schedule, at every time; ``sigma_min^2`` is subtracted there."""
    largest = math.hypot(0.5, 0.005)
    slow = slowed(DiagonalSDE(VE(0.005, 55.0), joint()), ["y"], 0.5)
    per_part = DiagonalSDE(VE(0.005, joint().per_block(y=largest, x=55.0)), joint())
    for name in ("alpha", "sigma", "f", "g2"):
        found, wanted = (getattr(sde.at(TIMES), name) for sde in (slow, per_part))
        torch.testing.assert_close(found, wanted.expand_as(found), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("noise", [0.01, 0.5, 3.0])
def test_a_condition_ends_with_its_noise(kind, noise):
    sde = slowed(DiagonalSDE(SCHEDULES[kind](), joint()), ["y"], noise)
    at = sde.at(torch.tensor([sde.T], dtype=torch.float64))
    assert float(at.sigma[0] / at.alpha[0]) == pytest.approx(noise, rel=1e-8)
    last = SCHEDULES[kind]()(torch.tensor([sde.T], dtype=torch.float64))
    torch.testing.assert_close(at.sigma[1], last[1][0])


def test_the_ends_are_no_noise_and_that_of_the_rest():
    base = DiagonalSDE(VP(), joint())
    still, equal = slowed(base, ["y"], 0.0), slowed(base, ["y"], math.inf)
    assert (still.at(TIMES).sigma[:, 0] == 0).all()
    torch.testing.assert_close(equal.at(TIMES).sigma, base.at(TIMES).sigma.expand(-1, 2))


def test_speeds_that_the_sde_has_stay():
    """Of a multi-scale one, whose bands of detail are faster."""
    basis = Joint(y=(2,), x=Haar((1, 4, 4), levels=1))
    base = DiagonalSDE(LogLinear(), basis, speeds=[1.0, 1.0, 2.0], drop=[1.0, 1.0, 0.5])
    slow = slowed(base, ["y"], 0.5)
    torch.testing.assert_close(slow.at(TIMES).sigma[:, 1:], base.at(TIMES).sigma[:, 1:])
    assert slow.stages() == base.stages()
    assert slow.breakpoints() == base.breakpoints()


def test_numbers_per_component():
    basis = joint()
    base = DiagonalSDE(VE(0.01, torch.linspace(10.0, 50.0, 5)), basis)
    at = slowed(base, ["y"], 0.5).at(torch.ones(1, dtype=torch.float64))
    wanted = torch.tensor([0.5, 0.5, 30.0, 40.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(at.sigma, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_shrinks_as_one_over_the_updates(dtype):
    sde = slowed(DiagonalSDE(VE(0.005, 20.0), joint()), ["y"], 0.5, updates=100)
    inverse = []
    for n in (0, 25, 50, 75, 100, 300):
        sde.clock.before_update(n)
        y, x = sde.at(torch.ones(1, dtype=dtype)).sigma
        assert float(x) == pytest.approx(20.0)
        inverse.append(1 / float(y))
    wanted = [1 / 20 + (2 - 1 / 20) * share for share in (0, 0.25, 0.5, 0.75, 1, 1)]
    assert inverse == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-7)


def test_what_is_measured_has_the_noise_of_the_end():
    sde = slowed(DiagonalSDE(VE(0.005, 20.0), joint()), ["y"], 0.5, updates=100)
    sde.clock.before_update(3)
    sde.eval()
    assert float(sde.at(torch.ones(1)).sigma[0]) == pytest.approx(0.5, rel=1e-5)
    sde.train()
    assert float(sde.at(torch.ones(1)).sigma[0]) > 5


def test_training_shrinks_it_and_resumes(tmp_path):
    """The state of a clock is no weight: a run is as it would have been."""

    def fit(steps, folder=None):
        torch.manual_seed(0)
        sde = slowed(DiagonalSDE(VE(0.01, 20.0), joint()), ["y"], 0.5, updates=4)
        model, seen = Denoising(sde, ResidualMLP((5,), 8, 1)), []

        def note(_):
            seen.append(float(sde.at(torch.ones(1)).sigma[0]))

        data = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
        run = {"progress": False, "on_step": note, "folder": folder, "save_every": 2}
        Training(steps=steps, batch_size=8).fit(model, data, data, **run)
        return seen, model.state_dict()

    seen, whole = fit(6, tmp_path / "a")
    wanted = [1 / (n / 4 / 0.5 + (1 - n / 4) / 20) for n in range(4)] + [0.5, 0.5]
    assert seen == pytest.approx(wanted, rel=1e-4)
    assert not any("now" in name for name in whole)


def test_annealing_waits_for_no_device():
    sde = slowed(DiagonalSDE(VE(0.01, 20.0), joint()), ["y"], 0.5, updates=100)
    sde.to("meta")
    with DeviceCalls() as calls:
        sde.clock.before_update(3)
    assert not calls.reads, str(calls)
    assert not calls.copies, str(calls)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda b: slowed(b, ["z"], 0.5), ValueError, "parts: unknown name 'z'"),
        (
            lambda b: slowed(b, ["x", "y"], 0.5),
            ValueError,
            "given: expected some of the parts y, x",
        ),
        (lambda b: slowed(b, [], 0.5), ValueError, "given: expected some of the parts"),
        (lambda b: slowed(b, ["y"], -1.0), ValueError, "noise: .*-1"),
        (lambda b: slowed(b, ["y"], math.nan), ValueError, "noise: .*nan"),
        (lambda b: slowed(b, ["y"], 99.0), ValueError, r"noise: expected at most 55, .*got 99"),
        (lambda b: slowed(b, ["y"], 0.5, updates=0), ValueError, "updates: .*at least 1"),
        (
            lambda b: slowed(DiagonalSDE(VP(), Identity((2,))), ["y"], 0.5),
            TypeError,
            "basis: expected a Joint one",
        ),
        (lambda b: factor_of_noise(VP(), "much"), ValueError, "noise: .*'much'"),
        (
            lambda b: AnnealedClock(b.clock, torch.ones(2), b.schedule, 2.5),
            ValueError,
            "updates: .*2.5",
        ),
    ],
)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(DiagonalSDE(VE(0.005, 55.0), joint()))


def test_all_else_of_an_sde_stays_as_it_is():
    joint = Joint(y=(1,), x=(2,))
    sde = DiagonalSDE(VE(0.01, 50.0), joint, scale=2.0, mean=[1.0, 3.0], std=[0.5, 4.0])
    slow = slowed(sde, ["y"], 0.5)
    for name in ("scale", "mean", "std"):
        assert torch.equal(getattr(slow, name), getattr(sde, name))
    torch.testing.assert_close(sde.at(torch.ones(1)).sigma, torch.tensor([100.0]))
