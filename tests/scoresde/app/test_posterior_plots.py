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


def test_bars_are_shares_of_ranks():
    ranks = torch.arange(100.0).repeat(4).reshape(-1, 1)
    figure = rank_histograms({"even": ranks, "low": ranks / 2}, 99)
    even, low = (
        [patch.get_height() for patch in axis.patches if patch.get_width() < 0.5]
        for axis in figure.axes
    )
    assert even == [20.0] * 20
    assert sum(low[:10]) == pytest.approx(400, abs=8)


def test_a_curve_for_every_coverage():
    levels = torch.linspace(0, 1, 5)
    figure = coverage_curves({"exact": levels, "narrow": levels**2}, levels, count=100)
    lines = figure.axes[0].lines
    assert lines[2].get_ydata() == pytest.approx((levels**2).tolist())
    with pytest.raises(ValueError, match="covered: expected 5 shares"):
        coverage_curves(levels[:3], levels, count=100)
