"""Plans keep their promises on data whose errors have a closed form."""

import itertools
import math

import attrs
import pytest
import torch
from exact_moments import sample_moments

from estimators import Gaussian
from scoresde import (
    CLD,
    EDM,
    HOLD,
    PSLD,
    VP,
    Clock,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    LogLinear,
)
from scoresde.planning import OptimisedGrid, equal, optimised_grid, plan, replan
from scoresde.planning.draft import Draft
from scoresde.planning.draft_evaluator import DraftEvaluator
from scoresde.planning.optimised_grid import minimise
from scoresde.sampling.grid import GRIDS
from scoresde.sdes.fronts import along, front
from solvers import DDIM, ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

BASIS = Haar((1, 8, 8), 2)
BANDS = {
    "a2": torch.tensor([40.0, 10.0, 6.0, 3.0]).double(),
    "d2": torch.linspace(0.6, 0.1, 12).double(),
    "d1": torch.linspace(0.1, 0.01, 48).double(),
}
FULL = torch.cat(list(BANDS.values()))


def measured(planned, order=3):
    """``W2^2 / trace`` of the samples of a plan, components being independent."""
    rotation = BASIS(torch.eye(64).reshape(64, 1, 8, 8)).mT
    data = Gaussian(planned.sde, torch.zeros(1, 8, 8), rotation.mT @ torch.diag(FULL) @ rotation)
    solver = ExponentialMultistep(len(planned.times) - 1, grid=planned.grid, order=order)
    _, spread = sample_moments(solver, data)
    own = (rotation @ spread @ rotation.mT).diagonal().sqrt()
    return float((own - FULL.sqrt()).square().sum() / FULL.sum())


def test_predicted_error_is_the_true_one():
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), cost=2.7)
    assert planned.cost <= 4.0
    assert measured(planned) == pytest.approx(planned.error, rel=1e-3)


def same(one, other):
    assert one.steps == other.steps
    assert torch.equal(one.times, other.times)
    assert one.sde.drop == other.sde.drop
    assert torch.equal(one.sde.scale, other.sde.scale)


def test_a_sample_of_a_spectrum_stands_for_all_of_it():
    """Bands weigh what they have of components, however many eigenvalues are known of each."""
    known = {"a2": BANDS["a2"], "d2": torch.tensor([0.6, 0.1]), "d1": torch.linspace(0.1, 0.01, 8)}
    whole = {
        name: values.repeat_interleave(size // len(values))
        for (name, values), size in zip(known.items(), BASIS.blocks.sizes.values(), strict=True)
    }
    one, other = (
        plan(BASIS, LogLinear(), bands, DDIM(), evaluations=6) for bands in (known, whole)
    )
    same(one, other)
    assert one.error == pytest.approx(other.error, rel=1e-9)
    assert one.prior_loss == pytest.approx(other.prior_loss, rel=1e-9)


def test_plans_do_not_depend_on_what_rounding_is():
    """One machine's logarithms are not another's, to the last bit."""
    torch.manual_seed(0)
    base = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(order=2), cost=2.7)
    noisy = {k: v * (1 + 1e-10 * torch.randn(len(v))) for k, v in BANDS.items()}
    same(plan(BASIS, LogLinear(), noisy, ExponentialMultistep(order=2), cost=2.7), base)


def test_plans_do_not_depend_on_by_how_many_eigenvalues_bands_are_known():
    torch.manual_seed(0)
    basis = Haar((1, 16, 16), 1)
    spread = {"a1": 1.0, "d1": 0.6}  # of logarithms
    bands = {
        name: torch.exp(spread[name] * torch.randn(size))
        for name, size in basis.blocks.sizes.items()
    }
    bands["d1"] = bands["d1"] / 30
    plans = []
    for count in (8, 16, 32):
        few = {
            name: torch.stack([part.mean() for part in v.sort().values.tensor_split(count)])
            for name, v in bands.items()
        }
        plans.append(plan(basis, LogLinear(), few, ExponentialMultistep(order=2), cost=3.0))
    assert len({made.steps for made in plans}) == 1
    for made in plans[1:]:
        torch.testing.assert_close(made.times, plans[0].times, rtol=0, atol=0.05)


def test_plan_beats_equal_steps_at_no_more_cost():
    std = torch.stack([band.mean().sqrt() for band in BANDS.values()])
    even = equal(BASIS, LogLinear(), 3, std)
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), cost=even.cost)
    assert measured(planned) < measured(even) / 4
    assert math.isnan(even.error)  # of no spectra
    assert math.isnan(even.prior_loss)


