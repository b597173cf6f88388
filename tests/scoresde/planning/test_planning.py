"""Plans keep their promises on the closed-form bed."""

import math

import attrs
import pytest
import torch
from laws import law

from estimators import Gaussian
from scoresde import VP, DiagonalSDE, Haar, Identity, LogLinear
from scoresde.grid import GRIDS
from scoresde.planning import OptimisedGrid, equal, gaussian_bed, optimised_grid, plan, spectra
from scoresde.planning.gaussian_bed import Bed, Draft, minimise
from solvers import DDIM, ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

BASIS = Haar((1, 8, 8), 2)
BANDS = {
    "a2": torch.tensor([40.0, 10.0, 6.0, 3.0]).double(),
    "d2": torch.linspace(0.6, 0.1, 12).double(),
    "d1": torch.linspace(0.1, 0.01, 48).double(),
}
FULL = torch.cat(list(BANDS.values()))


def measured(planned):
    """``W2^2 / trace`` of the samples of a plan, components being independent."""
    rotation = BASIS(torch.eye(64).reshape(64, 1, 8, 8)).mT
    data = Gaussian(planned.sde, torch.zeros(1, 8, 8), rotation.mT @ torch.diag(FULL) @ rotation)
    solver = ExponentialMultistep(len(planned.times) - 1, grid=planned.grid)
    _, spread = law(solver, data)
    own = (rotation @ spread @ rotation.mT).diagonal().sqrt()
    return float((own - FULL.sqrt()).square().sum() / FULL.sum())


def test_predicted_error_is_the_true_one():
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), cost=4.0, quantiles=64)
    assert planned.cost <= 4.0
    assert measured(planned) == pytest.approx(planned.error, rel=1e-3)


@pytest.mark.parametrize("quantiles", [2, 64])
def test_a_sample_of_a_spectrum_stands_for_all_of_it(quantiles):
    """Bands weigh what they have of components, however many eigenvalues are known of each."""
    known = {"a2": BANDS["a2"], "d2": torch.tensor([0.6, 0.1]), "d1": torch.linspace(0.1, 0.01, 8)}
    whole = {
        name: values.repeat_interleave(size // len(values))
        for (name, values), size in zip(known.items(), BASIS.blocks.sizes.values(), strict=True)
    }
    one, other = (
        plan(BASIS, LogLinear(), bands, DDIM(), evaluations=6, quantiles=quantiles)
        for bands in (known, whole)
    )
    assert one.steps == other.steps
    assert one.error == pytest.approx(other.error, rel=1e-6)
    assert one.handover == pytest.approx(other.handover, rel=1e-6)
    torch.testing.assert_close(one.times, other.times, rtol=0, atol=1e-5)


def test_32_eigenvalues_represent_a_band_unless_told_otherwise():
    def error(**quantiles):
        return plan(BASIS, LogLinear(), BANDS, DDIM(), evaluations=3, **quantiles).error

    assert error() == error(quantiles=32) != error(quantiles=33)


def test_plan_beats_equal_steps_at_no_more_cost():
    std = torch.stack([band.mean().sqrt() for band in BANDS.values()])
    even = equal(BASIS, LogLinear(), 3, std)
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), cost=even.cost)
    assert measured(planned) < measured(even) / 4


def test_wanted_error_is_reached_at_less_cost_than_a_smaller_one():
    loose, tight = (
        plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), error=error)
        for error in (3e-2, 1e-3)
    )
    assert loose.error <= 3e-2
    assert tight.error <= 1e-3
    assert loose.cost < tight.cost


def test_the_papers_plan():
    paper = equal(BASIS, LogLinear(), 5)
    assert paper.steps == (5, 5, 5)
    assert [stage.start for stage in paper.sde.stages()] == pytest.approx([1, 2 / 3, 1 / 3])
    assert paper.cost == pytest.approx(5 * (1 + 1 / 4 + 1 / 16))
    assert len(ExponentialMultistep(15, grid=paper.grid).times(paper.sde)) == 16


def test_handover_is_half_the_snr_times_the_power():
    planned = plan(BASIS, LogLinear(), BANDS, ExponentialMultistep(), evaluations=5)
    snr = torch.tensor(-10.0).exp()  # in units of each band's power, at the end of its clock
    assert planned.handover == pytest.approx(float(snr) * (12 + 48) / 2, rel=1e-6)
    # a step costs what is there by then
    active = zip(planned.steps, (4, 16, 64), strict=True)
    assert planned.cost == pytest.approx(sum(n * a for n, a in active) / 64)


