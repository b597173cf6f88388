"""Posteriors as other libraries want them: Pyro, sbi, ArviZ. None of them has to be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pyro
import torch
from torch import Tensor

from scoresde.checks import expect, finite, numbers
from scoresde.inference.posterior import Posterior, PosteriorDistribution


def guide(posterior: Posterior, name: str = "parameter") -> Callable[..., Tensor]:
    """A Pyro guide that draws a model's parameters from their posterior.

    For importance sampling and for predictions; it has nothing to be optimised.

    Args:
        posterior: Of every observation.
        name: Of the site at which the model draws parameters.

    Returns:
        ``guide(observation, *others)``, called with the model's arguments.

    Example:
        >>> import pyro
        >>> import torch
        >>> from scoresde.inference.interop import guide
        >>> from torch.distributions import Normal
        >>> record = pyro.poutine.trace(guide(lambda x: pyro.distributions.Normal(x, 1.0)))
        >>> [*record.get_trace(torch.zeros(())).stochastic_nodes]
        ['parameter']
    """

    def draw(observation: Tensor, *others: Any, **named: Any) -> Tensor:
        drawn: Tensor = pyro.sample(name, posterior(observation))
        return drawn

    return draw


@attrs.define(eq=False)
class SBIPosterior:
    """A posterior with the methods of those of the package sbi, for its diagnostics and plots.

    Args:
        posterior: Of every observation.
        default_x: The observation that is meant where none is given.

    Example:
        >>> import torch
        >>> from scoresde.inference.interop import SBIPosterior
        >>> from torch.distributions import Independent, Normal
        >>> posterior = SBIPosterior(lambda x: Independent(Normal(x, 1.0), 1))
        >>> posterior.set_default_x(torch.zeros(1, 2)).sample((5,)).shape
        torch.Size([5, 2])
    """

    posterior: Posterior
    default_x: Tensor | None = None

    def set_default_x(self, x: Tensor) -> SBIPosterior:
        """Keeps an observation, ``(1, *observation_shape)`` or without the first axis."""
        self.default_x = x
        return self

    def sample(
        self, sample_shape: Sequence[int] = (), x: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """``(*sample_shape, *parameter_shape)``; settings are those of other samplers."""
        drawn: Tensor = self._given(x).sample(torch.Size(sample_shape))
        return drawn

    def sample_batched(self, sample_shape: Sequence[int], x: Tensor, **settings: Any) -> Tensor:
        """``(*sample_shape, batch, *parameter_shape)`` for observations ``(batch, *shape)``."""
        drawn: Tensor = self.posterior(x).sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, theta: Tensor, x: Tensor | None = None, **settings: Any) -> Tensor:
        """``(batch,)`` for parameters ``(batch, *parameter_shape)``; minus infinity outside."""
        density: Tensor = _unchecked(self._given(x)).log_prob(theta)
        return density

    def log_prob_batched(self, theta: Tensor, x: Tensor, **settings: Any) -> Tensor:
        """``(N, batch)`` for ``(N, batch, *parameter_shape)`` and ``(batch, *shape)``."""
        density: Tensor = _unchecked(self.posterior(x)).log_prob(theta)
        return density

    potential = log_prob

    def map(
        self, x: Tensor | None = None, starts: int = 200, steps: int = 60, **settings: Any
    ) -> Tensor:
        """The mode, ``(1, *parameter_shape)``; see `PosteriorDistribution.map`."""
        return self._given(x).map(starts, steps).unsqueeze(0)

    def _given(self, x: Tensor | None) -> PosteriorDistribution:
        x = self.default_x if x is None else x
        if x is None:
            raise ValueError("x: expected an observation, got none, and no default_x either")
        x = numbers("x", x)
        one = self._observation_ndim(x)
        batch = x.shape[: x.ndim - one]
        expect(batch.numel() == 1, "x", "one observation: see sample_batched", tuple(x.shape))
        return self.posterior(x.reshape(x.shape[x.ndim - one :]))

    def _observation_ndim(self, x: Tensor) -> int:
        return getattr(self.posterior, "observation_ndim", 1)


def _unchecked(distribution: Any) -> Any:
    distribution._validate_args = False
    return distribution


def to_arviz(samples: Tensor, name: str = "parameter", chains: int = 1) -> Any:
    """Samples as an ArviZ data set, for its plots and tables.

    Args:
        samples: Independent ones, ``(N, *parameter_shape)``.
        name: Of the parameters.
        chains: Into how many chains of equal length they are put.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If chains would not be of equal length, or samples are not finite.

    Example:
        >>> import torch
        >>> from scoresde.inference.interop import to_arviz
        >>> to_arviz(torch.zeros(7, 2), chains=2)
        Traceback (most recent call last):
            ...
        ValueError: chains: expected a divisor of 7 samples, got 2
    """
    samples = numbers("samples", samples)
    finite("samples", samples)
    fits = chains > 0 and len(samples) > 0 and len(samples) % chains == 0
    expect(fits, "chains", f"a divisor of {len(samples)} samples", chains)
    try:
        import arviz
    except ImportError as error:
        raise ImportError("export to ArviZ needs it: pip install arviz") from error
    values = samples.detach().cpu().reshape(chains, -1, *samples.shape[1:]).numpy()
    try:  # before version 1, which would take a dictionary of groups for one of variables
        return arviz.from_dict(posterior={name: values})
    except TypeError:
        return arviz.from_dict({"posterior": {name: values}})
