"""First guesses of a density, whose denoised means are closed forms: mixtures of Gaussians.

A network that corrects such a guess starts where the guess is, not at a single Gaussian:

    D = D_r + c_out F(c_in (z - alpha m), level, ...)

with ``D_r`` the mixture's denoised mean and, for ``(m, v)`` the mean and variance of its kinds
weighted by what each is responsible for at ``z``, ``c_in = V^(-1/2)``, ``c_out = sigma
sqrt(v / V)``, ``V = alpha^2 v + sigma^2``: EDM's scales, by kind of event. A mixture of one, with
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


class Kinds(NamedTuple):
    """A mixture: log-weights ``(*, K)``; means and variances ``(*, K, n)``.

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
        """Log-density of an event and its kind, ``(batch, K)``."""
        n = z.shape[-1]
        if self.means.ndim > 2:  # kinds of every event's own
            gaps = (z.unsqueeze(-2) - self.means).square() / self.variances
            power = gaps.sum(-1)
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

    def turned(self, gap: Tensor, back: bool = False) -> Tensor:
        """``(batch, K, n)`` along the axes, or back."""
        if self.axes is None:
            return gap
        axes = self.axes.mT if back else self.axes
        return torch.bmm(gap.transpose(0, 1), axes).transpose(0, 1)


class Around(ScoreEstimator):
    """A network that corrects a mixture's denoised mean; see the module.

    Args:
        sde: How data are diffused.
        network: ``network(x, level, condition)`` on coefficients; the condition given, if any,
            joined with the responsibilities where kinds are constant.
        kinds: A module ``condition -> Kinds`` in the SDE's coefficients over ``scale``. Kinds with
            axes need all components to share their noise level in these units.
        scale: Units of the kinds, ``(n,)``.
        shift: Their origin, ``(n,)``.
    """

    def __init__(
        self,
        sde: DiagonalSDE,
        network: nn.Module,
        kinds: nn.Module,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
    ) -> None:
        super().__init__(sde)
        self.network, self.kinds = network, kinds
        self.register_buffer("scale", torch.as_tensor(scale).float())
        self.register_buffer("shift", torch.as_tensor(shift).float())

    def alone(self) -> Around:
        """The guess, not corrected."""
        return Around(self.sde, Nothing(), self.kinds, self.scale, self.shift)

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the module."""
        shape, kinds = z.shape, self.kinds(condition)
        times = self.sde.time(t, z)
        at = self.sde.at(times, z)
        alpha, sigma = (v.to(z) for v in at.kernel)
        level = (at.noise_level / 4).to(z).reshape(-1)
        flat = (z - alpha * self.shift).div(self.scale).reshape(-1, shape[-1])
        sigma = (sigma / self.scale).expand(shape).reshape(flat.shape).unsqueeze(-2)
        alpha = alpha.expand(shape).reshape(flat.shape).unsqueeze(-2)
        gap = kinds.turned(flat.unsqueeze(-2) - alpha * kinds.means)
        spread = alpha**2 * kinds.variances + sigma**2
        power = gap.square() / spread + spread.log()
        share = (kinds.log_weights - power.sum(-1) / 2).softmax(-1)
        pulled = kinds.turned(alpha * kinds.variances / spread * gap, back=True)
        found = (share.unsqueeze(-1) * (kinds.means + pulled)).sum(-2)
        own = kinds.variances
        if kinds.axes is not None:
            own = torch.einsum("kij,kj->ki", kinds.axes.square(), own)
        mean = (share.unsqueeze(-1) * kinds.means).sum(-2)
        clean = (share.unsqueeze(-1) * own).sum(-2)
        alpha, sigma = alpha.squeeze(-2), sigma.squeeze(-2)
        width = (alpha**2 * clean + sigma**2).sqrt()
        given = [share] if condition is None else [condition, clean.log()]
        x = (flat - alpha * mean) / width
        more = self.network(x, level.expand(len(x)), torch.cat(given, -1))
        found = found + sigma * clean.sqrt() / width * more
        return found.reshape(shape) * self.scale + self.shift


class Nothing(nn.Module):
    """A network that corrects nothing."""

    def forward(self, x: Tensor, level: Tensor, condition: Any = None) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


class Conditional(nn.Module):
    """Kinds of one number given features: mixture density networks, several at once.

    Each network sets a place and a unit for its kinds, and refines both in the first unit, as the
    affine layers of a flow do: with places and widths in one fixed unit it learns slowly where
    the noise depends much on the features. A fiftieth of the weight is on a wide Gaussian.

    All parameters lead with the number of networks, and so do batches in training, a batch for
    each; to rows for all of them the answer is the mixture of their mixtures.

    Args:
        members: Number of networks.
        features: Number of features, standardised, as the target.
        kinds: Number of kinds per network.
        width: Of the hidden layers.
        dropout: Inside the residual blocks.
    """

    FLOOR, SAFE = 3e-4, 0.02

    def __init__(
        self, members: int, features: int, kinds: int = 8, width: int = 64, dropout: float = 0.15
    ) -> None:
        super().__init__()
        self.kinds, self.dropout = kinds, dropout
        self.enter = Linears(members, features, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Linears(members, width, width) for _ in range(2)]) for _ in range(2)
        )
        self.hidden = Linears(members, width + features, 3 * width)
        self.leave = nn.ModuleList([Linears(members, width, k, 0.1) for k in (2, 2, 3 * kinds)])

    def only(self, member: int) -> Conditional:
        """One of the networks."""
        one = copy.deepcopy(self)
        for parameter in one.parameters():
            parameter.data = parameter.data[member : member + 1]
        return one

    def forward(self, condition: Tensor) -> Kinds:
        """Kinds from features.

        ``(batch, features)`` to ``(batch, members * K, 1)``, ``(members, batch, features)`` to
        ``(members, batch, K, 1)``.
        """
        members = len(self.enter.weight)
        shared = condition.ndim == 2
        x = condition.expand(members, -1, -1) if shared else condition
        hidden = self.enter(x)
        for first, second in self.blocks:  # type: ignore[misc]
            more = functional.silu(first(functional.layer_norm(hidden, hidden.shape[-1:])))
            hidden = hidden + second(functional.dropout(more, self.dropout, self.training))
        hidden = self.hidden(torch.cat([hidden, x], -1)).relu().chunk(3, -1)
        coarse, fine, around = (f(v) for f, v in zip(self.leave, hidden, strict=True))
        place, unit = coarse.split(1, -1)
        more, finer = fine.split(1, -1)
        place, unit = place + unit.exp() * more, (unit + finer).clamp(-10, 5)
        weights, means, widths = around.split(self.kinds, -1)
        means = place + unit.exp() * (means + torch.linspace(-1, 1, self.kinds).to(means))
        variances = (2 * (unit + widths.clamp(-6, 6))).exp() + self.FLOOR**2
        wide = torch.zeros_like(place)
        found = [
            torch.cat(
                [weights.log_softmax(-1) + math.log1p(-self.SAFE), wide + math.log(self.SAFE)], -1
            ),
            torch.cat([means, wide], -1),
            torch.cat([variances, wide + 2.5], -1),
        ]
        if shared:
            found[0] = found[0] - math.log(members)
            found = [v.transpose(0, 1).flatten(1) for v in found]
        return Kinds(found[0], *(v.unsqueeze(-1) for v in found[1:]))


class Linears(nn.Module):
    """A linear map each of several networks: ``(members, batch, start)`` to ``(..., end)``."""

    def __init__(self, members: int, start: int, end: int, gain: float = 1.0) -> None:
        super().__init__()
        most = gain / start**0.5
        self.weight = nn.Parameter(torch.empty(members, start, end).uniform_(-most, most))
        self.bias = nn.Parameter(torch.empty(members, 1, end).uniform_(-most, most))

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return torch.baddbmm(self.bias, x, self.weight)


class Constant(nn.Module):
    """Kinds that do not depend on a condition."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        for name, value in kinds._asdict().items():
            self.register_buffer(name, value)

    def forward(self, condition: Any = None) -> Kinds:
        """The kinds."""
        return Kinds(self.log_weights, self.means, self.variances, self.axes)  # type: ignore[arg-type]


