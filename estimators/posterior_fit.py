"""Posteriors learned from simulations, with default settings for everything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from estimators.denoising import Denoising
from estimators.embedding import Embedded
from estimators.networks import ResidualMLP
from estimators.truncated import Truncated
from scoresde import plugins
from scoresde.bases import Identity
from scoresde.checks import expect, instance, whole
from scoresde.conditioning import slowed
from scoresde.data import Dataset, split
from scoresde.inference import Coordinates, Posterior
from scoresde.inference.simulation_moments import has_long_tails
from scoresde.inference.simulations import simulated_pairs
from scoresde.internals.default_generator import DefaultGenerator
from scoresde.precision import network_dtype
from scoresde.schedules import LogLinear
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.solver import Solver
from scoresde.training import Training

_STEPS, _HELD_OUT = 25.0, 5.0
"""Updates, and simulations held out, of ``N`` simulations: so many times ``sqrt(N)``."""

_FEWEST, _MOST = 200, 20_000
"""Bounds of the number of updates."""

_SHARE, _SMALLEST, _LARGEST = 8, 32, 256
"""Simulations of an update: one in eight of all, of so many at least and at most."""

WIDTH, DEPTH = 192, 4
"""Of the network."""

_EMBEDDING = 32
"""What its noise level, a number, is embedded in."""

_TIMES = "arctan_log_snr"
"""Of training: most of them where a posterior is decided, few where there is all noise or none."""

_RATE = 3e-3
"""Of learning, as in the benchmark ``simulators``, whose settings all of these are."""

_MEASUREMENTS = 20
"""Of the held-out loss: a training ends early after a fifth of them without a lower one."""

_EVALUATIONS = 32
"""Of the solver."""


def fit_posterior(
    prior: Distribution,
    parameters: Tensor,
    observations: Tensor,
    *,
    embedding: nn.Module | None = None,
    items: bool = False,
    ranks: bool | None = None,
    network: nn.Module | None = None,
    training: Training | None = None,
    solver: Solver | None = None,
    seed: int = 0,
    progress: bool = True,
    **of_fit: Any,
) -> Posterior:
    """The posterior of every observation, learned from simulations.

    Conditional denoising (`estimators.cde`) of the residuals of a regression of the parameters on
    the observation, in `scoresde.inference.Coordinates`: linear, or smooth where it leaves next to
    nothing and no network is given. Where parameters have bounds, the baseline is the posterior by
    that regression and the bounds (`Truncated.from_coordinates`). Default settings are those of the
    benchmark ``simulators``; updates and held-out events grow with the root of the number of
    simulations ``N``, batches with ``N``.

    Args:
        prior: Of parameters, no batch.
        parameters: ``(N, *parameter_shape)``, see `scoresde.inference.simulate`.
        observations: ``(N, *observation_shape)``.
        embedding: From observations, as `Coordinates.observation` has them, to ``(batch, c)``;
            trained with the network. None for vectors.
        items: Whether observations are sets or series, see `Coordinates.fit`; with an embedding.
        ranks: Whether normal scores of observations come beside them, see there; where tails are
            long (`scoresde.inference.simulation_moments.has_long_tails`) if None.
        network: Of events, in the place of a residual perceptron: of joint ones, observation and
            parameter one after the other; with an embedding of parameters alone, given ``c``
            numbers.
        training: In the place of `default_training`.
        solver: Draws samples; an exponential multistep by default.
        seed: Of initial weights, of what is held out and of training.
        progress: Whether to show a progress bar.
        of_fit: Other arguments of `scoresde.training.Training.fit`, for instance a ``folder``.

    Raises:
        ValueError: As of `Coordinates.fit`.

    Example:
        >>> import torch
        >>> from estimators.posterior_fit import fit_posterior
        >>> from scoresde.inference import simulate
        >>> from scoresde.training import Training
        >>> from torch.distributions import Independent, Uniform
        >>> prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
        >>> _ = torch.manual_seed(0)
        >>> theta, x = simulate(prior, lambda theta: theta + torch.randn_like(theta), 1000)
        >>> brief = Training(steps=20)  # leave it to the default
        >>> posterior = fit_posterior(prior, theta, x, training=brief, progress=False)
        >>> posterior(torch.zeros(2)).sample((5,)).shape
        torch.Size([5, 2])
    """
    parameters, observations = simulated_pairs(prior, parameters, observations)
    if ranks is None:
        ranks = not items and has_long_tails(observations.flatten(1))
    smooth = embedding is None and network is None  # which is made for what is observed
    to = Coordinates.fit(prior, parameters, observations, ranks=ranks, items=items, smooth=smooth)
    with DefaultGenerator(torch.Generator().manual_seed(seed)):
        if embedding is None:
            expect(not items, "embedding", "a module that takes sets or series", embedding)
            model, data = _joint(to, parameters, observations, network)
        else:
            model, data = _embedded(to, parameters, observations, embedding, network)
    count = len(data)
    train, held_out = split(data, 1 - min(_HELD_OUT * count**-0.5, 0.5), seed)
    training = default_training(count) if training is None else training
    training.fit(model, train, held_out, seed=seed, progress=progress, **of_fit)
    return Posterior(model, to, solver or _solver())


def default_training(simulations: int) -> Training:
    """The settings of `fit_posterior`, with a patience of a fifth of the training.

    Example:
        >>> from estimators.posterior_fit import default_training
        >>> default_training(1000).steps, default_training(10_000).steps
        (791, 2500)
    """
    whole("simulations", simulations, 1)
    return Training(
        steps=min(max(round(_STEPS * math.sqrt(simulations)), _FEWEST), _MOST),
        batch_size=min(max(simulations // _SHARE, _SMALLEST), _LARGEST),
        lr=_RATE,
        weight_decay=0.5,  # of few simulations a network soon learns by heart what it has seen
        measurements=_MEASUREMENTS,
        patience=_MEASUREMENTS // 5,
    )


def _joint(
    to: Coordinates, parameters: Tensor, observations: Tensor, network: nn.Module | None
) -> tuple[Denoising, Dataset]:
    """An estimator of pairs whose observation does not diffuse, and its data."""
    joint = to.joint
    sde = slowed(DiagonalSDE(LogLinear(), joint), ["observation"], 0.0)
    network = network or ResidualMLP((joint.dim,), WIDTH, DEPTH, embedding_dim=_EMBEDDING)
    bounded = bool(to.bounds[0].isfinite().any())
    # without bounds that is what a network corrects anyway, and takes its time
    known = Truncated.from_coordinates(to, sde) if bounded else None
    flat = Identity((joint.dim,))
    model = Denoising(sde, network, times=_TIMES, network_basis=flat, baseline=known)
    return model, Dataset("simulations", to.joint_events(parameters, observations))


def _embedded(
    to: Coordinates,
    parameters: Tensor,
    observations: Tensor,
    embedding: nn.Module,
    network: nn.Module | None,
) -> tuple[Denoising, Dataset]:
    """An estimator of parameters given embedded observations, and its data."""
    instance("embedding", embedding, nn.Module)
    shape, seen = to.prior.event_shape, to.observation(observations)
    if network is None:
        with torch.no_grad():
            embedded = embedding(seen[:2].to(network_dtype(embedding) or seen.dtype))
        expect(embedded.ndim == 2, "embedding", "an output (batch, c)", tuple(embedded.shape))
        network = ResidualMLP(shape, WIDTH, DEPTH, condition_dim=embedded.shape[1])
    sde = DiagonalSDE(LogLinear(), Identity(shape))
    events = to.transform(observations).inv(parameters)
    data = Dataset("simulations", events, condition=seen)
    return Denoising(sde, Embedded(network, embedding)), data


def _solver() -> Solver:
    # found as a stranger's is: estimators do not stand on solvers
    make: Any = plugins.get("solvers", "exponential-multistep")
    solver: Solver = make(_EVALUATIONS)
    return solver
