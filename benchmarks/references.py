"""First guesses of a density, whose denoised means are closed forms: mixtures of Gaussians.

A network that corrects such a guess starts where the guess is, not at a single Gaussian:

    D = D_r + c_out F(c_in (z - alpha m), noise_level, ...)

with ``D_r`` the mixture's denoised mean and, for ``(m, v)`` the mean and variance of its components
weighted by their responsibilities at ``z``, ``c_in = V^(-1/2)``, ``c_out = sigma sqrt(v / V)``,
``V = alpha^2 v + sigma^2``: EDM's scales, by kind of event. A mixture of one component, with
the data's moments, is `estimators.Denoising`.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde import DiagonalSDE, ScoreEstimator


class Mixture(NamedTuple):
    """Log-weights of ``K`` Gaussians ``(*, K)``; means and variances ``(*, K, n)``.

    Variances are those along the columns of ``axes``, ``(K, n, n)``, if there are any.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None = None

    def log_prob(self, z: Tensor) -> Tensor:
        """Of ``(batch, n)``: ``(batch,)``."""
        return self.joint(z).logsumexp(-1)

    def joint(self, z: Tensor) -> Tensor:
        """Log-density of an event and its component, ``(batch, K)``."""
        n = z.shape[-1]
        if self.means.ndim > 2:  # a mixture for every event
            distances = (z.unsqueeze(-2) - self.means).square() / self.variances
            power = distances.sum(-1)
        elif self.axes is None:
            pull = self.means / self.variances
            power = z.square() @ (1 / self.variances).mT - 2 * z @ pull.mT
            power = power + (pull * self.means).sum(-1)
        else:
            white = self.axes / self.variances.sqrt().unsqueeze(-2)
            start = (self.means.unsqueeze(1) @ white).flatten()
            turn = white.transpose(0, 1).flatten(1)
            parts = [  # as many rows as a processor keeps at hand
                torch.addmm(-start, part, turn).unflatten(1, (-1, n)).square().sum(-1)
                for part in z.split(1000)
            ]
            power = torch.cat(parts)
        return (
            self.log_weights
            - (power + self.variances.log().sum(-1) + n * math.log(2 * math.pi)) / 2
        )

    def rotated(self, gap: Tensor, back: bool = False) -> Tensor:
        """``(batch, K, n)`` along the axes, or back."""
        if self.axes is None:
            return gap
        axes = self.axes.mT if back else self.axes
        return torch.bmm(gap.transpose(0, 1), axes).transpose(0, 1)