def test_wanted_error_is_reached_at_less_cost_than_a_smaller_one():
    loose, tight = (
        plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), error=error)
        for error in (1e-1, 3e-3)
    )
    assert loose.error <= 1e-1
    assert tight.error <= 3e-3
    assert loose.cost < tight.cost


def test_the_papers_plan():
    paper = equal(BASIS, LogLinear(), 5)
    assert paper.steps == (5, 5, 5)
    assert [stage.start for stage in paper.sde.stages()] == pytest.approx([1, 2 / 3, 1 / 3])
    assert paper.cost == pytest.approx(5 * (1 + 1 / 4 + 1 / 16))
    assert len(ExponentialMultistep(15, grid=paper.grid).times(paper.sde)) == 16


def test_the_prior_loss_is_half_the_snr_times_the_power():
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), evaluations=5)
    snr = torch.tensor(-10.0).exp()  # in units of each band's power, at the end of its clock
    assert planned.prior_loss == pytest.approx(float(snr) * (12 + 48) / 2, rel=1e-3)
    # a step costs what is there by then
    active = zip(planned.steps, (4, 16, 64), strict=True)
    assert planned.cost == pytest.approx(sum(n * a for n, a in active) / 64)


@pytest.mark.covering(1)
@pytest.mark.parametrize("solver", [DDIM(8), ExponentialMultistep(8)])
@pytest.mark.parametrize("case", ["uniform", "stopping"])
def test_tuned_times_beat_every_other_grid(solver, case):
    speeds = [1.0, 1.0, 1.0] if case == "uniform" else [1.0, 2.0, 1.5]
    sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 1, "c": 1}), speeds)
    variances = torch.tensor([1.0, 0.1, 0.01])
    data = Gaussian(sde, torch.zeros(3), torch.diag(variances))

    def error(grid):
        _, spread = sample_moments(attrs.evolve(solver, grid=grid), data)
        return float((spread.diagonal().sqrt() - variances.sqrt()).square().sum())

    tuned = OptimisedGrid(variances, solver)
    times = tuned(sde, 8)
    assert set(sde.breakpoints()) <= set(times.tolist())
    assert times[0] == sde.T
    assert float(times[-1]) == pytest.approx(sde.eps)
    assert error(tuned) < min(error(grid) for grid in GRIDS.values()) / 1.05


def test_times_are_tuned_in_double_precision_whatever_the_default():
    """And whatever data are given in. Differences of errors of 1e-6 decide what is best."""

    def times(dtype):
        schedule = LogLinear()
        sde = DiagonalSDE(schedule, Identity((3,)))
        moved = OptimisedGrid(torch.tensor([1.0, 0.1, 0.01]).float().to(dtype), DDIM())(sde, 6)
        bands = {name: band.float().to(dtype) for name, band in BANDS.items()}
        return moved, plan(Haar((1, 8, 8), 2), schedule, bands, DDIM(), evaluations=5).times

    wide = times(torch.float64)
    torch.set_default_dtype(torch.float32)
    for one, other in zip(times(torch.float32), wide, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def valley(x):
    """Rosenbrock's, which steps of a fixed length leave."""
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def test_the_best_point_of_a_search_is_kept():
    assert valley(minimise(valley, torch.full((6,), -1.5), 60)) < 1e-3
    start, seen = torch.tensor([3.0]), []

    def lost(x):
        seen.append((x - 1).square().sum())
        return seen[-1] if len(seen) < 3 else seen[-1] * torch.nan

    found = minimise(lost, start, 20)
    assert (found - 1).square().sum() == min(seen[:2])
    assert not found.requires_grad


def roughness(lengths):
    return float(lengths.diff().square().sum())


def test_steps_are_made_like_their_neighbours_at_hardly_any_loss(monkeypatch):
    sde, variances = DiagonalSDE(VP(), Identity((3,))), torch.tensor([1.0, 0.1, 0.01])

    def tuned(smooth):
        monkeypatch.setattr(optimised_grid, "SMOOTH", smooth)
        times = OptimisedGrid(variances, DDIM())(sde, 8)
        first = GRIDS["arctan_log_snr"](sde, 8).diff().abs().log()
        return roughness(times.diff().abs().log() - first)

    assert tuned(optimised_grid.SMOOTH) < 0.95 * tuned(0.0)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), EDM()])
