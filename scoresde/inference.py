"""Simulation-based inference: a posterior from a prior and a simulator.

Parameters and observations make one joint event; a conditional estimator trained on simulated
pairs holds the posterior of every observation (neural posterior score estimation; Sharrock et
al. 2022, Geffner et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions import Distribution, biject_to
from tqdm.auto import tqdm

from scoresde.bases import Identity, Joint
from scoresde.checks import expect
from scoresde.distribution import ScoreDistribution
from scoresde.estimator import ScoreEstimator
from scoresde.solver import Solver

Simulator = Callable[[Tensor], Tensor]
"""Parameters ``(batch, *parameter_shape)`` to observations ``(batch, *observation_shape)``."""


def pairs(parameters: Tensor, observations: Tensor) -> Joint:
    """The basis of joint events of simulated pairs, a block for every number.

    Every number then has a scale of its own, see `estimators.measure`.

    Args:
        parameters: ``(N, *parameter_shape)``.
        observations: ``(N, *observation_shape)``.

    Example:
        >>> import torch
        >>> from scoresde.inference import pairs
        >>> list(pairs(torch.zeros(5, 2), torch.zeros(5, 3)).parts)
        ['observation', 'parameter']
    """

    def part(values: Tensor) -> Identity:
        shape = values.shape[1:]
        return Identity(shape, {str(i): 1 for i in range(shape.numel())})

    return Joint(observation=part(observations), parameter=part(parameters))


def simulate(
    prior: Distribution,
    simulator: Simulator,
    count: int,
    *,
    batch_size: int = 1000,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws of the prior and what the simulator makes of them.

    Pairs whose observation is not finite are left out, as simulators may fail.

    Args:
        prior: Of parameters: an event of any shape, no batch.
        simulator: See `Simulator`.
        count: How many draws.
        batch_size: How many at a time.
        progress: Whether to show a progress bar.

    Returns:
        ``(N, *parameter_shape)`` and ``(N, *observation_shape)``, ``N`` at most ``count``.

    Raises:
        ValueError: If the prior has a batch shape, the simulator returns another number of
            observations, or more than half of them are not finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> from scoresde.inference import simulate
        >>> prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> theta, x = simulate(prior, lambda theta: theta.sum(1, keepdim=True), 100)
        >>> theta.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 1]))
    """
    expect(prior.batch_shape == (), "prior", "no batch shape (Independent)", prior.batch_shape)
    parameters: list[Tensor] = []
    observations: list[Tensor] = []
    with torch.no_grad(), tqdm(total=count, desc="simulating", disable=not progress) as bar:
        for start in range(0, count, batch_size):
            drawn = prior.sample((min(batch_size, count - start),))
            seen = simulator(drawn)
            expect(len(seen) == len(drawn), "simulator", f"{len(drawn)} observations", len(seen))
            parameters.append(drawn)
            observations.append(seen)
            bar.update(len(drawn))
    theta, x = torch.cat(parameters), torch.cat(observations)
    good = torch.isfinite(x.flatten(1)).all(1)
    share = float(good.double().mean())
    expect(share > 0.5, "simulator", "finite observations", f"{1 - share:.0%} that are not")
    return theta[good], x[good]


@attrs.frozen(eq=False)
class Posterior:
    """Posteriors of a simulator's parameters, one for every observation.

    Parameters of bounded support are learned in unbounded coordinates: densities have the
    Jacobian, samples are inside.

    Args:
        estimator: Of joint events with the parts ``"observation"`` and ``"parameter"`` (see
            `pairs`), the latter in unbounded coordinates (`unbounded`).
        prior: Says what the support is.
        solver: Draws samples.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE
        >>> from scoresde.inference import Posterior, pairs
        >>> from solvers import ExponentialMultistep
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> sde = DiagonalSDE(VP(), pairs(torch.zeros(1, 1), torch.zeros(1, 1)), [0.0, 1.0])
        >>> exact = Gaussian(sde, torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
        >>> posterior = Posterior(exact, prior, ExponentialMultistep(20))
        >>> posterior(torch.ones(1)).sample((3,)).shape
        torch.Size([3, 1])
    """

    sources = "sharrock2022 geffner2023"

    estimator: ScoreEstimator
    prior: Distribution
    solver: Solver

    def __call__(self, observation: Tensor) -> Distribution:
        """The posterior of one observation, or of a batch of them, ``(*batch, *shape)``."""
        known = self.estimator.condition(observation=observation)
        base = ScoreDistribution(known, self.solver)
        found: Distribution = TransformedDistribution(base, [biject_to(self.prior.support)])
        return found


def unbounded(prior: Distribution, parameters: Tensor) -> Tensor:
    """Parameters in coordinates without bounds: the inverse of ``biject_to(prior.support)``.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Uniform
        >>> from scoresde.inference import unbounded
        >>> prior = Independent(Uniform(torch.zeros(1), 2 * torch.ones(1)), 1)
        >>> unbounded(prior, torch.tensor([[1.0]]))  # the middle
        tensor([[0.]])
    """
    found: Tensor = biject_to(prior.support).inv(parameters)
    return found
