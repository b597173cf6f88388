"""Learned dequantisation: where in its bin an integer becomes a real number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.checks import expect
from scoresde.noise import Generators, Noise


class VariationalDequantization(nn.Module):
    """``x = 2 (v + u) / bins - 1`` with a learned ``q(u | v)`` in the bin (Ho et al. 2019).

        log P(v) >= E_q [log p(v + u) - log q(u | v)],
        u = sigmoid(shift + scale l),        l standard logistic,

    where shift and log-scale, per number, are a network's. Without one both are 0, and ``u`` is
    uniform: `scoresde.data.dequantize`. Train it with the model, by ``bound(model, x) + log_q``;
    `scoresde.data.bits_per_dim` of ``log p(x) - log_q`` are then the tighter bound.

    Args:
        bins: Number of bins.
        network: The bins' centres in ``[-1, 1]``, ``(batch, *event_shape)``, to shifts and
            log-scales, two tensors of that shape.

    Raises:
        ValueError: If ``bins`` is below 2.

    Example:
        >>> import torch
        >>> from scoresde.data.dequantization import VariationalDequantization
        >>> x, log_q = VariationalDequantization(bins=4)(torch.tensor([[0, 3], [1, 2]]))
        >>> log_q.abs().max() < 1e-5
        tensor(True)
    """

    references = "ho2019"

    def __init__(self, bins: int, network: nn.Module | None = None) -> None:
        super().__init__()
        expect(bins >= 2, "bins", "at least 2", bins)
        self.bins, self.network = bins, network

    def forward(self, values: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Events, and the log-density of their ``u``, ``(batch,)``, in nats.

        Args:
            values: Integers of ``0..bins-1``, ``(batch, *event_shape)``.
            generator: Seeds ``u``.
        """
        centre = (2 * values + 1) / self.bins - 1
        flat = Noise.of(generator)(centre.flatten(1)).reshape(centre.shape)
        # logit(ndtr(xi)): each of its two tails by the function that has digits there
        logistic = torch.special.log_ndtr(flat) - torch.special.log_ndtr(-flat)
        shift, log_scale = torch.zeros_like(centre), torch.zeros_like(centre)
        if self.network is not None:
            shift, log_scale = self.network(centre)
        y = shift + log_scale.exp() * logistic
        log_q = _log_slope(logistic) - log_scale - _log_slope(y)
        x = 2 * (values + torch.sigmoid(y)) / self.bins - 1
        return x, log_q.flatten(1).sum(1)


def _log_slope(y: Tensor) -> Tensor:
    """Log-derivative of the logistic function, which is the standard logistic log-density."""
    slope: Tensor = nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y)
    return slope
