"""Geometric Brownian motion: growth and noise proportional to the state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributions import LogNormal

from scoresde.checks import expect
from scoresde.precision import Float64Constants, Numbers
from scoresde.sdes.sde import SDE


class GeometricBrownian(Float64Constants, SDE):
    """``dy = growth y dt + volatility y dw``, of positive data (Black and Scholes 1973).

    Log-normal data stay so, and others approach it: the prior is the log-normal distribution with
    the moments that the data have at ``T``.

    Args:
        event_shape: Shape of one event.
        growth: Rate of growth, along the component axis.
        volatility: See above.
        data_mean: Of the data, number by number or of all.
        data_std: Of the data.
        T: Last time.
        eps: First time that sampling and likelihood use.

    Raises:
        ValueError: If the volatility, a mean or a deviation is not positive.

    Example:
        >>> import torch
        >>> from scoresde import GeometricBrownian
        >>> sde, y = GeometricBrownian((1,), growth=-0.5, volatility=2.0), torch.full((1, 1), 4.0)
        >>> sde.f(torch.tensor(0.0), y), sde.g(torch.tensor(0.0), y)
        (tensor([[-2.]]), tensor([[8.]]))
    """

    references = "black1973"

    def __init__(
        self,
        event_shape: Sequence[int],
        growth: Numbers = 0.0,
        volatility: Numbers = 1.0,
        data_mean: Numbers = 1.0,
        data_std: Numbers = 1.0,
        T: float = 2.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, T=T, eps=eps)
        values = {"growth": growth, "volatility": volatility}
        values |= {"data_mean": data_mean, "data_std": data_std}
        for name, value in values.items():
            self.constant(name, value, positive=name != "growth")
            self.basis.blocks.check(name, getattr(self, name), alone=True)
        mu, s, m, std = (getattr(self, name).detach().cpu() for name in values)
        # of log y_T: its variance is that of log-normal data with these moments, and the noise
        log_variance = (1 + (std / m) ** 2).log() + s**2 * T
        middle = (m.log() + mu * T - log_variance / 2).expand(self.basis.dim)
        expect(bool(middle.isfinite().all()), "T", "a time at which moments are numbers", T)
        self.prior = LogNormal(middle, log_variance.sqrt(), validate_args=False)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        (growth,) = self.constants(y, "growth")
        return growth * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        (volatility,) = self.constants(y, "volatility")
        return volatility * y
