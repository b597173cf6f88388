"""Diffusion around a mixture of Gaussians whose components share axes and have several spectra.

A patch of a photograph has a structure and a contrast. ``K`` sets of axes times ``S`` spectra are
``K S`` Gaussians for little more than the price of ``K``: their projections are the same. Under
noise that is alike in all directions their denoised mean is a closed form; a network corrects it:

    D = D_mixture + d (g_1 z / sqrt(s^2 + sigma^2) + g_2 (z - D_mixture) / sigma)

with ``d`` and ``s`` the deviations that the mixture expects of what is left, and of the patch. The
gates ``g``, one for every component, are what a network says of the sizes of these two: where
there is more of a frequency than the mixture expects, more of it is let through. An untrained
network, which says 0, *is* the mixture, and a sign is nothing that has to be learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from estimators import ResidualMLP
from scoresde import DCT, DiagonalSDE, Identity, LogLinear
from scoresde.estimator import KernelEstimator
from scoresde.sdes.sde_coefficients import Kernel

LOW, HIGH = math.log(6e-4), math.log(1.5)
"""``log sigma``: half of the noise of dequantisation, and above the deviation of any frequency."""
FLOOR = 3e-7
"""Of variances: a quarter of that of dequantisation."""
GROUPS, ROWS = 16, 32
"""Noise levels of an update, and rows that share one."""


class Guess(NamedTuple):
    """What a mixture says of noisy rows ``(..., n)``.

    Attributes:
        mean: Denoised, ``(..., n)``.
        left: Deviation of what is left, root mean square over components, ``(..., 1)``.
        size: That of the rows without noise, ``(..., 1)``.
        responsibilities: Of the axes, ``(..., K)``.
    """

    mean: Tensor
    left: Tensor
    size: Tensor
    responsibilities: Tensor


class ScaleMixture(nn.Module):
    """``K`` axes and means, ``S`` spectra each.

    Args:
        log_weights: ``(K, S)``.
        means: ``(K, n)``.
        variances: Along the axes, ``(K, S, n)``.
        axes: In columns, ``(K, n, n)``.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    turn: Tensor
    start: Tensor
    back: Tensor

    def __init__(self, log_weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor) -> None:
        super().__init__()
        fixed = {
            "log_weights": log_weights,
            "means": means,
            "variances": variances,
            "axes": axes,
            "turn": axes.transpose(0, 1).flatten(1).contiguous(),
            "start": (means.unsqueeze(1) @ axes).flatten(),
            "back": axes.mT.flatten(0, 1).contiguous(),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value)

    def joint(self, z: Tensor, variance: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density of rows and their component, under noise.

        Args:
            z: ``(groups, rows, n)``.
            variance: Of the noise, ``(groups, 1, 1, 1)`` or a number.

        Returns:
            ``(groups, K, rows, S)``; rows along the axes, ``(groups, K, rows, n)``; variances with
            noise, ``(groups or 1, K, S, n)``.
        """
        count, n = self.means.shape
        along = torch.addmm(-self.start, z.flatten(0, 1), self.turn)
        along = along.unflatten(1, (count, n)).unflatten(0, z.shape[:2]).transpose(1, 2)
        noisy = self.variances + variance
        noisy = noisy if noisy.ndim == 4 else noisy.unsqueeze(0)
        constant = self.log_weights - (noisy.log().sum(-1) + n * math.log(2 * math.pi)) / 2
        power = along.square() @ noisy.reciprocal().mT
        return constant.unsqueeze(2) - power / 2, along, noisy

    def log_prob(self, z: Tensor) -> Tensor:
        """Of rows ``(batch, n)``: ``(batch,)``."""
        parts = [self.joint(part.unsqueeze(0))[0][0] for part in z.split(1000)]
        return torch.cat([part.transpose(0, 1).flatten(1).logsumexp(1) for part in parts])

    def guess(self, z: Tensor, sigma: Tensor) -> Guess:
        """What it says of rows ``(groups, rows, n)`` with noise ``(groups, 1, 1)``."""
        noise = sigma.square().unsqueeze(-1)
        log_joint, along, noisy = self.joint(z, noise)
        shape = log_joint.shape
        flat = log_joint.transpose(1, 2).flatten(2).softmax(-1)
        shares = flat.unflatten(2, (shape[1], shape[3])).transpose(1, 2)  # as log_joint
        gain = self.variances / noisy
        pulled = (shares @ gain) * along
        mean = pulled.transpose(1, 2).flatten(2).flatten(0, 1) @ self.back
        of_axes = shares.sum(-1).transpose(1, 2)
        mean = mean.unflatten(0, z.shape[:2]) + of_axes @ self.means
        left = (shares * (noise * gain).mean(-1).unsqueeze(2)).sum((1, 3)).sqrt()
        size = (shares * self.variances.mean(-1).unsqueeze(1)).sum((1, 3)).sqrt()
        return Guess(mean, left.unsqueeze(-1), size.unsqueeze(-1), of_axes)


class ScaleMixtureBaseline(KernelEstimator):
    """A network that corrects the mixture's denoised mean; see the module.

    Args:
        sde: One noise level for all components.
        network: `Gates`; None is the mixture alone.
        mixture: Of coefficients.
    """

    def __init__(self, sde: DiagonalSDE, network: nn.Module | None, mixture: ScaleMixture) -> None:
        super().__init__(sde)
        self.network, self.mixture = network, mixture

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the module."""
        alpha, sigma = kernel
        rows = (z / alpha).reshape(-1, z.shape[-1])
        noise = (sigma / alpha)[..., :1]
        together = noise.numel() == 1
        rows = rows.unsqueeze(0 if together else 1)
        noise = noise if together else noise.expand(*z.shape[:-1], 1)
        noise = noise.reshape(-1, 1, 1)
        return self.corrected(rows, noise)[0].reshape(z.shape)

    def corrected(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Denoised means with and without the network, of ``(groups, rows, n)``.

        Args:
            z: Rows with noise.
            sigma: Its deviation, ``(groups, 1, 1)``.
        """
        guess = self.mixture.guess(z, sigma)
        if self.network is None:
            return guess.mean, guess.mean
        whole = (guess.size.square() + sigma.square()).sqrt()
        ratios = [(guess.size / sigma).log(), (guess.left / sigma).log()]
        rest = (z - guess.mean) / sigma
        condition = torch.cat([rest, guess.responsibilities, *ratios], -1).flatten(0, 1)
        level = (sigma.log() / 4).expand(*z.shape[:2], 1).reshape(-1)
        said = self.network((z / whole).flatten(0, 1), level, condition)
        return guess.mean + guess.left * said.unflatten(0, z.shape[:2]), guess.mean

    def gains(self, x: Tensor, log_sigma: Tensor, xi: Tensor) -> Tensor:
        """By how much the network is better, in nats per unit of ``log sigma``.

        With ``SNR = 1 / sigma^2`` the bound's integrand is ``|x - D|^2 / sigma^2``.

        Args:
            x: ``(groups, rows, n)``.
            log_sigma: ``(groups,)``.
            xi: Noise, as ``x``.
        """
        sigma = log_sigma.exp().reshape(-1, 1, 1)
        better, mean = self.corrected(x + sigma * xi, sigma)
        errors = [((x - d) / sigma).square().sum(-1) for d in (mean, better)]
        return errors[0] - errors[1]


class Gates(nn.Module):
    """What the network says, ``(batch, n)``: its inputs, each through a gate.

    Args:
        components: ``n``.
        axes: ``K``.
        width: Of the hidden layers.
        depth: Number of residual blocks.
    """

    def __init__(self, components: int, axes: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.inner = ResidualMLP((2 * components,), width, depth, condition_dim=axes + 2)

    def forward(self, x: Tensor, noise_level: Tensor, condition: Tensor) -> Tensor:
        """Rows, and as condition what the mixture has left of them, responsibilities and sizes."""
        inputs = torch.cat([x, condition[:, : x.shape[1]]], 1)
        sizes = (inputs.abs() + 0.05).log()
        gates: Tensor = self.inner(sizes, noise_level, condition[:, x.shape[1] :])
        return (gates * inputs).unflatten(1, (2, -1)).sum(1)


def frequencies(x: Tensor) -> Tensor:
    """Of patches without their mean and last pixel, the 63 that are left, ``(batch, 63)``.

    In these coordinates the noise of dequantisation is alike in all directions. They are not
    orthonormal coordinates of ``x``: its log-density is higher by `JUMP`.
    """
    whole = torch.cat([x, -x.sum(1, keepdim=True)], 1).unflatten(1, (1, 8, 8))
    return DCT((1, 8, 8))(whole)[:, 1:].float()


JUMP = math.log(8)
"""Half the log-determinant of ``1 + 1 1^T``, of 63 pixels: the last one moves with each."""


def around_scale_mixture(
    train: Tensor,
    valid: Tensor,
    held_out: Tensor,
    seconds: float,
    seed: int,
    fit: Callable[..., dict[str, float]],
) -> tuple[dict[str, Any], Tensor]:
    """The results of the arm, and the log-density of every held-out patch.

    Half of the time is the mixture's, four minutes at most. The network is left out if validation
    says so.

    Args:
        train: Patches, ``(N, 63)``.
        valid: As well, of which 500 say whether the network is kept.
        held_out: As well.
        seconds: Processor time.
        seed: Of everything.
        fit: `benchmarks.density.fit`.
    """
    torch.manual_seed(seed)
    start, rows = time.process_time(), frequencies(train)
    mixture = fitted_mixture(rows, 64, 8, min(seconds / 2, 240.0), seed)
    used = time.process_time() - start
    sde = DiagonalSDE(LogLinear(15.0, -4.0), Identity((63,)))
    model = ScaleMixtureBaseline(sde, Gates(63, 64), mixture)
    generator = torch.Generator().manual_seed(seed + 1)

    def loss(x: Tensor) -> Tensor:
        x = x.unflatten(0, (GROUPS, ROWS))
        xi = torch.randn(x.shape, generator=generator)
        return (LOW - HIGH) * model.gains(x, strata(GROUPS, generator), xi).flatten()

    row: dict[str, Any] = fit(model, loss, rows, seconds - used, seed, batch=GROUPS * ROWS, lr=1e-3)
    row["training_seconds"] += used
    model.eval()
    row["validation"] = float(gained(model, frequencies(valid[:500]), 48).mean())
    test = frequencies(held_out)
    reference = mixture.log_prob(test) + JUMP
    row["reference"] = float(reference.mean())
    gain = gained(model, test, 64) if row["validation"] > 0 else torch.zeros(len(test))
    return row, reference + gain


def strata(groups: int, generator: torch.Generator) -> Tensor:
    """One ``log sigma`` in each of so many equal parts, ``(groups,)``."""
    u = torch.rand(groups, generator=generator)
    return LOW + (HIGH - LOW) * (torch.arange(groups) + u) / groups


def gained(model: ScaleMixtureBaseline, x: Tensor, groups: int, seed: int = 0) -> Tensor:
    """By how much the network raises the bound, ``(batch,)``, in nats: unbiased."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(x))
    with torch.no_grad():
        for log_sigma in strata(groups, generator):
            xi = torch.randn(x.shape, generator=generator)
            more = model.gains(x.unsqueeze(0), log_sigma.reshape(1), xi.unsqueeze(0))[0]
            total += more * (HIGH - LOW) / groups
    return total


def fitted_mixture(
    z: Tensor, count: int, spectra: int, seconds: float, seed: int, batch: int = 32_000
) -> ScaleMixture:
    """By expectation-maximisation on random batches, statistics averaged over the latest.

    Starts with rows grouped by the direction they are nearest to, and by their length. Axes are
    those of the covariances of their spectra, each in its own unit.

    Args:
        z: Rows, ``(N, n)``.
        count: Of axes.
        spectra: Of each.
        seconds: Processor time.
        seed: Of the batches.
        batch: Their size.
    """
    generator = torch.Generator().manual_seed(seed)
    begun, step, n = time.process_time(), 0, z.shape[1]
    rows = z[torch.randint(len(z), (batch,), generator=generator)]
    shares = _first_shares(rows / z.std(0), rows.norm(dim=1), count, spectra, generator)
    statistics: list[Tensor] = []
    while True:
        late = min(1.0, (time.process_time() - begun) / seconds)
        second = torch.empty(count * spectra, n, n)
        for k, weights in enumerate(shares.T):  # most rows are of few components
            mine = weights > 1e-3
            second[k] = (rows[mine] * weights[mine, None]).T @ rows[mine] / batch
        new = [shares.mean(0), shares.T @ rows / batch, second]
        weight = 1.0 if step < 3 else max(0.1, 0.4 * (1 - late))
        statistics = [torch.lerp(a, b, weight) for a, b in zip(statistics or new, new, strict=True)]
        mixture = _maximised(statistics, count, 4 * batch)
        step += 1
        if late >= 1:
            return mixture
        rows = z[torch.randint(len(z), (batch,), generator=generator)]
        parts = [mixture.joint(part.unsqueeze(0))[0][0] for part in rows.split(1000)]
        shares = torch.cat([part.transpose(0, 1).flatten(1).softmax(1) for part in parts])


def _first_shares(
    white: Tensor, lengths: Tensor, count: int, spectra: int, generator: torch.Generator
) -> Tensor:
    unit = white / white.norm(dim=1, keepdim=True)
    nearest = (
        (unit @ unit[torch.randperm(len(unit), generator=generator)[:count]].T).abs().argmax(1)
    )
    shares = torch.zeros(len(unit), count, spectra)
    for k in range(count):
        mine = (nearest == k).nonzero().flatten()
        for s, part in enumerate(mine[lengths[mine].argsort()].tensor_split(spectra)):
            shares[part, k, s] = 1
    return shares.flatten(1)


def _maximised(statistics: list[Tensor], count: int, rows: int) -> ScaleMixture:
    """Of weights, first and second moments of all components."""
    weights, first, second = (v.unflatten(0, (count, -1)) for v in statistics)
    weights = weights.clamp(min=1e-7)
    of_axes = weights.sum(1)
    means = first.sum(1) / of_axes[:, None]
    cross = first[..., :, None] * means[:, None, None]
    shifted = second - cross - cross.mT
    covariances = shifted / weights[..., None, None] + (means[:, :, None] * means[:, None])[:, None]
    units = covariances.diagonal(dim1=2, dim2=3).clamp(min=1e-9).log().mean(-1).exp()
    pooled = (covariances * (weights / units)[..., None, None]).sum(1) / of_axes[:, None, None]
    # correlations shrink by a few made-up rows
    diagonals, rows_of_axes = torch.diag_embed(pooled.diagonal(dim1=1, dim2=2)), rows * of_axes
    share = (20 / (rows_of_axes + 20))[:, None, None]
    pooled = torch.lerp(pooled, diagonals, share)
    axes = torch.linalg.eigh(pooled.double())[1].float()
    variances = torch.einsum("kij,ksil,klj->ksj", axes, covariances, axes).clamp(min=FLOOR)
    # and spectra to that of their axes
    shape = torch.einsum("kij,kil,klj->kj", axes, pooled, axes).clamp(min=1e-9)[:, None]
    size = (variances / shape).mean(-1, keepdim=True)
    variances = torch.lerp(variances, size * shape, 5 / (rows * weights + 5)[..., None])
    log_weights = (weights / weights.sum()).log()
    return ScaleMixture(log_weights, means, variances.clamp(min=FLOOR), axes)
