"""Whether posteriors are what they claim to be: ranks, coverage, and classifiers.

All take draws of the posteriors of ``N`` simulated observations beside the parameters that these
were made with, and ask what must hold if posteriors are right: the truth is one more draw. Draws
are ``(L, N, *parameter_shape)``, as ``posterior(x).sample((L,))`` has them.

A calibrated posterior need not be a good one (the prior is calibrated), and what is right on
average may be wrong for the one that is looked at: `local_c2st` asks about that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from scoresde.checks import expect, finite, floating, whole


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """Ranks of the truth among posterior draws, per parameter: simulation-based calibration.

    Uniform on ``0 ... L`` for exact posteriors of continuous parameters; humped where these are too
    wide, with horns where they are too narrow, sloped where they are shifted. Draws equal to the
    truth count half.

    Source:
        Talts et al. 2018 (arXiv 1804.06788).

    Args:
        draws: ``(L, N, *parameter_shape)``.
        truth: ``(N, *parameter_shape)``.

    Returns:
        ``(N, *parameter_shape)``.

    Raises:
        ValueError: If shapes do not fit, there are no draws, or numbers are not finite.

    Example:
        >>> import torch
        >>> from scoresde.metrics import ranks
        >>> ranks(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([[1.5]]))
        tensor([[2.]])
    """
    _expect_finite_pairs(draws=draws, truth=truth)
    below = (draws < truth).double().sum(0) + (draws == truth).double().sum(0) / 2
    return below.to(truth)


def uniformity(ranks: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """P-values of ranks being uniform, per parameter (Kolmogorov and Smirnov).

    The test is of continuous numbers: a rank is a random one from ``rank`` to ``rank + 1``. So the
    P-values of exact posteriors are uniform, however few draws there are.

    With ``m`` parameters, the least of the values is below ``p`` in up to ``m p`` of all cases.

    Args:
        ranks: See `ranks`, ``(N, *parameter_shape)``.
        count: Of draws, ``L``.
        generator: Of what is added to ranks.

    Returns:
        ``(*parameter_shape)``.

    Raises:
        ValueError: If there are no ranks, or they are not from 0 to ``count``.

    Example:
        >>> import torch
        >>> from scoresde.metrics import uniformity
        >>> even = uniformity(torch.arange(100.0).unsqueeze(1), 99)
        >>> low = uniformity(torch.arange(100.0).unsqueeze(1) / 2, 99)
        >>> bool(even > 0.9), bool(low < 1e-6)
        (True, True)
    """
    expect_ranks(ranks, count)
    known = ranks.detach().double().cpu()
    chance = torch.rand(known.shape, generator=generator, dtype=known.dtype)
    share = ((known + chance) / (count + 1)).flatten(1).numpy()
    p_values = [scipy.stats.kstest(column, "uniform").pvalue for column in share.T]
    return torch.tensor(p_values, dtype=torch.float64).reshape(ranks.shape[1:])


def expected_coverage(
    density: Tensor, of_truth: Tensor, credibility_levels: Tensor | Sequence[float]
) -> Tensor:
    """How often the truth is in the region of highest density of each level.

    The region holds the level's share of ``L + 1``: the draws and the truth. Where its border cuts
    through the truth, a part of it is inside: exact posteriors have the level itself, however few
    draws there are.

    Source:
        Hermans et al. 2022 (arXiv 2110.06581).

    Args:
        density: Of draws under their own posterior, or its logarithm, ``(L, N)``.
        of_truth: Of the truth, ``(N,)``.
        credibility_levels: From 0 to 1.

    Returns:
        One share for each level: the level itself, of exact posteriors.

    Raises:
        ValueError: If shapes do not fit, there are no draws, or a density is NaN.

    Example:
        >>> import torch
        >>> from scoresde.metrics import expected_coverage
        >>> density = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
        >>> expected_coverage(density, torch.tensor([0.25]), [0.4, 0.6])
        tensor([0., 1.], dtype=torch.float64)
    """
    _expect_pairs(density=density, of_truth=of_truth)
    for name, value in (("density", density), ("of_truth", of_truth)):
        undefined = int(value.isnan().sum())
        expect(not undefined, name, "no NaN", f"{undefined} of {value.numel()}")
    return _shares(density > of_truth, density == of_truth, credibility_levels)


def tarp(
    draws: Tensor,
    truth: Tensor,
    credibility_levels: Tensor | Sequence[float],
    *,
    references: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Share of truths in balls around random points that hold each level's share of draws.

    No density is needed, and unlike `ranks` this sees how parameters depend on each other. It is
    averaged over ``references`` points; distances are in units of the truths' range.

    Source:
        Lemos et al. 2023 (arXiv 2302.03026): tests of accuracy with random points.

    Args:
        draws: ``(L, N, *parameter_shape)``.
        truth: ``(N, *parameter_shape)``.
        credibility_levels: From 0 to 1.
        references: Random points for every observation.
        generator: Of the points.

    Returns:
        One share for each level: the level itself, of exact posteriors.

    Raises:
        ValueError: If shapes do not fit, there are no draws, or numbers are not finite.

    Example:
        >>> import torch
        >>> from scoresde.metrics import tarp
        >>> g = torch.Generator().manual_seed(0)
        >>> mean, both = torch.randn(2000, 2, generator=g), torch.randn(201, 2000, 2, generator=g)
        >>> draws, truth = mean + both[1:], mean + both[0]
        >>> tarp(draws, truth, [0.3, 0.7], generator=g).round(decimals=1)
        tensor([0.3000, 0.7000], dtype=torch.float64)
    """
    _expect_finite_pairs(draws=draws, truth=truth)
    whole("references", references, 1)
    draws, truth = draws.flatten(2), truth.flatten(1)
    low, high = truth.amin(0), truth.amax(0)
    unit = torch.where(high > low, high - low, 1.0)
    shares = []
    for _ in range(references):  # one after the other: draws are many
        chance = torch.rand(truth.shape, generator=generator, dtype=truth.dtype)
        point = low + (high - low) * chance.to(truth.device)
        far, own = (((v - point) / unit).norm(dim=-1) for v in (draws, truth))
        shares.append(_shares(far < own, far == own, credibility_levels))
    return torch.stack(shares).mean(0)


