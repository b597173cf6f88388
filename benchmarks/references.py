"""First guesses of a density, whose denoised means are closed forms: mixtures of Gaussians.

A network that corrects such a guess starts where the guess is, not at a single Gaussian:

    D = D_r + c_out F(c_in (z - alpha m), level, ...)

with ``D_r`` the mixture's denoised mean and, for ``(m, v)`` the mean and variance of its kinds
weighted by what each is responsible for at ``z``, ``c_in = V^(-1/2)``, ``c_out = sigma
sqrt(v / V)``, ``V = alpha^2 v + sigma^2``: EDM's scales, by kind of event. A mixture of one, with
the data's moments, is `estimators.Denoising`.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
        if self.means.ndim == 3:  # kinds of every event's own
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
        alpha, sigma = (v.to(z) for v in self.sde.kernel(times, shape[-1]))
        level = (self.sde.level(times) / 4).to(z).reshape(-1)
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
    """Kinds of one number given features: a mixture density network, and atoms.

    Free kinds have weights, means and widths of the network's. Atoms are those of a mixture fitted
    to the targets alone, weighted by the network and by how well they fit a Gaussian of its own:
    they know of targets that come on a grid. A fiftieth of the weight is on what a linear
    regression leaves, around that Gaussian's mean.

    Args:
        train: Rows of features and the target, standardised.
        free: Number of free kinds.
        atoms: Largest number of atoms.
        width: Of the network.
        dropout: Inside it.
    """

    FLOOR, SAFE = 3e-4, 0.02

    def __init__(
        self, train: Tensor, free: int, atoms: int, width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        x, y = train[:, :-1], train[:, -1]
        ones = torch.cat([x, torch.ones(len(x), 1)], 1)
        ridge = 1e-3 * len(x) * torch.eye(ones.shape[1])
        slope = torch.linalg.solve(ones.mT @ ones + ridge, ones.mT @ y)
        log_weights, means, variances = _atoms(y, atoms, self.FLOOR)
        self.register_buffer("slope", slope)
        self.register_buffer("rest", (y - ones @ slope).std())
        self.register_buffer("atom_weights", log_weights)
        self.means, self.log_variances = nn.Parameter(means), nn.Parameter(variances.log())
        self.sizes = [free] * 3 + [2, len(means)]
        self.enter = nn.Linear(x.shape[1], width)
        self.blocks = nn.Sequential(*(Residual(width, dropout) for _ in range(2)))
        self.leave = layers(width, sum(self.sizes), dropout)
        last = self.leave[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.zero_()[free : 2 * free] = torch.linspace(-1, 1, free)

    def forward(self, condition: Tensor) -> Kinds:
        """Kinds ``(batch, K, 1)`` from features ``(batch, n)``."""
        hidden = self.blocks(self.enter(condition))
        weights, means, widths, own, tilt = self.leave(hidden).split(self.sizes, -1)
        start = (condition @ self.slope[:-1] + self.slope[-1]).unsqueeze(-1)
        means, centre = start + self.rest * means, start + self.rest * own[:, :1]
        variances = self._width(widths).square()
        atoms = self.log_variances.exp()
        miss = (self.means - centre).square() / (self._width(own[:, 1:]).square() + atoms)
        found = (self.atom_weights + tilt - miss / 2).log_softmax(-1) - 1
        log_weights = torch.cat([weights, found], -1).log_softmax(-1) + math.log(1 - self.SAFE)
        safe = torch.full_like(centre, math.log(self.SAFE))
        return Kinds(
            torch.cat([log_weights, safe], -1),
            torch.cat([means, self.means.expand(len(means), -1), centre], -1).unsqueeze(-1),
            torch.cat(
                [variances, atoms.expand(len(means), -1), self.rest.square().expand_as(centre)], -1
            ).unsqueeze(-1)
            + self.FLOOR**2,
        )

    def _width(self, value: Tensor) -> Tensor:
        scaled: Tensor = nn.functional.softplus(value) / math.log(2) * self.rest
        return scaled


def layers(width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(width, out),
    )


class Residual(nn.Module):
    """Hidden layers, added to what enters them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = layers(width, width, dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, width)``."""
        more: Tensor = self.body(hidden)
        return hidden + more


def _atoms(y: Tensor, count: int, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Expectation-maximisation on one number, from quantiles, or from the values if few."""
    y = y[torch.randperm(len(y))[:5000]].double()
    values = y.unique()
    parts = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    means = values if len(values) <= count else torch.quantile(y, parts)
    gaps = means.diff()
    variances = (
        torch.maximum(torch.cat([gaps, gaps[-1:]]), torch.cat([gaps[:1], gaps]))
        .clamp(min=floor)
        .square()
    )
    weights = torch.full_like(means, -math.log(len(means)))
    for _ in range(60):
        gap = (y[:, None] - means).square()
        share = (weights - (gap / variances + variances.log()) / 2).softmax(1)
        mass = share.sum(0) + 1e-9
        weights = ((mass + 1) / (mass + 1).sum()).log()
        means = (share.mT @ y + 1e-3 * means) / (mass + 1e-3)
        gap = (y[:, None] - means).square()
        variances = ((share * gap).sum(0) / mass).clamp(min=floor**2)
    return weights.float(), means.float(), variances.float()


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