def test_spectra_are_eigenvalues():
    x = torch.randn(500, 1, 8, 8) @ torch.randn(8, 8)
    found = spectra(BASIS, x)
    z = BASIS(x)
    for name, block in BASIS.blocks.slices.items():
        own = torch.linalg.eigvalsh(torch.cov(z[:, block].mT, correction=0)).flip(0)
        torch.testing.assert_close(found[name], own)


@pytest.mark.parametrize("solver", [DDIM(8), ExponentialMultistep(8)])
@pytest.mark.parametrize("case", ["uniform", "stopping"])
def test_tuned_times_beat_every_other_grid(solver, case):
    speeds = [1.0, 1.0, 1.0] if case == "uniform" else [1.0, 2.0, 1.5]
    sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 1, "c": 1}), speeds)
    variances = torch.tensor([1.0, 0.1, 0.01])
    data = Gaussian(sde, torch.zeros(3), torch.diag(variances))

    def error(grid):
        _, spread = law(attrs.evolve(solver, grid=grid), data)
        return float((spread.diagonal().sqrt() - variances.sqrt()).square().sum())

    tuned = OptimisedGrid(variances, solver)
    times = tuned(sde, 8)
    assert set(sde.breakpoints()) <= set(times.tolist())
    assert times[0] == sde.T
    assert float(times[-1]) == pytest.approx(sde.eps)
    assert error(tuned) < min(error(grid) for grid in GRIDS.values()) / 1.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_are_tuned_in_double_precision_whatever_the_default(dtype):
    """Differences of errors of 1e-6 decide what is best."""

    def times():
        schedule = LogLinear()
        sde = DiagonalSDE(schedule, Identity((3,)))
        moved = OptimisedGrid(torch.tensor([1.0, 0.1, 0.01], dtype=dtype), DDIM())(sde, 6)
        bands = {name: band.to(dtype) for name, band in BANDS.items()}
        return moved, plan(Haar((1, 8, 8), 2), schedule, bands, DDIM(), evaluations=5).times

    wide = times()
    torch.set_default_dtype(torch.float32)
    for one, other in zip(times(), wide, strict=True):
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
    bed = Bed(BASIS, LogLinear(), BANDS, ExponentialMultistep(), 8)
    sde, variances = DiagonalSDE(VP(), Identity((3,))), torch.tensor([1.0, 0.1, 0.01])

    def tuned(smooth):
        monkeypatch.setattr(gaussian_bed, "SMOOTH", smooth)
        monkeypatch.setattr(optimised_grid, "SMOOTH", smooth)
        times = OptimisedGrid(variances, DDIM())(sde, 8)
        first = GRIDS["arctan_log_snr"](sde, 8).diff().abs().log()
        draft = bed.tune(Draft.even([3, 3, 3]), 50)
        return roughness(times.diff().abs().log() - first), roughness(draft.logits), draft.error

    alike, logits, error = tuned(gaussian_bed.SMOOTH)
    freely, free_logits, least = tuned(0.0)
    assert alike < 0.95 * freely
    assert logits < free_logits
    assert error < 1.01 * least


def test_a_stage_grows_by_halves_of_its_longest_steps():
    draft = Draft((2, 3), torch.tensor([5.0, 5.0, 0.0, 2.0, 1.0]).double())
    once, twice = draft.grown(1, 1), draft.grown(1, 2)
    assert (once.steps, twice.steps) == ((2, 4), (2, 5))
    half = 2.0 - math.log(2)
    torch.testing.assert_close(once.logits, torch.tensor([5, 5, 0, half, half, 1]).double())
    # the first of two that are alike
    quarter = half - math.log(2)
    grown = torch.tensor([5, 5, 0, quarter, quarter, half, 1]).double()
    torch.testing.assert_close(twice.logits, grown)
    assert draft.grown(0, 1).steps == (3, 3)
    assert once.error == math.inf


def test_least_budgets_will_do_and_less_will_not():
    def made(**budget):
        return plan(BASIS, LogLinear(), BANDS, DDIM(), **budget)

    assert made(evaluations=3).steps == (1, 1, 1)
    least = (4 + 16 + 64) / 64
    assert made(cost=least).cost == least
    with pytest.raises(ValueError, match="evaluations: expected at least 3, got 2"):
        made(evaluations=2)
    with pytest.raises(ValueError, match=r"cost: expected at least 1.31, got 1.3"):
        made(cost=1.3)
    with pytest.raises(ValueError, match="solver: expected a deterministic one"):
        plan(BASIS, LogLinear(), BANDS, DDIM(eta=1.0), cost=4.0)
    with pytest.raises(ValueError, match=r"bands\['d1'\]: expected variances, at least 0"):
        plan(BASIS, LogLinear(), {**BANDS, "d1": -BANDS["d1"]}, DDIM(), cost=4.0)


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
