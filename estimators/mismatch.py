r"""Warnings about data that do not fit an SDE, by its effect on Gaussians of the same moments.

Of data ``N(m, s^2)`` the probability flow is affine: with ``V = alpha^2 s^2 + sigma^2`` at any
time, it takes ``alpha m + sqrt(V) xi`` at the last time ``T`` to the same at the first time
``eps``. Samples start from ``N(alpha_T m', sigma_T^2)`` and end there, and so they have

    (1 + (alpha_T s / sigma_T)^2)^(-1/2) (1 + (sigma_eps / (alpha_eps s))^2)^(1/2)

times the deviation of the data, and are ``alpha_T (m' - m) / sqrt(V_T)`` deviations off, beside the
``(alpha_eps - 1) m / s`` of ending at ``eps``. The first factor is due to the prior, the second to
the noise that is left. Grids put steps around the level ``log(sigma / alpha)`` at which data of the
SDE's scale fade (`scoresde.sampling.grid`); others fade at ``log s`` in units of that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.bases.moments import CONSTANT
from scoresde.internals.messages import join_names, warn
from scoresde.sdes.diagonal import DiagonalSDE

TOLERANCE = 0.05
"""The error of a width, or shift in deviations, that a few hundred samples show.

Their standard errors are ``1/sqrt(2N)`` and ``1/sqrt(N)``.
"""

NARROW, FAINT = 0.04, 0.02
"""Deviation of coefficients that cannot be seen, and the noise that may be left in them, in units
of the events' own deviation: of photographs in [-1, 1] three shades and one, of 256."""

SPARSE = (math.exp(-0.75 - 2 * math.sqrt(3)), math.exp(-0.75 + 2 * math.sqrt(3)))
"""Deviations in units of the scale, 0.015 and 15. Where they fade
`scoresde.sampling.grid.arctan_log_snr` has a quarter of the steps that it has in its middle:
``1 / (1 + ((log s + 3/4) / 2)^2) = 1/4``."""


class Mismatch(NamedTuple):
    """Differences between Gaussian data and their samples, ``(n,)`` each: see the module.

    Attributes:
        prior_ratio: Deviation of samples over that of data, due to the prior.
        shift: Error of their mean in deviations, due to the prior.
        noise_ratio: Deviation of samples over that of data, due to the noise that is left.
        bias: Error of their mean in deviations, due to ending at ``eps``.
        scale_ratio: Deviation of data over the SDE's scale.
    """

    prior_ratio: Tensor
    shift: Tensor
    noise_ratio: Tensor
    bias: Tensor
    scale_ratio: Tensor

    @classmethod
    def of(cls, sde: DiagonalSDE, mean: Tensor, std: Tensor) -> Mismatch:
        """The mismatch of independent Gaussians.

        Components that diffuse less than others or not at all (conditions) are not drawn from the
        prior, and a prior of one's own is unknown: their errors are 0.

        Args:
            sde: How data are diffused.
            mean: Along the component axis.
            std: Along the component axis.
        """
        blocks, unit = sde.blocks, sde.scale.detach()
        m, s, sde_mean, sde_std, scale = (
            blocks.expand(v.detach().to(unit)).expand(blocks.dim)
            for v in (mean, std, sde.mean, sde.std, unit)
        )
        drop = blocks.expand(unit.new_tensor(sde.drop))
        with torch.no_grad():
            (alpha, sigma), (first_alpha, first_sigma) = (
                (v.expand(blocks.dim) for v in sde.kernel(t))
                for t in (drop, unit.new_full((1,), sde.eps))
            )
            last = blocks.expand(sde.clock(unit.new_ones(1))).expand(blocks.dim)
        diffuses_fully = last > 1 - 1e-9  # a delayed clock may arrive within a rounding error
        drawn = diffuses_fully & (sigma > 0) & (sde.prior is None)
        width = torch.where(drawn, (alpha * sde_std).hypot(sigma) / (alpha * s).hypot(sigma), 1.0)
        shift = torch.where(drawn, alpha * (sde_mean - m) / (alpha * s).hypot(sigma), 0.0)
        # what is constant has no deviation to be off by
        bias = torch.where(s == CONSTANT * m.abs(), 0.0, (first_alpha - 1) * m / s)
        noise = (1 + (first_sigma / (first_alpha * s)) ** 2).sqrt()
        return cls(width, shift, noise, bias, s / scale)