class LocalTest(NamedTuple):
    """Result of `local_c2st`.

    Attributes:
        statistic: Mean of ``(d - 1/2)^2``, with ``d`` the classifier's probability that a draw is
            not the truth: 0 if they cannot be told apart.
        p_value: Share of classifiers of random labels whose statistic is as large.

    Example:
        >>> from scoresde.metrics import LocalTest
        >>> LocalTest(0.02, 0.01).p_value
        0.01
    """

    statistic: float
    p_value: float


def local_c2st(
    draws: Tensor,
    truth: Tensor,
    observed: Tensor,
    at: Tensor,
    observation: Tensor,
    *,
    trials: int = 50,
    updates: int = 200,
    generator: torch.Generator | None = None,
) -> LocalTest:
    """Whether the posterior of one observation is wrong: a local classifier two-sample test.

    A classifier learns to tell pairs of a draw and an observation from pairs of the truth and an
    observation, all of fresh simulations, and is then asked about draws given the one observation.

    Source:
        Linhart, Gramfort and Rodrigues 2023 (arXiv 2306.03580).

    Args:
        draws: One of the posterior of each observation, ``(N, *parameter_shape)``.
        truth: ``(N, *parameter_shape)``.
        observed: ``(N, *observation_shape)``.
        at: Draws of the posterior of the one observation, ``(M, *parameter_shape)``.
        observation: That one, ``(*observation_shape)``.
        trials: Classifiers of random labels, which say what is found by chance.
        updates: Of classifiers: perceptrons with a hidden layer, trained side by side.
        generator: Of weights and labels.

    Raises:
        ValueError: If shapes do not fit, there are no draws, or numbers are not finite.

    Example:
        >>> import torch
        >>> from scoresde.metrics import local_c2st
        >>> g = torch.Generator().manual_seed(0)
        >>> x, a, b, c = torch.randn(4, 300, 1, generator=g)
        >>> exact = local_c2st(x + a, x + b, x, 1 + c, torch.ones(1), trials=9, updates=50)
        >>> off = local_c2st(x + a + 1, x + b, x, 2 + c, torch.ones(1), trials=9, updates=50)
        >>> exact.statistic < off.statistic, off.p_value
        (True, 0.0)
    """
    _expect_finite_pairs(draws=draws.unsqueeze(0), truth=truth)
    expect(len(observed) == len(truth), "observed", f"{len(truth)} observations", len(observed))
    fits = at.shape[1:] == truth.shape[1:] and len(at) > 0
    expect(fits, "at", f"at least one draw, {_shape('M', truth.shape[1:])}", tuple(at.shape))
    fits = observation.shape == observed.shape[1:]
    expect(fits, "observation", f"one, {tuple(observed.shape[1:])}", tuple(observation.shape))
    for name, value in (("observed", observed), ("at", at), ("observation", observation)):
        finite(name, value)
    whole("trials", trials, 1)
    theta = torch.cat([truth, draws]).flatten(1).float()
    pairs = torch.cat([theta, observed.flatten(1).float().repeat(2, 1)], 1)
    seen = observation.flatten().float().expand(len(at), -1)
    queries = torch.cat([at.flatten(1).float(), seen], 1)
    mean, std = pairs.mean(0), pairs.std(0).clamp(min=1e-12)  # of what never varies
    pairs, queries = (pairs - mean) / std, (queries - mean) / std
    own = (torch.arange(len(pairs)) >= len(truth)).float()
    order = torch.rand(trials, len(pairs), generator=generator).argsort(1)
    labels = torch.cat([own.unsqueeze(0), own[order]]).to(pairs.device)
    logits = _classified(pairs, labels, queries, updates, generator)
    statistics = (logits.sigmoid() - 0.5).square().mean(1)
    return LocalTest(float(statistics[0]), float((statistics[1:] >= statistics[0]).double().mean()))


