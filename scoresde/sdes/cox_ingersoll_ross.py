"""The process of Cox, Ingersoll and Ross: positive, and reverting to a level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Gamma

from scoresde.precision import Float64Constants, Numbers
from scoresde.sdes.sde import SDE

_FLOOR = 1e-4
"""Of the level: a step of Euler's may end below it, where a root has no derivative."""


class CoxIngersollRoss(Float64Constants, SDE):
    """``dy = rate (level - y) dt + volatility sqrt(y) dw`` (Cox, Ingersoll and Ross 1985).

    Positive data stay positive if ``2 rate level >= volatility^2``. At ``T``, with ``exp(-rate T)``
    of their distance to the level left, they are assumed to be stationary: of a Gamma distribution
    of the shape ``k = 2 rate level / volatility^2`` and the scale ``level / k``. The kernel is not
    Gaussian: the score is learned by methods without one.

    Args:
        event_shape: Shape of one event.
        rate: Of reversion, along the component axis.
        level: See above.
        volatility: See above.
        T: Last time.
        eps: First time that sampling and likelihood use.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import torch
        >>> from scoresde import CoxIngersollRoss
        >>> sde, y = CoxIngersollRoss((1,), level=2.0, volatility=0.5), torch.full((1, 1), 4.0)
        >>> sde.f(torch.tensor(0.0), y), sde.g(torch.tensor(0.0), y)
        (tensor([[-2.]]), tensor([[1.]]))
    """

    references = "cox1985"

    def __init__(
        self,
        event_shape: Sequence[int],
        rate: Numbers = 1.0,
        level: Numbers = 1.0,
        volatility: Numbers = 0.5,
        T: float = 5.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, T=T, eps=eps)
        values = {"rate": rate, "level": level, "volatility": volatility}
        for name, value in values.items():
            self.constant(name, value, positive=True)
            self.basis.blocks.check(name, getattr(self, name), alone=True)
        a, b, s = (getattr(self, name).detach().cpu() for name in values)
        shape = (2 * a * b / s**2).expand(self.basis.dim)
        self.prior = Gamma(shape, shape / b, validate_args=False)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        rate, level = self.constants(y, "rate", "level")
        return rate * (level - y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """See the class; of a state below ``level/10^4``, 0 or less, what it is there."""
        volatility, level = self.constants(y, "volatility", "level")
        return volatility * torch.maximum(y, _FLOOR * level).sqrt()