def test_any_schedule_is_planned_on(schedule):
    made = plan(BASIS, schedule, BANDS, ExponentialMultistep(order=2), cost=3.0)
    assert made.cost <= 3
    assert made.times[0] == schedule.T
    assert made.times[-1] == schedule.eps
    assert measured(made) < measured(equal(BASIS, schedule, 2, made.sde.scale))


def test_other_steps_for_an_sde_that_is_kept():
    solver = ExponentialMultistep(order=2)
    first = plan(BASIS, LogLinear(), BANDS, solver, evaluations=3)
    more = replan(first.sde, BANDS, solver, cost=2.7)
    assert more.sde is first.sde
    assert more.cost <= 2.7
    assert more.error < first.error / 2
    starts = [stage.start for stage in first.sde.stages()]
    edges = [0, *torch.tensor(more.steps).cumsum(0).tolist()]
    assert more.times[edges].tolist() == [*starts, first.sde.eps]
    uniform = DiagonalSDE(LogLinear(), BASIS, scale=first.sde.scale)
    flat = replan(uniform, BANDS, solver, evaluations=6)
    assert 2 < flat.steps[0] == flat.cost <= 6
    assert measured(flat, order=2) == pytest.approx(flat.error, rel=1e-3)
    one_scale = DiagonalSDE(LogLinear(), BASIS, drop=first.sde.drop)
    assert replan(one_scale, BANDS, solver, evaluations=6).sde is one_scale


SCALE = torch.stack([band.mean().sqrt() for band in BANDS.values()])
CLOCKS = {
    "one after the other": DiagonalSDE(LogLinear(), BASIS, front(range(3)), SCALE),
    "delayed, dropped": DiagonalSDE(
        LogLinear(), BASIS, Clock([4 / 3, 2, 2], [0.25, 0.2, 0]), SCALE, [1.0, 0.7, 0.5]
    ),
    "with a pause": DiagonalSDE(LogLinear(), BASIS, Clock([3, 3, 3], [2 / 3, 0, 0]), SCALE),
    "fine first": DiagonalSDE(LogLinear(), BASIS, front([2, 1, 0], overlap=0.2), SCALE),
    "as wide as data": DiagonalSDE(
        LogLinear(), BASIS, [1, 1, 1], SCALE, [1.0, 0.7, 0.6], std=SCALE
    ),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CLOCKS)
def test_other_steps_on_clocks_that_start_and_stop(case, dtype):
    """They are between breakpoints, and their error is the true one."""
    sde, solver = CLOCKS[case], ExponentialMultistep(order=2)
    bands = {name: band.to(dtype) for name, band in BANDS.items()}
    made = replan(sde, bands, solver, evaluations=10)
    assert made.sde is sde
    assert sum(made.steps) == len(made.times) - 1 <= 10
    edges = [0, *torch.tensor(made.steps).cumsum(0).tolist()]
    assert made.times[edges].tolist() == [sde.T, *reversed(sde.breakpoints()), sde.eps]
    assert measured(made, order=2) == pytest.approx(made.error, rel=2e-3)
    by_grid = [attrs.evolve(solver, steps=10, grid=name).times(sde) for name in GRIDS]
    others = [measured(attrs.evolve(made, times=times), order=2) for times in by_grid]
    assert made.error < min(others)


def test_clocks_of_components_are_no_bands():
    rows = front(along((1, 8, 8), axis=-2))
    with pytest.raises(
        ValueError, match=r"sde: expected a clock that all have, or one .* 64 clocks"
    ):
        replan(DiagonalSDE(LogLinear(), BASIS, rows), BANDS, DDIM(), evaluations=20)
    # units of components are those of their block
    late, sizes = front(range(3), 0.5), torch.tensor([4, 12, 48])
    units = SCALE, SCALE.repeat_interleave(sizes)
    one, other = (
        replan(DiagonalSDE(LogLinear(), BASIS, late, scale), BANDS, DDIM(), evaluations=6)
        for scale in units
    )
    assert one.steps == other.steps
    torch.testing.assert_close(one.times, other.times, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [CLD, PSLD, HOLD])
def test_steps_in_phase_space_are_not_planned(kind, dtype):
    """There errors of samples are others: noise of velocities ends in them, too."""
    sde = kind(VP(), BASIS).to(dtype)
    wanted = rf"sde: expected .* data alone.*got '?{kind.__name__}, of {sde.copies} copies"
    bands = {name: band.to(dtype) for name, band in BANDS.items()}
    with pytest.raises(ValueError, match=wanted):
        replan(sde, bands, DDIM(), evaluations=4)
    with pytest.raises(ValueError, match=wanted):
        OptimisedGrid(FULL.to(dtype), DDIM())(sde, 4)