_WIDTH = 10
"""Units of a classifier's hidden layer for each number that it sees, as in sbi."""

_RATE = 0.002
"""Of classifiers. Measured on Gaussian posteriors that are shifted by .2, too flat, or skewed: the
statistic is 1.2 to 3 times as many deviations of its distribution by chance off as with .02."""

_DECAY = 1e-4
"""Of their weights, as scikit-learn's perceptrons have it."""


def _classified(
    x: Tensor, labels: Tensor, queries: Tensor, updates: int, generator: torch.Generator | None
) -> Tensor:
    """Logits ``(k, M)`` of ``k`` classifiers, of labels ``(k, N)``, for what is asked."""
    size, width = x.shape[1], _WIDTH * x.shape[1]
    draw = torch.randn(len(labels), size + 1, width, generator=generator).to(x.device)
    inward = (draw / (size + 1) ** 0.5).requires_grad_()
    outward = torch.zeros(len(labels), width + 1, 1, device=x.device, requires_grad=True)

    def logits(values: Tensor) -> Tensor:
        hidden = (values @ inward[:, :-1] + inward[:, -1:]).relu()
        output: Tensor = (hidden @ outward[:, :-1] + outward[:, -1:]).squeeze(-1)
        return output

    with torch.enable_grad():
        optimizer = torch.optim.Adam([inward, outward], lr=_RATE, weight_decay=_DECAY)
        for _ in range(updates):
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(logits(x), labels, reduction="none")
            loss.mean(1).sum().backward()
            optimizer.step()
    return logits(queries).detach()


def expect_ranks(ranks: Tensor, count: int) -> None:
    """Raises ``ValueError`` unless there are ranks, from 0 to the number of draws."""
    whole("count", count, 1)
    expect(len(ranks) > 0, "ranks", "at least one", "none")
    low, high = float(ranks.min()), float(ranks.max())
    expect(0 <= low <= high <= count, "ranks", f"numbers from 0 to {count}", f"{low} to {high}")


def _shares(before: Tensor, same: Tensor, credibility_levels: Tensor | Sequence[float]) -> Tensor:
    """How much of truths is in the first share of each level, of draws before and at the truth."""
    known = torch.as_tensor(credibility_levels, dtype=torch.float64, device=before.device)
    inside = bool(((known >= 0) & (known <= 1)).all())
    expect(known.ndim == 1 and inside, "credibility_levels", "numbers from 0 to 1", known.tolist())
    start, width = before.sum(0), same.sum(0) + 1  # where it may be, among L + 1 in order
    border = known.unsqueeze(-1) * (len(before) + 1)
    return ((border - start) / width).clamp(0, 1).mean(-1)


def _shape(first: str, rest: Sequence[int]) -> str:
    return f"({', '.join([first, *map(str, rest)])})"


def _expect_pairs(**pair: Tensor) -> None:
    for name, value in pair.items():
        floating(name, value)
    (name, draws), (_, truth) = pair.items()
    fits = draws.shape[1:] == truth.shape and draws.numel() > 0
    wanted = f"at least one draw for each truth, {_shape('L', truth.shape)}"
    expect(fits, name, wanted, tuple(draws.shape))


def _expect_finite_pairs(**pair: Tensor) -> None:
    _expect_pairs(**pair)
    for name, value in pair.items():
        finite(name, value)
