"""Simulations: parameters of a prior, and what is observed of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from scoresde.checks import expect, floating, numbers, trailing_shape, whole
from scoresde.inference.supports import bounds, expect_prior

Simulator = Callable[[Tensor], Tensor]
"""Parameters ``(batch, *parameter_shape)`` to observations ``(batch, *observation_shape)``.

Observations are real numbers of any kind, integers and booleans too, in a tensor or an array."""


def simulate(
    prior: Distribution,
    simulator: Simulator,
    count: int,
    *,
    batch_size: int = 1000,
    missing: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws of the prior and what the simulator makes of them.

    Pairs whose observation is not finite are left out, as simulators may fail.

    Args:
        prior: Of parameters: an event of any shape, no batch.
        simulator: See `Simulator`.
        count: How many draws.
        batch_size: How many at a time.
        missing: Whether NaN stands for what is not there (see `Coordinates.fit`), and only
            observations of nothing else have failed.
        progress: Whether to show a progress bar.

    Returns:
        ``(N, *parameter_shape)`` and ``(N, *observation_shape)``, ``N`` at most ``count``, in the
        dtypes of the prior and of the simulator.

    Raises:
        ValueError: If the prior has a batch shape, or is not of continuous parameters that each
            have a range of their own; the simulator returns another number of observations, or
            they have no axis; more than half of them are not finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> from scoresde.inference import simulate
        >>> prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> theta, x = simulate(prior, lambda theta: theta.sum(1, keepdim=True), 100)
        >>> theta.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 1]))
    """
    expect_prior(prior)
    whole("count", count, 1)
    whole("batch_size", batch_size, 1)
    parameters: list[Tensor] = []
    observations: list[Tensor] = []
    with torch.no_grad(), tqdm(total=count, desc="simulating", disable=not progress) as bar:
        for start in range(0, count, batch_size):
            drawn = prior.sample((min(batch_size, count - start),))
            observed = torch.as_tensor(simulator(drawn), device=drawn.device)
            wanted = f"{len(drawn)} observations"
            got = tuple(observed.shape)
            expect(got[:1] == (len(drawn),), "simulator", wanted, f"shape {got}")
            hint = "numbers, (batch, *observation_shape) (keepdim=True keeps an axis of one)"
            expect(observed.ndim > 1, "simulator", hint, f"shape {got}")
            parameters.append(drawn)
            observations.append(observed)
            bar.update(len(drawn))
    theta, x = torch.cat(parameters), torch.cat(observations)
    numbers = torch.isfinite(x.flatten(1))
    usable = numbers.any(1) & ~x.isinf().flatten(1).any(1) if missing else numbers.all(1)
    share = float(usable.double().mean())
    expect(share > 0.5, "simulator", "finite observations", f"{1 - share:.0%} that are not")
    return theta[usable], x[usable]


def predict(posterior: TorchDistribution, simulator: Simulator, count: int) -> Tensor:
    """Posterior predictions: simulations with draws of a posterior.

    The rank of the observation among them, `scoresde.metrics.ranks` number by number, tells
    whether the simulator explains it (posterior-predictive checks; Gelman et al. 1996).

    Args:
        posterior: Of one observation.
        simulator: See `Simulator`.
        count: How many.

    Returns:
        ``(count, *observation_shape)``.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> from scoresde.inference import predict
        >>> posterior = Normal(torch.zeros(2), 1.0).to_event(1)
        >>> predict(posterior, lambda theta: theta.sum(1, keepdim=True), 5).shape
        torch.Size([5, 1])
    """
    shape = posterior.batch_shape
    expect(shape == (), "posterior", "one of a single observation", shape)
    whole("count", count, 1)
    with torch.no_grad():
        drawn = posterior.sample((count,))
        return torch.as_tensor(simulator(drawn), device=drawn.device)


def simulated_pairs(
    prior: Distribution, parameters: Any, observations: Any
) -> tuple[Tensor, Tensor]:
    """Simulations that somebody else has made, as tensors.

    Args:
        prior: Of parameters.
        parameters: ``(N, *parameter_shape)``, a tensor or an array.
        observations: ``(N, *observation_shape)``, likewise.

    Raises:
        TypeError: If they are no real numbers, or parameters no floating-point ones.
        ValueError: If shapes do not fit, a parameter is not between the prior's bounds, or the
            prior is none of continuous parameters that each have a range of their own.
    """
    expect_prior(prior)
    theta, x = (
        # arrays keep their dtype, and tensors their device
        numbers(name, torch.from_numpy(v) if isinstance(v, np.ndarray) else v)
        for name, v in (("parameters", parameters), ("observations", observations))
    )
    floating("parameters", theta)
    trailing_shape("parameters", theta, prior.event_shape)
    ndim = 1 + len(prior.event_shape)
    expect(theta.ndim == ndim, "parameters", "one axis of simulations", tuple(theta.shape))
    expect(x.ndim > 1, "observations", "shape (N, *observation_shape)", tuple(x.shape))
    expect(len(x) == len(theta), "observations", f"one for each of {len(theta)} parameters", len(x))
    low, high = (v.to(theta) for v in bounds(prior))
    slack = _ROUNDING * (high - low)
    outside = ((theta < low - slack) | (theta > high + slack)).flatten(1).any(1)
    count = int(outside.sum())
    expect(count == 0, "parameters", "draws of the prior", f"{count} of {len(theta)} outside of it")
    return theta, x


_ROUNDING = 1e-6
"""Of a range: parameters may have been stored with fewer digits than its bounds."""