TINY = {
    "a1": torch.tensor([51.5, 20.1, 17.7, 6.15]).double(),
    "d1": torch.tensor([8.9, 4.1, 3.3, 2.5, 1.7, 0.97, 0.87, 0.5, 0.45, 0.07, 0.05, 0.01]).double(),
}


def test_planned_delays_are_the_best_of_all():
    basis, solver = Haar((1, 4, 4), 1), ExponentialMultistep(order=2)
    bands = {name: band.float() for name, band in TINY.items()}
    without, made = (
        plan(basis, VP(), bands, solver, evaluations=5, delays=delays) for delays in (False, True)
    )
    assert without.sde.clock.delays is None
    assert made.error < without.error / 1.5
    late, last = made.sde.clock.delays
    assert 0.02 < late < made.sde.drop[1]
    assert last == 0
    # clocks stop when their block is dropped
    stops = made.sde.clock(torch.tensor([1.0, made.sde.drop[1]]).unsqueeze(-1))
    assert stops.diagonal().tolist() == pytest.approx([1, 1], abs=1e-9)
    evaluator = DraftEvaluator(basis, VP(), bands, solver)
    ends, reaches, powers, delays = range(20, 49, 6), range(6, 25, 6), (-4, -2, 0), range(0, 49, 8)
    drafts = [
        Draft(made.steps, tuple(parameters), (delay,))
        for *parameters, delay in itertools.product(ends, reaches, powers, delays)
    ]
    evaluator.errors(drafts[:2])  # that many can be measured together is known by these
    errors = evaluator.errors(drafts)
    assert made.error < 1.05 * evaluator.exact(drafts[errors.index(min(errors))])


def test_least_budgets_will_do_and_less_will_not():
    def made(**budget):
        return plan(BASIS, LogLinear(), BANDS, DDIM(), **budget)

    assert made(evaluations=3).steps == (1, 1, 1)
    least = (4 + 16 + 64) / 64
    assert made(cost=least).cost == least
    some = made(cost=2.0)
    assert made(cost=some.cost).error == some.error
    with pytest.raises(ValueError, match="evaluations: expected at least 3, got 2"):
        made(evaluations=2)
    with pytest.raises(ValueError, match=r"cost: expected at least 1.31, got 1.3"):
        made(cost=1.3)
    with pytest.raises(ValueError, match="solver: expected a deterministic one"):
        plan(BASIS, LogLinear(), BANDS, DDIM(eta=1.0), cost=4.0)
    with pytest.raises(ValueError, match=r"bands\['d1'\]: expected variances, at least 0"):
        plan(BASIS, LogLinear(), {**BANDS, "d1": -BANDS["d1"]}, DDIM(), cost=4.0)
    with pytest.raises(ValueError, match="bands: expected data that vary"):
        plan(BASIS, LogLinear(), {k: 0 * v for k, v in BANDS.items()}, DDIM(), cost=4.0)
    with pytest.raises(ValueError, match="kurtosis: expected those of"):
        made(cost=4.0, kurtosis={"d3": 4.0})
    with pytest.raises(ValueError, match=r"kurtosis\['d1'\]: expected"):
        made(cost=4.0, kurtosis={"d1": math.nan})


def test_a_band_may_be_of_no_power():
    """All steps are for the others."""
    flat = plan(BASIS, LogLinear(), {**BANDS, "d1": torch.zeros(48)}, DDIM(), evaluations=6)
    assert flat.steps[2] == 1
    assert flat.times.isfinite().all()
    assert 0 < flat.error < 1
    scale = flat.sde.scale
    torch.testing.assert_close(scale[2] / scale[0], torch.tensor(1e-4).double())
    sde = DiagonalSDE(VP(), Identity((2,)))
    assert OptimisedGrid(torch.tensor([1.0, 0.0]), DDIM())(sde, 3).isfinite().all()


def test_tuned_times_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="variances: expected finite numbers, at least 0"):
        OptimisedGrid(torch.tensor([-1.0]), DDIM())
    with pytest.raises(ValueError, match="solver: expected a deterministic one"):
        OptimisedGrid(torch.tensor([1.0]), DDIM(eta=1.0))
    sde = DiagonalSDE(VP(), Identity((3,)))
    with pytest.raises(ValueError, match="variances: expected a last axis"):
        OptimisedGrid(torch.ones(2), DDIM())(sde, 5)
