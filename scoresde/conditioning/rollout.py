"""Sequences longer than an estimator's: windows, each given the end of the one before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.bases import Identity
from scoresde.checks import expect, instance, trailing_shape, whole
from scoresde.conditioning.conditional import ConditionalEstimator
from scoresde.conditioning.observation import Observation
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Generators, Noise
from scoresde.sampling.batches import sample_shape_of, samples_like
from scoresde.solver import Solver


def rollout(
    solver: Solver,
    estimator: ScoreEstimator,
    sample_shape: Sequence[int],
    length: int,
    *,
    stride: int = 1,
    given: Tensor | None = None,
    generator: Generators = None,
) -> Tensor:
    """Samples that are longer along their first axis than an estimator's events.

    The last steps are observed, and the next window is drawn given them. Sequences are exactly
    those of the data if what comes next depends on the last ``window - stride`` steps alone. For
    another order of drawing, give ``estimator.with_clock(clock)``.

    Args:
        solver: Draws every window.
        estimator: Of windows ``(window, *rest)`` in a `scoresde.Identity` basis, that knows its
            conditionals: an exact one, or one with vector time.
        sample_shape: Leading shape of the samples.
        length: Of the sequences, what is given included.
        stride: Steps that each window adds, at most its length.
        given: How the sequences begin, ``(*sample_shape or none, k, *rest)``.
        generator: One generator, or one per sample; see `scoresde.noise`.

    Returns:
        ``(*sample_shape, length, *rest)``.

    Raises:
        TypeError: If the basis is no `scoresde.Identity`.
        ValueError: If a number is out of its range, or a shape does not fit.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.conditioning import rollout
        >>> from solvers import DDIM
        >>> covariance = 0.9 ** (torch.arange(4)[:, None] - torch.arange(4)).abs()
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((4,))), torch.zeros(4), covariance)
        >>> rollout(DDIM(8), model, (2,), length=10, stride=2).shape
        torch.Size([2, 10])
    """
    basis, noise = estimator.sde.basis, Noise.of(generator)
    instance("estimator.sde.basis", basis, Identity)
    batch = sample_shape_of(estimator, sample_shape)
    window, *rest = basis.event_shape
    whole("length", length, 1)
    whole("stride", stride, 1, window)
    sequences = samples_like(estimator, None).new_empty(*batch, 0, *rest)
    if given is not None:
        trailing_shape("given", given, torch.Size(rest))
        axis = given.ndim - len(rest) - 1
        expect(axis >= 0, "given", f"sequences (*{tuple(batch)}, k, {rest})", tuple(given.shape))
        sequences = given.expand(*batch, *given.shape[axis:])
    axis = len(batch)
    while (there := sequences.shape[axis]) < length:
        kept = min(there, window - stride)
        model = _after(estimator, sequences.narrow(axis, there - kept, kept)) if kept else estimator
        drawn = solver.sample(model, batch, generator=noise, dtype=sequences.dtype)
        sequences = torch.cat([sequences, drawn.narrow(axis, kept, window - kept)], axis)
    return sequences.narrow(axis, 0, length)


def _after(estimator: ScoreEstimator, known: Tensor) -> ConditionalEstimator:
    """What follows on steps that are known, at the start of a window."""
    basis = estimator.sde.basis
    start = known.flatten(known.ndim - len(basis.event_shape))
    values = start.new_zeros(*start.shape[:-1], basis.dim)
    values[..., : start.shape[-1]] = start
    mask = torch.arange(basis.dim, device=start.device) < start.shape[-1]
    return ConditionalEstimator(estimator, Observation(mask, values), clean=True)
