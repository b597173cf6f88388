"""Every sample takes its own steps."""

import itertools

import pytest
import torch
from strategies import gaussian, mixture

from estimators import Denoising
from scoresde import (
    SDE,
    VE,
    VP,
    DiagonalSDE,
    Identity,
    LogLinear,
    Noise,
    ReverseSDE,
    ScoreEstimator,
)
from solvers import Adaptive, ExponentialMultistep, StepLimit

pytestmark = pytest.mark.usefixtures("float64")

SDES = {
    "VP": lambda: DiagonalSDE(VP(eps=0.01), Identity((3,)), [1.0, 0.6, 0.8]),
    "VE": lambda: DiagonalSDE(VE(0.1, 8.0, eps=0.05), Identity((3,)), scale=[1.0, 0.5, 2.0]),
    "stopping": lambda: DiagonalSDE(LogLinear(eps=0.01), Identity((3,)), [1.0, 2.0, 1.5]),
}
each_sde = pytest.mark.parametrize("case", SDES)


def flow(case, rows=11):
    model = mixture(SDES[case](), 3)
    torch.manual_seed(0)
    z = model.marginal(torch.tensor([model.sde.T])).sample((rows,))
    return ReverseSDE(model, 0.0), z


class Elementwise(torch.nn.Module):
    """A network of which a row does not depend on how many there are."""

    def forward(self, x, level):
        return torch.tanh(3 * x + level.unsqueeze(-1)) * (1 + x.flip(-1) ** 2).rsqrt()


@each_sde
def test_a_sample_is_the_same_alone_and_in_any_company(case):  # invariant 42
    sde, (_, z) = SDES[case](), flow(case)
    reverse = ReverseSDE(Denoising(sde, Elementwise()), 0.0)
    solver = Adaptive()
    ts = -solver.times(reverse.sde)
    together = solver.solve(reverse, z, ts)
    assert len(set(together.steps.tolist())) > 1
    for rows in ([3], [8, 1, 2], list(range(10, -1, -1))):
        few = solver.solve(reverse, z[rows], ts)
        assert torch.equal(few.states, together.states[rows])
        assert torch.equal(few.steps, together.steps[rows])


@each_sde
def test_errors_follow_the_tolerance(case):
    reverse, z = flow(case)
    times = -Adaptive().times(reverse.sde)
    exact = ExponentialMultistep(grid="log_snr")
    truth = exact.integrate(reverse, z, -exact.grid(reverse.sde, 400), Noise())
    steps = []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        found = Adaptive(rtol=tolerance, atol=tolerance).solve(reverse, z, times)
        # of most samples: where two modes part, any error may become a large one
        assert (found.states - truth).abs().amax(-1).median() < 5 * tolerance
        steps.append(float(found.steps.double().mean()))
    # third order: a tenth of the error costs some two times the steps
    assert 1.2 < steps[-1] / steps[-2] < 2.6


def test_the_grid_is_only_a_first_guess():
    reverse, z = flow("stopping")
    ends = []
    for steps, grid in ((4, "log_snr"), (50, "log_snr"), (30, "uniform_time")):
        solver = Adaptive(steps, grid=grid, rtol=1e-5, atol=1e-5)
        ends.append(solver.integrate(reverse, z, -solver.times(reverse.sde), Noise()))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=2e-3)


class Cliff(ScoreEstimator):
    """Denoises to where one component is not a number, or anywhere."""

    def __init__(self, sde, below, value):
        super().__init__(sde)
        self.below, self.value = below, value

    def denoise(self, z, t, condition=None):
        bad = (torch.as_tensor(t).reshape(-1) < self.below) & (z[..., 0] > 0)
        found = torch.zeros_like(z)
        found[..., 2] = torch.where(bad, self.value, found[..., 2])
        return found


def test_who_gets_stuck_says_where_and_the_others_arrive():
    sde = SDES["VP"]()
    reverse = ReverseSDE(Cliff(sde, 0.5, torch.nan), 0.0)
    z = torch.tensor([[-1.0, 0.3, 0.2], [1.0, 0.3, 0.2], [-2.0, 0.1, 0.0]])
    solver = Adaptive(max_steps=60)
    said = r"1 of 3 .* sample 1 .* time -0\.\d+ .* component 2 has a field that is NaN"
    with pytest.raises(StepLimit, match=said) as error:
        solver.integrate(reverse, z, -solver.times(sde), Noise())
    outcome = error.value.outcome
    assert outcome.finished.tolist() == [True, False, True]
    assert outcome.steps[1] < 60
    assert outcome.lost.tolist() == [False, True, False]
    assert outcome.worst[1] == 2
    assert float(outcome.times[1]) == pytest.approx(-0.5, abs=0.05)
    assert torch.isfinite(outcome.states).all()
    healthy = solver.solve(reverse, z[[0, 2]], -solver.times(sde))
    assert torch.equal(healthy.states, outcome.states[[0, 2]])


def test_noise_is_refused():
    model = gaussian(SDES["VP"](), 0)
    with pytest.raises(ValueError, match="eta: expected 0"):
        Adaptive(eta=1.0).sample(model, (2,))


def test_finished_samples_leave_the_batch():
    sizes = []

    class Network(torch.nn.Module):
        def forward(self, x, level):
            sizes.append(len(x))
            return torch.tanh(3 * x) * (x[:, :1] > 0)

    torch.manual_seed(0)
    model = Denoising(SDES["VP"](), Network())
    Adaptive(rtol=1e-5, atol=1e-5).sample(model, (64,))
    assert sizes[0] == 64
    assert sizes[-1] < 64
    assert sizes == sorted(sizes, reverse=True)