class MixtureBaseline(ScoreEstimator):
    """A network that corrects a mixture's denoised mean; see the module.

    Args:
        sde: How data are diffused.
        network: ``network(x, noise_level, condition)`` on coefficients; the condition, if there is
            one, else the responsibilities.
        mixture: A module ``condition -> Mixture``, of coefficients over ``scale``. One with
            axes needs all coefficients to share their noise level in these units.
        scale: Units of the mixture, ``(n,)``.
        shift: Their origin, ``(n,)``.
    """

    def __init__(
        self,
        sde: DiagonalSDE,
        network: nn.Module,
        mixture: nn.Module,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
    ) -> None:
        super().__init__(sde)
        self.network, self.mixture = network, mixture
        self.register_buffer("scale", torch.as_tensor(scale).float())
        self.register_buffer("shift", torch.as_tensor(shift).float())

    def without_network(self) -> MixtureBaseline:
        """The mixture alone, not corrected."""
        return MixtureBaseline(self.sde, NoNetwork(), self.mixture, self.scale, self.shift)

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the module."""
        shape, mixture = z.shape, self.mixture(condition)
        times = self.sde.time(t, z)
        at = self.sde.at(times, z)
        alpha, sigma = (v.to(z) for v in at.kernel)
        noise_level = (at.noise_level / 4).to(z).reshape(-1)
        flat = (z - alpha * self.shift).div(self.scale).reshape(-1, shape[-1])
        sigma = (sigma / self.scale).expand(shape).reshape(flat.shape).unsqueeze(-2)
        alpha = alpha.expand(shape).reshape(flat.shape).unsqueeze(-2)
        gap = mixture.rotated(flat.unsqueeze(-2) - alpha * mixture.means)
        noisy_variances = alpha**2 * mixture.variances + sigma**2
        power = gap.square() / noisy_variances + noisy_variances.log()
        responsibilities = (mixture.log_weights - power.sum(-1) / 2).softmax(-1)
        pulled = mixture.rotated(alpha * mixture.variances / noisy_variances * gap, back=True)
        denoised = (responsibilities.unsqueeze(-1) * (mixture.means + pulled)).sum(-2)
        variances = mixture.variances
        if mixture.axes is not None:
            variances = torch.einsum("kij,kj->ki", mixture.axes.square(), variances)
        mean = (responsibilities.unsqueeze(-1) * mixture.means).sum(-2)
        variance = (responsibilities.unsqueeze(-1) * variances).sum(-2)
        alpha, sigma = alpha.squeeze(-2), sigma.squeeze(-2)
        noisy_std = (alpha**2 * variance + sigma**2).sqrt()
        inputs = [responsibilities] if condition is None else [condition, variance.log()]
        x = (flat - alpha * mean) / noisy_std
        correction = self.network(x, noise_level.expand(len(x)), torch.cat(inputs, -1))
        denoised = denoised + sigma * variance.sqrt() / noisy_std * correction
        return denoised.reshape(shape) * self.scale + self.shift


class NoNetwork(nn.Module):
    """A network that corrects nothing."""

    def forward(self, x: Tensor, noise_level: Tensor, condition: Any = None) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


class ConditionalMixture(nn.Module):
    """Mixtures of one number given features: mixture density networks, several at once.

    Each network sets a location and a scale for its mixture, and refines both in that scale, as the
    affine layers of a flow do: with locations and widths in one fixed unit it learns slowly where
    the noise depends much on the features. A fiftieth of the weight is on a wide Gaussian.

    All parameters lead with the number of networks, and so do batches in training, a batch for
    each; to rows for all of them the answer is the mixture of their mixtures.

    Args:
        members: Number of networks.
        features: Number of features, standardised, as the target.
        components: How many Gaussians each mixture has.
        width: Of the hidden layers.
        dropout: Inside the residual blocks.
    """

    FLOOR, SAFE = 3e-4, 0.02

    def __init__(
        self,
        members: int,
        features: int,
        components: int = 8,
        width: int = 64,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.components, self.dropout = components, dropout
        self.linear_in = MemberLinear(members, features, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList([MemberLinear(members, width, width) for _ in range(2)]) for _ in range(2)
        )
        self.hidden = MemberLinear(members, width + features, 3 * width)
        self.heads = nn.ModuleList(
            [MemberLinear(members, width, k, 0.1) for k in (2, 2, 3 * components)]
        )

    def member(self, member: int) -> ConditionalMixture:
        """One of the networks."""
        alone = copy.deepcopy(self)
        for parameter in alone.parameters():
            parameter.data = parameter.data[member : member + 1]
        return alone

    def forward(self, condition: Tensor) -> Mixture:
        """A mixture for every row of features.

        ``(batch, features)`` to ``(batch, members * K, 1)``, ``(members, batch, features)`` to
        ``(members, batch, K, 1)``.
        """
        members = len(self.linear_in.weight)
        shared = condition.ndim == 2
        x = condition.expand(members, -1, -1) if shared else condition
        hidden = self.linear_in(x)
        for first, second in self.blocks:  # type: ignore[misc]
            shift = functional.silu(first(functional.layer_norm(hidden, hidden.shape[-1:])))
            hidden = hidden + second(functional.dropout(shift, self.dropout, self.training))
        hidden = self.hidden(torch.cat([hidden, x], -1)).relu().chunk(3, -1)
        coarse, fine, shapes = (f(v) for f, v in zip(self.heads, hidden, strict=True))
        location, log_scale = coarse.split(1, -1)
        shift, finer = fine.split(1, -1)
        location, log_scale = location + log_scale.exp() * shift, (log_scale + finer).clamp(-10, 5)
        weights, means, widths = shapes.split(self.components, -1)
        apart = torch.linspace(-1, 1, self.components).to(means)
        means = location + log_scale.exp() * (means + apart)
        variances = (2 * (log_scale + widths.clamp(-6, 6))).exp() + self.FLOOR**2
        zero = torch.zeros_like(location)
        parameters = [
            torch.cat(
                [weights.log_softmax(-1) + math.log1p(-self.SAFE), zero + math.log(self.SAFE)], -1
            ),
            torch.cat([means, zero], -1),
            torch.cat([variances, zero + 2.5], -1),
        ]
        if shared:
            parameters[0] = parameters[0] - math.log(members)
            parameters = [v.transpose(0, 1).flatten(1) for v in parameters]
        return Mixture(parameters[0], *(v.unsqueeze(-1) for v in parameters[1:]))


class MemberLinear(nn.Module):
    """A linear map each of several networks: ``(members, batch, start)`` to ``(..., end)``."""

    def __init__(self, members: int, start: int, end: int, gain: float = 1.0) -> None:
        super().__init__()
        bound = gain / start**0.5
        self.weight = nn.Parameter(torch.empty(members, start, end).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, end).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return torch.baddbmm(self.bias, x, self.weight)


class FixedMixture(nn.Module):
    """A mixture that does not depend on a condition."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        for name, value in mixture._asdict().items():
            self.register_buffer(name, value)

    def forward(self, condition: Any = None) -> Mixture:
        """The mixture."""
        return Mixture(self.log_weights, self.means, self.variances, self.axes)  # type: ignore[arg-type]


