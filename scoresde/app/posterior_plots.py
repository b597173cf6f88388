"""Pictures of posteriors: corner plots and calibration. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from scoresde.app.plots import new_figure
from scoresde.checks import expect, whole
from scoresde.metrics.calibration import expect_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN, _BINS = 2000, 30
"""Dots of a panel, of which more hide each other; bins of a histogram."""


def corner(
    samples: Tensor | Mapping[str, Tensor],
    truth: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """A corner plot: histograms of every parameter, and points by every two.

    Args:
        samples: ``(N, *parameter_shape)``; several of them by name, on top of each other.
        truth: ``(*parameter_shape)``, marked.
        names: Of parameters, flattened.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If shapes do not fit each other.

    Example:
        >>> import torch
        >>> from scoresde.app.posterior_plots import corner
        >>> figure = corner(torch.randn(100, 3), truth=torch.zeros(3))
    """
    several = samples if isinstance(samples, Mapping) else {"": samples}
    flat = {name: v.detach().flatten(1).cpu() for name, v in several.items()}
    m = next(iter(flat.values())).shape[1]
    same = all(v.shape[1] == m and len(v) > 0 for v in flat.values())
    expect(same, "samples", f"({m} parameters each)", [tuple(v.shape) for v in flat.values()])
    marks = [None] * m if truth is None else truth.detach().flatten().tolist()
    expect(len(marks) == m, "truth", f"{m} parameters", len(marks))
    labels = [f"parameter {i}" for i in range(m)] if names is None else list(names)
    expect(len(labels) == m, "names", f"{m} of them", labels)
    figure = new_figure(1.9 * m + 0.6, 1.9 * m + 0.6)
    axes: Any = figure.subplots(m, m, squeeze=False)
    for i in range(m):
        for j in range(m):
            _panel(axes[i, j], flat, i, j, (marks[i], marks[j]))
            axes[i, j].set(
                xlabel=labels[j] if i == m - 1 else "",
                ylabel=labels[i] if j == 0 < i else "",
            )
    if len(flat) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")
    return figure


def _panel(axis: Any, flat: Mapping[str, Tensor], i: int, j: int, marks: Sequence[Any]) -> None:
    axis.tick_params(labelsize=7)
    if j > i:
        axis.set_axis_off()
        return
    for index, (name, v) in enumerate(flat.items()):
        if i == j:
            settings = {"bins": _BINS, "density": True, "histtype": "step", "color": f"C{index}"}
            axis.hist(v[:, i].tolist(), label=name, **settings)
        else:
            shown = v[:_SHOWN]
            axis.scatter(shown[:, j].tolist(), shown[:, i].tolist(), s=1, alpha=0.4, lw=0)
    if i == j:
        axis.set_yticks([])
    if marks[1] is not None:
        axis.axvline(marks[1], color="C3", lw=1)
        if i != j:
            axis.axhline(marks[0], color="C3", lw=1)


def rank_histograms(
    ranks: Tensor | Mapping[str, Tensor], count: int, names: Sequence[str] | None = None
) -> Figure:
    """Histograms of ranks of the truth among draws, with the band of 99% of flat bars.

    Bars are of whole ranks, of one more or less where ``L + 1`` ranks do not divide evenly: heights
    are per rank, and the band is wider at those of fewer.

    Args:
        ranks: See `scoresde.metrics.ranks`, ``(N, *parameter_shape)``; several of them by name, in
            rows.
        count: Of draws, ``L``.
        names: Of parameters, flattened.

    Raises:
        ValueError: If there are no ranks, or they are not from 0 to ``count``.

    Example:
        >>> import torch
        >>> from scoresde.app.posterior_plots import rank_histograms
        >>> figure = rank_histograms(torch.randint(0, 100, (500, 2)), 99)
    """
    several = ranks if isinstance(ranks, Mapping) else {"": ranks}
    for value in several.values():
        expect_ranks(value, count)
    flat = {name: v.flatten(1).double().cpu() for name, v in several.items()}
    m = next(iter(flat.values())).shape[1]
    figure = new_figure(2.6 * m + 0.6, 1.9 * len(flat) + 0.5)
    axes: Any = figure.subplots(len(flat), m, squeeze=False, sharex=True)
    edges = np.linspace(0, count + 1, min(20, count + 1) + 1).round()
    size = np.diff(edges)
    for row, (name, v) in zip(axes, flat.items(), strict=True):
        low, high = scipy.stats.binom.interval(0.99, len(v), size / (count + 1)) / size
        for i, axis in enumerate(row):
            label = f"parameter {i}" if names is None else names[i]
            axis.stairs(high, edges, baseline=low, fill=True, color="0.5", alpha=0.3, lw=0)
            held, _ = np.histogram(v[:, i].numpy() + 0.5, edges)
            axis.bar(edges[:-1], held / size, size, align="edge", color="C0")
            axis.set(title=f"{name}, {label}" if name else label, yticks=[])
    for axis in axes[-1]:
        axis.set_xlabel("rank of the truth")
    return figure


def coverage_curves(
    covered: Tensor | Mapping[str, Tensor], credibility_levels: Tensor | Sequence[float], count: int
) -> Figure:
    """Coverage of truths over credibility levels, with the band of 99% of exact posteriors.

    Above the line posteriors are too wide, below it too narrow.

    Args:
        covered: See `scoresde.metrics.expected_coverage` and `scoresde.metrics.tarp`; several by
            name.
        credibility_levels: Theirs.
        count: Of simulations.

    Example:
        >>> import torch
        >>> from scoresde.app.posterior_plots import coverage_curves
        >>> levels = torch.linspace(0, 1, 11)
        >>> figure = coverage_curves({"exact": levels, "narrow": levels**2}, levels, count=200)
    """
    whole("count", count, 1)
    several = covered if isinstance(covered, Mapping) else {"": covered}
    known = torch.as_tensor(credibility_levels).double().cpu()
    figure = new_figure(3.6, 3.4)
    axis: Any = figure.subplots()
    low, high = scipy.stats.binom.interval(0.99, count, known.numpy())
    axis.fill_between(known.tolist(), low / count, high / count, color="0.5", alpha=0.3, lw=0)
    axis.plot([0, 1], [0, 1], color="0.5", lw=1)
    for name, shares in several.items():
        wrong = tuple(shares.shape)
        expect(
            wrong == tuple(known.shape),
            "covered",
            f"{len(known)} shares, as credibility_levels",
            wrong,
        )
        axis.plot(known.tolist(), shares.tolist(), label=name)
    axis.set(xlabel="level", ylabel="covered", xlim=(0, 1), ylim=(0, 1))
    if len(several) > 1:
        axis.legend()
    return figure
