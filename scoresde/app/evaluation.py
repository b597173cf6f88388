"""Evaluation of a model: the log-density of data under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.checks import whole
from scoresde.conditioning import split_events
from scoresde.data import Dataset, bits_per_dim
from scoresde.data.events import as_dataset, as_numbers
from scoresde.estimator import ScoreEstimator
from scoresde.likelihood import Method, Trace, log_prob
from scoresde.likelihood.finite import error_limit, warn_of_errors
from scoresde.precision import device_of


def evaluate(
    estimator: ScoreEstimator,
    data: Any,
    solver: Method,
    trace: Trace | None = None,
    *,
    given: Sequence[str] = (),
    count: int | None = None,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Log-density of data by the probability flow, averaged over events.

    Args:
        estimator: Knows the score.
        data: See `scoresde.data.events.as_dataset`. Integer data are dequantised, once, and
            reported in bits per dimension as well. Of events with conditions the density is that
            given them.
        solver: Integrates the flow: a `scoresde.Solver`, or a `scoresde.Quadrature`.
        trace: Exact if None.
        given: Parts of events with parts: the density is that of the others, given these.
        count: How many events, the first ones; all if None.
        batch_size: Events at a time.
        generator: Of dequantisation and probes.
        progress: Whether to show a progress bar.

    Returns:
        ``data``, ``count``, ``nats`` and ``nats_stderr`` per event; ``trace_stderr`` of that mean
        by random probes alone; ``solver_error``, the mean of the solver's own
        (`scoresde.likelihood.exact.LogProb`); ``evaluations`` of the network per event; which
        ``estimate`` it is; and of integer data ``bits_per_dim`` and ``bits_per_dim_stderr``.
        Standard errors are those of a mean over events drawn at random, NaN of a single event; that
        by probes is NaN with a single probe.

    Warns:
        UserWarning: If ``solver_error`` is too large for the result to be trusted.

    Raises:
        FloatingPointError: If a log-density is not finite; the message names the event.
        ValueError: If the data do not have the model's event shape, or there is nothing to
            evaluate.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.app.evaluation import evaluate
        >>> from solvers import DDIM
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> report = evaluate(model, torch.zeros(3, 2), DDIM(20))
        >>> round(report["nats"], 2)  # minus the logarithm of 2 pi
        -1.84
    """
    if count is not None:
        whole("count", count, 1)
    whole("batch_size", batch_size, 1)
    parts, data, where = [], as_dataset("data", data), device_of(estimator)
    with torch.no_grad():
        rows = torch.arange(len(data), device="cpu")[:count]
        for batch in tqdm(rows.split(batch_size), desc="evaluating", disable=not progress):
            values, conditions = data.pairs(batch)
            x = as_numbers(values, data.bins, generator).to(where)
            conditional, x = split_events(estimator, given, x)
            # checked below, where it is known which event is which
            options: dict[str, Any] = {"generator": generator, "checked": False}
            options["condition"] = None if conditions is None else conditions.to(where)
            parts.append(log_prob(conditional, x, solver, trace=trace, **options))
            _expect_finite(parts[-1].value, batch, data)
    names = ("value", "standard_error", "error")
    nats, error, errors = (torch.cat([getattr(v, name) for v in parts]) for name in names)
    report = {
        "data": data.name,
        "count": len(nats),
        "nats": float(nats.mean()),
        "nats_stderr": _standard_error(nats),
        "trace_stderr": float(error.square().sum().sqrt()) / len(nats),
        "solver_error": _solver_error(errors, x[0].numel(), solver),
        "evaluations": sum(part.evaluations * len(part.value) for part in parts) / len(nats),
        "estimate": parts[0].estimate,
    }
    return report | ({} if data.bins is None else _bits(nats, x[0].numel(), data.bins))


def _bits(nats: Tensor, dim: int, bins: int) -> dict[str, float]:
    bits = bits_per_dim(nats, dim, bins)
    return {"bits_per_dim": float(bits.mean()), "bits_per_dim_stderr": _standard_error(bits)}


def _expect_finite(values: Tensor, rows: Tensor, data: Dataset) -> None:
    bad = ~values.isfinite().cpu()
    if bool(bad.any()):
        value, row = float(values[bad.to(values.device)][0]), int(rows[bad][0])
        raise FloatingPointError(f"the log-density of event {row} of {data.name} is {value}")


def _solver_error(errors: Tensor, dim: int, solver: Method) -> float:
    mean, limit = float(errors.mean()), error_limit(dim)
    if mean > limit:
        warn_of_errors(errors, limit, solver)
    return mean


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
