"""Recipes of diffusion as settings of the same objects, for images of one channel.

Those of `examples/` are the ones that are tested there.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from estimators import Denoising, MultiScale, UNet, measure
from scoresde import (
    CLD,
    DCT,
    EDM,
    HOLD,
    PCA,
    PSLD,
    VP,
    Basis,
    DiagonalSDE,
    Identity,
    LogLinear,
    Wavelet,
)
from scoresde.bases.dct import dct_matrix
from scoresde.planning import spectra
from scoresde.sampling.grid import Grid
from scoresde.schedules import Cosine
from scoresde.sdes.fronts import front
from solvers import ExponentialMultistep

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from blurring_diffusion import Blurring
from inverse_heat_dissipation import HeatDissipation, geometric
from learned_bands import Knots, by_quality, few_steps_error, learned_bands, whole_error
from spectral_noise import equal_snr, power_law
from variance_aware_drift import variance_aware_drift

LEVELS = 3
LEARNING, WHOLE = 300, 100
"""Steps of L-BFGS for a schedule that is learned before a network, and more on whole images."""

PARTS = (1, 1, 2, 4)
"""Of scales that have a path each, coarse first: fine ones have many coefficients, few steps."""

BANDS = 8
"""Of frequencies, or of principal components, that networks are given in units of their own."""

WIDTHS = ((16, 32, 64),)
STAGED = ((24, 48), (16, 32), (12, 24))
"""Of networks for a quarter, half and all of the resolution: as many parameters in all."""


@attrs.frozen
class Recipe:
    """How data are diffused, and what is trained on that.

    Attributes:
        sde: Of images ``(N, 1, height, width)``.
        weighting: Of the loss.
        times: Density of training times.
        grid: Of the sampler.
        learns: Whether the schedule goes on being learned with the network.
    """

    sde: Callable[[Tensor], DiagonalSDE]
    weighting: str = "balanced"
    times: str = "log_snr"
    grid: str | Grid = "log_snr"
    learns: bool = False

    def model(self, sde: DiagonalSDE, x: Tensor) -> Denoising | MultiScale:
        """Untrained, for images like ``x``: with one network, or one for every stage."""
        sde, shape = copy.deepcopy(sde), x.shape[1:]
        sde.schedule.requires_grad_(self.learns)
        options: dict[str, Any] = {"weighting": self.weighting, "times": self.times}
        options |= measure(sde, x)
        if len(sde.stages()) == 1:
            return Denoising(sde, UNet(shape, *WIDTHS, blocks=1), **options)
        makers = [partial(_network, widths=widths) for widths in STAGED]
        return MultiScale(sde, makers, network_bases="events", shares=(1.0, 1.0, 0.5), **options)

    def solver(self, steps: int) -> ExponentialMultistep:
        """With so many evaluations, in all stages together."""
        return ExponentialMultistep(steps, order=2, corrected=False, grid=self.grid)


def _network(shape: torch.Size, widths: tuple[int, ...]) -> nn.Module:
    return UNet(shape, widths, blocks=1)


def pixels(x: Tensor, schedule: Any, sde: Any = DiagonalSDE) -> DiagonalSDE:
    """Uniform diffusion, of pixels alone or with velocities beside them."""
    return sde(schedule(), Identity(x.shape[1:]))  # type: ignore[no-any-return]


def wavelets(x: Tensor, name: str = "db4") -> Basis:
    """A pyramid of four bands."""
    return Wavelet(x.shape[1:], LEVELS, name)


def banded(x: Tensor, wavelet: str = "db4", unit: bool = True, **options: Any) -> DiagonalSDE:
    """Log-linear in the bands of a pyramid, whose means are known, in their units if so wished."""
    basis = wavelets(x, wavelet)
    mean, std = basis.moments(x)
    return DiagonalSDE(LogLinear(), basis, mean=mean, scale=std if unit else 1.0, **options)


def staged(x: Tensor, wavelet: str) -> DiagonalSDE:
    """Multi-scale diffusion (arXiv 2207.09786): a band has ended when it is dropped."""
    drop = [1.0, 1.0, 0.75, 0.5]
    return banded(x, wavelet, speeds=[1 / t for t in drop], drop=drop)


def subspaces(x: Tensor, wavelet: str, drop: tuple[float, ...], wide: bool) -> DiagonalSDE:
    """Subspace diffusion (arXiv 2205.01490) on an image's pyramid: one noise, dropped when faint.

    With ``wide`` what enters has the width of the data, so that it may be dropped before.
    """
    std = wavelets(x, wavelet).moments(x)[1] if wide else 0.0
    return banded(x, wavelet, unit=False, drop=drop, std=std)


def blurring(x: Tensor) -> DiagonalSDE:
    """Blurring diffusion (arXiv 2209.05557)."""
    basis = DCT(x.shape[1:], bands=BANDS)
    return DiagonalSDE(Blurring(Cosine(), basis.frequencies), basis)


def heat(x: Tensor) -> DiagonalSDE:
    """Inverse heat dissipation (arXiv 2206.13397), from a Gaussian of the blurred images."""
    basis = DCT(x.shape[1:], bands=BANDS)
    blur = 0.6 * x.shape[-1]
    z = basis(x)
    return DiagonalSDE(
        HeatDissipation(basis.frequencies, T=blur**2 / 2), basis, mean=z.mean(0), std=z.std(0)
    )


def variances(x: Tensor) -> DiagonalSDE:
    """Drift by the square root of the variance (arXiv 2606.03360)."""
    sizes = {f"part{k}": x[0].numel() // BANDS for k in range(BANDS)}
    return variance_aware_drift(x, power=0.5, blocks=sizes)


def delayed(x: Tensor, overlap: float) -> DiagonalSDE:
    """Coarse to fine: finer bands are delayed less, without overlap one band after the other."""
    schedule = LogLinear()
    clock = front(range(LEVELS + 1), overlap, first=schedule.eps / schedule.T)
    return banded(x, speeds=clock)


def learned(x: Tensor, steps: int = 0) -> DiagonalSDE:
    """A path for every band, for so many steps on Gaussian coefficients if any."""
    sde = learned_bands(wavelets(x), x)
    if steps:
        variances = torch.cat([*spectra(sde.basis, x).values()])
        solver = ExponentialMultistep(steps, order=2, grid="uniform_time")
        by_quality(sde, lambda: few_steps_error(sde, variances, solver), LEARNING)
        sde.schedule.requires_grad_(False)
    return sde


def scales(x: Tensor, parts: Sequence[int], components: bool) -> Basis:
    """Every scale twice the one before, in parts of coefficients of like variance.

    An image at ``k`` by ``k`` pixels has its cosines below ``k`` along both axes; a scale is what
    twice the size adds: its cosines, or their principal ``components``.
    """
    n = x.shape[-1]
    matrix = dct_matrix(n)
    cosines = torch.kron(matrix, matrix)
    along = torch.arange(n)
    highest = torch.maximum(along.unsqueeze(-1), along).flatten()
    scale = (highest.unsqueeze(-1) >= n // 2 ** torch.arange(len(parts) - 1, 0, -1)).sum(-1)
    rows, sizes = [], {}
    for k, count in enumerate(parts):
        own = cosines[scale == k]
        covariance = torch.cov((x.flatten(1).double() @ own.mT).mT)
        if components:
            own = torch.linalg.eigh(covariance).eigenvectors.mT.flip(0) @ own
        else:
            own = own[covariance.diagonal().argsort(descending=True)]
        rows.append(own)
        sizes |= {f"scale{k}-{i}": len(piece) for i, piece in enumerate(own.tensor_split(count))}
    return PCA(torch.cat(rows), x.shape[1:], sizes)


def learned_stages(
    x: Tensor,
    steps: Sequence[int],
    parts: Sequence[int] = PARTS,
    whole: int = WHOLE,
    components: bool = False,
) -> tuple[DiagonalSDE, ExponentialMultistep]:
    """As that, with a scale dropped after each of so many steps, coarse first, and its solver.

    Time is equal in steps. Ends of paths are learned, too: a scale enters with the width of the
    data, at whatever levels are best for each of its parts.

    Args:
        x: Images.
        steps: Of the stages.
        parts: Of their scales, with a path each.
        whole: Steps of learning on the covariance of all, after those on that within scales.
        components: Whether coefficients are the principal components of scales, each in a unit of
            its own, and not cosines in that of their part.
    """
    basis, total = scales(x, parts, components), sum(steps)
    mean, std = basis.moments(x)
    if components:
        std = basis(x.double()).std(0)
    starts = [*itertools.accumulate(steps[:-1], initial=0)]
    firsts = [start for start, count in zip(starts, parts, strict=True) for _ in range(count)]
    schedule = Knots(total, firsts)
    times = torch.linspace(1, schedule.eps, total + 1, dtype=torch.float64).tolist()
    known: dict[str, Any] = {"scale": std, "std": std, "mean": mean}
    sde = DiagonalSDE(schedule, basis, drop=[times[first] for first in firsts], **known)
    solver = ExponentialMultistep(total, order=2, grid=times)
    variances = torch.cat([*spectra(basis, x).values()])
    covariance = torch.cov(x.flatten(1).double().mT)
    by_quality(sde, lambda: few_steps_error(sde, variances, solver), LEARNING)
    if whole:
        by_quality(sde, lambda: whole_error(sde, covariance, solver), whole)
    schedule.requires_grad_(False)
    return sde, solver


RECIPES = {
    "uniform VP": Recipe(partial(pixels, schedule=VP)),
    "CLD": Recipe(partial(pixels, schedule=VP, sde=CLD)),
    "PSLD": Recipe(partial(pixels, schedule=VP, sde=PSLD)),
    "HOLD": Recipe(partial(pixels, schedule=VP, sde=HOLD)),
    "EDM": Recipe(
        partial(pixels, schedule=EDM), weighting="prediction", times="log_normal", grid="karras"
    ),
    "bands, one noise": Recipe(partial(banded, unit=False)),
    "EqualSNR, sub-bands": Recipe(lambda x: equal_snr(wavelets(x), x)),
    "SAGD, f^-1/2": Recipe(lambda x: power_law(DCT(x.shape[1:], bands=BANDS), -0.5)),
    "variance-aware drift": Recipe(variances),
    "blurring": Recipe(blurring),
    "inverse heat dissipation": Recipe(heat, grid=geometric),
    "subspaces (DVDP), Haar": Recipe(
        partial(subspaces, wavelet="db1", drop=(1.0, 1.0, 0.55, 0.5), wide=False)
    ),
    "multi-scale, Haar": Recipe(partial(staged, wavelet="db1")),
    "multi-scale, db4": Recipe(partial(staged, wavelet="db4")),
    "multi-scale, db4, as wide as data": Recipe(
        partial(subspaces, wavelet="db4", drop=(1.0, 1.0, 0.69, 0.5), wide=True)
    ),
    "coarse to fine, delayed": Recipe(partial(delayed, overlap=0.6)),
    "autoregressive by band": Recipe(partial(delayed, overlap=0.0)),
    "learned per band, by the bound": Recipe(learned, weighting="likelihood", learns=True),
    "learned per band, for 8 steps": Recipe(partial(learned, steps=8), grid="uniform_time"),
}