def expectation_maximisation(
    z: Tensor, count: int, seconds: float, own_axes: bool, seed: int = 0, batch: int = 32_000
) -> Mixture:
    """A mixture fitted on random batches, statistics averaged over the latest (Cappe 2009).

    Starts with events grouped by their length. Components first have the given axes, then, with
    ``own_axes``, each its own; their correlations are shrunk by a few made-up observations.

    Args:
        z: Standardised events, ``(N, n)``.
        count: Number of components.
        seconds: Processor time.
        own_axes: Whether components have axes of their own.
        seed: Of the batches.
        batch: Their size.
    """
    generator = torch.Generator().manual_seed(seed)
    start, step, full_steps = time.process_time(), 0, 0
    rows = z[torch.randint(len(z), (batch,), generator=generator)]
    responsibilities = torch.zeros(batch, count)
    for k, part in enumerate(rows.square().sum(1).argsort().tensor_split(count)):
        responsibilities[part, k] = 1
    statistics: list[Tensor] = []
    while True:
        late = (time.process_time() - start) / seconds
        full_covariances = own_axes and step >= 40
        full_steps += full_covariances
        new = [
            responsibilities.mean(0),
            responsibilities.mT @ rows / batch,
            _second(rows, responsibilities, full_covariances) / batch,
        ]
        fresh = step < 10 or full_steps in range(1, 4)
        weight = 1.0 if fresh else max(0.1, 0.4 * (1 - late))
        statistics = (
            new
            if fresh
            else [torch.lerp(a, b, weight) for a, b in zip(statistics, new, strict=True)]
        )
        weights = statistics[0].clamp(min=1e-6)
        means, second = statistics[1] / weights[:, None], statistics[2]
        log_weights = (weights / weights.sum()).log()
        if full_covariances:
            covariances = second / weights[:, None, None] - means[:, :, None] * means[:, None]
            diagonals = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2).clamp(min=1e-6))
            counts = (4 * batch * weights)[:, None, None]
            values, axes = torch.linalg.eigh(
                ((counts * covariances + 20 * diagonals) / (counts + 20)).double()
            )
            mixture = Mixture(log_weights, means, values.clamp(min=1e-7).float(), axes.float())
        else:
            mixture = Mixture(
                log_weights, means, (second / weights[:, None] - means**2).clamp(min=1e-7)
            )
        step += 1
        if late >= 1 or (not own_axes and step == 60):
            return mixture
        rows = z[torch.randint(len(z), (batch,), generator=generator)]
        responsibilities = mixture.joint(rows).softmax(1)


def _second(rows: Tensor, responsibilities: Tensor, full: bool) -> Tensor:
    """Sums of squares, or of products, of every component."""
    if not full:
        return responsibilities.mT @ rows.square()
    products = []
    for weights in responsibilities.mT:  # most events are of few components
        mine = weights > 1e-3
        part = rows[mine]
        products.append((part * weights[mine, None]).mT @ part)
    return torch.stack(products)