def expectation_maximisation(
    z: Tensor, count: int, seconds: float, turned: bool, seed: int = 0, batch: int = 32_000
) -> Kinds:
    """A mixture fitted on random batches, statistics averaged over the latest (Cappe 2009).

    Starts with events grouped by their length. Kinds first have the given axes, then, with
    ``turned``, their own; their correlations are shrunk by a few made-up observations.

    Args:
        z: Standardised events, ``(N, n)``.
        count: Number of kinds.
        seconds: Processor time.
        turned: Whether kinds have axes of their own.
        seed: Of the batches.
        batch: Their size.
    """
    generator = torch.Generator().manual_seed(seed)
    start, step, turning = time.process_time(), 0, 0
    rows = z[torch.randint(len(z), (batch,), generator=generator)]
    share = torch.zeros(batch, count)
    for k, part in enumerate(rows.square().sum(1).argsort().tensor_split(count)):
        share[part, k] = 1
    kept: list[Tensor] = []
    while True:
        late = (time.process_time() - start) / seconds
        full = turned and step >= 40
        turning += full
        new = [share.mean(0), share.mT @ rows / batch, _second(rows, share, full) / batch]
        fresh = step < 10 or turning in range(1, 4)
        weight = 1.0 if fresh else max(0.1, 0.4 * (1 - late))
        kept = new if fresh else [torch.lerp(a, b, weight) for a, b in zip(kept, new, strict=True)]
        mass = kept[0].clamp(min=1e-6)
        means, second = kept[1] / mass[:, None], kept[2]
        log_weights = (mass / mass.sum()).log()
        if full:
            spread = second / mass[:, None, None] - means[:, :, None] * means[:, None]
            own = torch.diag_embed(spread.diagonal(dim1=1, dim2=2).clamp(min=1e-6))
            seen = (4 * batch * mass)[:, None, None]
            values, axes = torch.linalg.eigh(((seen * spread + 20 * own) / (seen + 20)).double())
            kinds = Kinds(log_weights, means, values.clamp(min=1e-7).float(), axes.float())
        else:
            kinds = Kinds(log_weights, means, (second / mass[:, None] - means**2).clamp(min=1e-7))
        step += 1
        if late >= 1 or (not turned and step == 60):
            return kinds
        rows = z[torch.randint(len(z), (batch,), generator=generator)]
        share = kinds.joint(rows).softmax(1)


def _second(rows: Tensor, share: Tensor, full: bool) -> Tensor:
    """Sums of squares, or of products, of every kind."""
    if not full:
        return share.mT @ rows.square()
    found = []
    for weights in share.mT:  # most events are of few kinds
        some = weights > 1e-3
        part = rows[some]
        found.append((part * weights[some, None]).mT @ part)
    return torch.stack(found)