class Equation(SDE):
    """``y' = rate(t, y)``, nothing known beforehand."""

    def __init__(self, dim, rate):
        super().__init__((dim,))
        self.rate = rate

    def f(self, t, y):
        return self.rate(t, y)

    def g(self, t, y):
        return torch.zeros_like(y)

    @property
    def stochastic(self):
        return False


def test_a_step_that_overflows_is_tried_shorter():
    y, times = torch.tensor([[3000.0], [1.0]]), torch.tensor([0.0, 1.0])
    equation = Equation(1, lambda t, y: -(y**3))
    found = Adaptive(rtol=1e-3, atol=1e-6).integrate(equation, y.float(), times, Noise())
    torch.testing.assert_close(found.double(), y / (1 + 2 * y**2).sqrt(), rtol=1e-2, atol=0)


def test_relative_errors_do_not_depend_on_units():
    equation = Equation(3, lambda t, y: torch.sin(5 * t) * y.flip(-1))
    y, times, unit = torch.tensor([[1.0, -0.3, 0.2]]), torch.tensor([0.0, 3.0]), 2.0**20
    solver = Adaptive(rtol=1e-4, atol=1e-300)
    small, large = (solver.solve(equation, scale * y, times) for scale in (1.0, unit))
    assert torch.equal(small.steps, large.steps)
    assert torch.equal(unit * small.states, large.states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(100.0, 0.2), (1.01, 0.9 * 1.01 ** (-1 / 3)), (0.99, 0.9 * 0.99 ** (-1 / 3)),
     (0.3, 0.9 * 0.3 ** (-1 / 3)), (1e-4, 5.0)],
)  # fmt: skip
def test_a_step_is_taken_and_the_next_one_chosen_by_its_error(ratio, factor, dtype):
    """``y' = q t^2`` in one step from 0: the end is ``y + q h^3/3``, its error ``q h^3/6``."""
    h = 1 / 8
    y, q = torch.tensor([[2.0, -3.0, 0.1]], dtype=dtype), 900 * torch.tensor([1.0, 2.0, -0.5])
    # the first grows, the second shrinks, and the third changes its sign
    larger = torch.maximum(y.abs(), (y + q * h**3 / 3).abs())
    ratios = (q.abs() * h**3 / 6 / (0.2 + 0.7 * larger))[0]
    unit = float(ratios.double().square().mean().sqrt()) / ratio
    solver = Adaptive(8, atol=0.2 * unit, rtol=0.7 * unit, max_steps=2)
    equation = Equation(3, lambda t, y: (q * t**2).to(y).expand_as(y))
    found = solver.solve(equation, y, torch.tensor([0.0, 1.0]))
    reached = h * factor if ratio > 1 else h + h * factor
    close = {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(found.times, torch.tensor([reached]), **close)
    torch.testing.assert_close(found.states.double(), y + q * reached**3 / 3, **close)
    assert found.steps.tolist() == [2]


def test_it_starts_anew_where_rates_jump():
    reverse, z = flow("stopping")
    ends = [-reverse.sde.T, *sorted(-t for t in reverse.sde.breakpoints()), -reverse.sde.eps]
    solver = Adaptive(3)
    whole = solver.solve(reverse, z, torch.tensor(ends))
    steps = torch.zeros(len(z), dtype=torch.long)
    for a, b in itertools.pairwise(ends):
        part = solver.solve(reverse, z, torch.tensor([a, b]))
        z, steps = part.states, steps + part.steps
    torch.testing.assert_close(whole.states, z, rtol=0, atol=1e-6)
    assert torch.equal(whole.steps, steps)


class Counted(Cliff):
    """Counts how often it is asked."""

    asked = 0

    def denoise(self, z, t, condition=None):
        self.asked += 1
        return super().denoise(z, t, condition)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("below", [2.0, 1.0, 0.5])
def test_fields_that_are_no_numbers_stop_it_at_once(below, value, dtype):
    """From the start, or from some time on."""
    sde = SDES["VP"]()
    model = Counted(sde, below, value)
    y, ts = torch.ones(2, 3, dtype=dtype), -Adaptive().times(sde)
    outcome = Adaptive().solve(ReverseSDE(model, 0.0), y, ts)
    assert outcome.lost.all()
    assert (outcome.worst == 2).all()
    assert torch.isfinite(outcome.states).all()
    torch.testing.assert_close(outcome.times, torch.full((2,), -min(below, 1.0)), rtol=0.1, atol=0)
    assert model.asked <= (3 if below > 1 else 150)
    with pytest.raises(StepLimit, match=r"2 of 2 .* sample 0 .* component 2 has a field that is"):
        Adaptive().sample(model, (2,), generator=Ones())


class Ones(Noise):
    def __call__(self, like):
        return torch.ones_like(like)


def test_what_changes_too_fast_says_so_still():
    equation = Equation(1, lambda t, y: 1e6 * torch.sin(1e6 * t) + 0 * y)
    outcome = Adaptive(max_steps=20).solve(equation, torch.ones(1, 1), torch.tensor([0.0, 1.0]))
    assert not outcome.lost.any()
    with pytest.raises(StepLimit, match="component 0 changes too fast"):
        raise StepLimit(outcome, 20)
