"""Pictures of posteriors."""

import pytest
import torch

from scoresde.app.posterior_plots import corner, coverage_curves, rank_histograms


def test_a_corner_shows_every_parameter_and_every_two():
    samples = torch.randn(50, 3)
    figure = corner({"good": samples, "bad": samples + 1}, torch.zeros(3), ["a", "b", "c"])
    shown = [axis for axis in figure.axes if axis.axison]
    assert len(shown) == 6
    assert [axis.get_xlabel() for axis in figure.axes[-3:]] == ["a", "b", "c"]
    dots = figure.axes[3].collections
    seen = torch.tensor(dots[0].get_offsets().data.tolist())
    torch.testing.assert_close(seen, samples[:, :2])
    assert corner(torch.randn(5, 1, 1)).axes[0].axison
    for wrong in ({"truth": torch.zeros(2)}, {"names": ["a"]}):
        with pytest.raises(ValueError, match="expected 3"):
            corner(samples, **wrong)
    with pytest.raises(ValueError, match="samples: expected"):
        corner({"a": samples, "b": samples[:, :2]})


def bars_and_band(axis):
    """Heights of bars, and the least and largest of them that are in the band."""
    (bars,), (band,) = axis.containers, (v for v in axis.patches if hasattr(v, "get_data"))
    return torch.tensor([bar.get_height() for bar in bars]), *map(
        torch.tensor, (band.get_data().baseline, band.get_data().values)
    )


def test_bars_are_shares_of_ranks():
    ranks = torch.arange(100.0).repeat(4).reshape(-1, 1)
    figure = rank_histograms({"even": ranks, "low": ranks / 2}, 99)
    even, low = (bars_and_band(axis)[0] for axis in figure.axes)
    assert even.tolist() == [4.0] * 20  # ranks each
    assert sum(low[:10]) == pytest.approx(80, abs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("draws", [7, 30, 50])
def test_bars_of_exact_posteriors_are_in_the_band_where_ranks_do_not_divide(draws, dtype):
    chance = torch.Generator().manual_seed(0)
    random = torch.randint(0, draws + 1, (1000, 2), generator=chance).to(dtype)
    even = torch.arange(draws + 1, dtype=dtype).repeat(20)
    drawn = [bars_and_band(axis) for axis in rank_histograms(random, draws).axes]
    out = sum(int(((bars < low) | (bars > high)).sum()) for bars, low, high in drawn)
    assert out <= 3  # of 40, in one of 2,000 figures
    # as wide as 99% of a bar's share are, whatever this is
    bars, low, high = bars_and_band(rank_histograms(even.unsqueeze(1), draws).axes[0])
    assert bars.tolist() == [20.0] * len(bars)
    held = torch.linspace(0, draws + 1, len(bars) + 1).round().diff().double()
    share, count = held / (draws + 1), len(even)
    wide = 2 * 2.576 * (count * share * (1 - share)).sqrt() / held
    torch.testing.assert_close(high - low, wide, rtol=0.1, atol=0)
    torch.testing.assert_close((low + high) / 2, torch.full_like(low, 20), rtol=0, atol=1)


def test_ranks_beyond_the_draws_have_no_picture():
    with pytest.raises(ValueError, match="ranks: expected numbers from 0 to 9"):
        rank_histograms(torch.full((5, 1), torch.nan), 9)


def test_a_curve_for_every_coverage():
    levels = torch.linspace(0, 1, 5)
    figure = coverage_curves({"exact": levels, "narrow": levels**2}, levels, count=100)
    lines = figure.axes[0].lines
    assert lines[2].get_ydata() == pytest.approx((levels**2).tolist())
    with pytest.raises(ValueError, match="covered: expected 5 shares"):
        coverage_curves(levels[:3], levels, count=100)