def check_range(sde: DiagonalSDE, mean: Tensor, std: Tensor) -> None:
    """Warns of blocks, or columns, that are out of an SDE's range, by their names.

    A mean of 0 and a deviation of 1 throughout are taken for unmeasured, and not compared.
    Coefficients that mix an event's numbers, as of images, are not named for noise that is left
    where both are too faint to be seen in the event.

    Args:
        sde: How data are diffused.
        mean: Of the data, along the component axis.
        std: Of the data, along the component axis.
    """
    if not bool((mean != 0).any() | (std != 1).any()):
        return
    mismatch = Mismatch.of(sde, mean, std)
    m, s = (sde.blocks.expand(v).expand(sde.blocks.dim) for v in (mean, std))
    low, high = SPARSE
    unseen = torch.zeros_like(s, dtype=torch.bool)
    if sde.basis.mixes:
        own, left = s.square().mean().sqrt(), (mismatch.noise_ratio - 1) * s
        unseen = (s < NARROW * own) & (left < FAINT * own)
    kinds = (
        (
            ((1 - mismatch.prior_ratio).abs() > TOLERANCE) | (mismatch.shift.abs() > TOLERANCE),
            _PRIOR,
        ),
        ((mismatch.noise_ratio - 1 > TOLERANCE) & ~unseen, _NOISE),
        (mismatch.bias.abs() > TOLERANCE, _BIAS),
        (((mismatch.scale_ratio < low) | (mismatch.scale_ratio > high)) & ~unseen, _SCALE),
    )
    unnamed = torch.ones_like(kinds[0][0])
    for wrong, text in kinds:
        _warn(sde, wrong & unnamed, text, {**mismatch._asdict(), "mean": m, "std": s})
        unnamed = unnamed & ~wrong


def check_standard(sde: DiagonalSDE, x: Tensor, z: Tensor, mean: Tensor, std: Tensor) -> None:
    """Warns of events that are far from where their mean and deviation say.

    By the median event's distance, block by block or column by column, of ten deviations or more,
    which outliers and tails do not change.

    Args:
        sde: How data are diffused.
        x: Events, ``(batch, *event_shape)``.
        z: Their coefficients, or a prefix of them; NaN where they are missing.
        mean: Given one, along the component axis.
        std: Given one, likewise.
    """
    if not len(z):
        return
    with torch.no_grad():
        dim, coefficients = z.shape[-1], z.to(std.dtype)
        m, s = (sde.blocks.expand(v).expand(sde.blocks.dim)[:dim] for v in (mean, std))
        far = ((coefficients - m) / s).abs().nanmedian(0).values
        low, high = (v.to(far).expand(dim) for v in (x.amin(), x.amax()))
        # up to 255: mostly colours, which a data set with bins would have spread
        integers = ((low >= 0) & (high > 1) & (high <= 255) & (x == x.round()).all()).to(far)
        table = torch.stack([far, m, s, low, high, integers])
    try:
        table = table.cpu()  # the one time that a device is waited for
        wrong, hint = table[0] > _FAR, _INTEGERS if bool(table[-1, 0] > 0) else ""
    except RuntimeError:  # under torch.func.vmap, or on meta, no number can be read
        return
    values = dict(zip(("far", "mean", "std", "low", "high"), table, strict=False))
    _warn(sde, wrong, _STANDARD + hint, values)


def _warn(sde: DiagonalSDE, wrong: Tensor, text: str, values: dict[str, Tensor]) -> None:
    """One warning of all groups with components of a kind, with the numbers of the first."""
    if not bool(wrong.any()):
        return
    slices = sde.basis.groups.slices.items()
    names = [name for name, part in slices if bool(wrong[part].any())]
    if names:
        first = int(wrong.int().argmax())
        numbers = {name: float(value[first]) for name, value in values.items()}
        warn(text.format(names=join_names(map(repr, names), 3), **numbers))


_FAR = 10
"""Deviations within which at least half of any data are, by far (Chebyshev: all but 1%)."""

_INTEGERS = "; these look like 8-bit integers, see scoresde.data.dequantize"
_STANDARD = (
    "x: events of {names} are typically {far:.3g} deviations from their mean, as data_mean = "
    "{mean:.3g} and data_std = {std:.3g} say, with values from {low:.3g} to {high:.3g}: the "
    "network sees them so; give both as estimators.measure finds them"
)
_PRIOR = (
    "sde: data of {names} are not lost in noise at the last time, as the prior says: a deviation "
    "of {std:.3g} is sampled with {prior_ratio:.3g} of its width, {shift:.3g} deviations off; give "
    "the SDE the data's scale= and mean=, as estimators.measure finds them, or a schedule that "
    "ends in more noise (sigma_max, beta_max, log_snr_min)"
)
_NOISE = (
    "sde: data of {names} are narrower than the least noise: a deviation of {std:.3g} is sampled "
    "with {noise_ratio:.3g} times its width; give the SDE the data's scale=, as estimators.measure "
    "finds it, or a schedule that starts with less noise (sigma_min, eps, log_snr_max)"
)
_BIAS = (
    "sde: data of {names} are far from 0: around {mean:.3g}, samples are {bias:.3g} deviations of "
    "{std:.3g} off at the first time; subtract their mean, or use final_denoise, or a smaller eps"
)
_SCALE = (
    "sde: data of {names} are not of the SDE's scale: a deviation of {std:.3g} is "
    "{scale_ratio:.3g} in units of it, where solvers have few steps; give it the data's scale=, as "
    "estimators.measure finds it"
)
