"""Errors of drafts of plans: many at once, on data whose coefficients are independent.

A deterministic solver moves every coefficient by itself, and monotonously: what starts at a
quantile of the noise should end at that quantile of the data, and the difference is ``W2^2``.
Coefficients of the same variance, in units of their band's, are equivalent, so a few stand for all.
Variances are spread over a distribution, so that no plan profits from errors of steps that cancel
at one variance, and not for other data.

Drafts of as many steps are blocks of one SDE on clocks of their own, so that a solver takes all of
them at once.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoresde.bases import Basis, Identity
from scoresde.estimator import KernelEstimator
from scoresde.noise import Noise
from scoresde.planning.bands import Spectra
from scoresde.planning.denoising_errors import DenoisingErrors
from scoresde.planning.draft import Draft, Layout
from scoresde.planning.independent_gaussian import IndependentGaussian, UnitNoise
from scoresde.planning.warped_clock import WarpedClock
from scoresde.schedules import Schedule
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import Kernel
from scoresde.solver import Solver

_Floats = npt.NDArray[np.float64]

_RATIOS = torch.logspace(-1.75, 1.5, 9, dtype=torch.float64)
"""Variances, in units of a band's, by which it is represented: a factor of 2.5 from one to the
next, and few images have coefficients of less than a fiftieth or more than thirty times."""

_LOG_STD = 0.7
"""Standard deviation of logarithms of variances about their band's: as far as the nodes above are
apart, and about as much as bands of other images differ."""

_POINTS = (-math.sqrt(3), 0.0, math.sqrt(3))
_SHARES = (1 / 6, 2 / 3, 1 / 6)
"""A normal distribution by three points and their weights: that of logarithms of variances."""

_QUANTILES = 5
"""Quantiles of one sign by which a distribution that is not Gaussian is represented."""


class ScaleMixtures(KernelEstimator):
    """The exact estimator of independent mixtures of Gaussians with mean 0.

    Args:
        sde: How data are diffused.
        variances: Of the parts of every component's mixture, ``(parts, n)``.
        shares: Of the parts, ``(parts,)``.
        excess: Error that is added to the denoised means of the second of two rows of states, as a
            function of ``log(sigma/alpha)``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.planning.draft_evaluator import ScaleMixtures
        >>> sde = DiagonalSDE(EDM(), Identity((2,)))
        >>> model = ScaleMixtures(sde, torch.tensor([[1.0, 3.0]]), torch.ones(1))
        >>> model.denoise(torch.ones(1, 2), 1.0)  # v / (v + t^2)
        tensor([[0.5000, 0.7500]])
    """

    def __init__(
        self,
        sde: SDE,
        variances: Tensor,
        shares: Tensor,
        excess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(sde)
        self.register_buffer("variances", variances)
        self.register_buffer("shares", shares)
        self.excess = excess

    variances: Tensor
    shares: Tensor

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """The parts' shrunk states, by how likely they are."""
        alpha, sigma = kernel
        variances, shares = self.variances[:, : z.shape[-1]].to(z), self.shares.to(z)
        a = alpha.unsqueeze(-2)
        marginal = a**2 * variances + sigma.unsqueeze(-2) ** 2
        shrunk = a * variances / marginal
        if len(variances) == 1:
            mean = shrunk.squeeze(-2) * z
        else:
            z2 = z.unsqueeze(-2) ** 2
            likely = shares.log().unsqueeze(-1) - (marginal.log() + z2 / marginal) / 2
            mean = (likely.softmax(-2) * shrunk).sum(-2) * z
        if self.excess is not None:
            mean[1] += self.excess((sigma / alpha).log().expand(z.shape[-1]))
        return mean


class _Quantiles(Noise):
    """The same quantiles for the coefficients of every variance."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def __call__(self, like: Tensor) -> Tensor:
        return self.values.repeat(like.shape[-1] // len(self.values)).expand_as(like)


class DraftEvaluator:
    """Evaluates drafts of plans.

    Args:
        basis: Its blocks are the bands.
        schedule: Read by every band.
        bands: Eigenvalues of the covariance of every band.
        solver: A deterministic one.
        sde: Whose stages are kept; they are planned if None.
        kurtosis: Of the bands' coefficients, if they are not Gaussian.
        learned: Errors of an estimator's denoised means.
    """

    def __init__(
        self,
        basis: Basis,
        schedule: Schedule,
        bands: Spectra,
        solver: Solver,
        *,
        sde: DiagonalSDE | None = None,
        kurtosis: Mapping[str, float] | None = None,
        learned: DenoisingErrors | None = None,
    ) -> None:
        self.basis, self.schedule, self.solver = basis, schedule, solver
        self.fixed_sde, self.layout = sde, Layout(schedule, sde)
        self.bands = [band.double() for band in bands.values()]
        self.sizes = [*basis.blocks.sizes.values()]
        power = [float(band.mean()) for band in self.bands]
        if sde is None:
            # a band of no power has a unit, too: a ten-thousandth of the largest deviation
            floor = 1e-8 * max(power)
            # to four digits, as times are to six: what is written in a file is what was planned
            units = [float(f"{max(v, floor) ** 0.5:.4g}") for v in power]
            self.entry, self.active = list(range(len(bands))), [*itertools.accumulate(self.sizes)]
        else:
            each = basis.blocks.expand(sde.scale.cpu() ** 2).expand(basis.dim)
            units = basis.blocks.mean(each).sqrt().tolist()
            self.active = [piece.dim for piece in self.layout.pieces]
            ends = itertools.accumulate(self.sizes)
            self.entry = [bisect.bisect_left(self.active, end) for end in ends]
        self.scale = torch.tensor(units, dtype=torch.float64)
        self.std = torch.zeros_like(self.scale)
        if sde is not None:
            each = basis.blocks.expand(sde.std.cpu() ** 2).expand(basis.dim)
            self.std = basis.blocks.mean(each).sqrt()
        counts = torch.stack([self._counts(k) for k in range(len(power))])
        # W2^2 / trace of what each of these coefficients stands for
        self.weights = counts / (counts @ _RATIOS).sum()
        self._mixtures([(kurtosis or {}).get(name, 3.0) for name in bands])
        self._together: bool | None = None
        self.excess = None
        if learned is not None:
            triples = zip(bands, units, self.bands, strict=True)
            self.excess = [learned.excess(*triple) for triple in triples]

    def _counts(self, k: int) -> Tensor:
        """How much of a band's power, in units of one of its coefficients, has each variance."""
        band, nodes = self.bands[k], _RATIOS.log()
        ratios = (band / self.scale[k] ** 2).clamp(min=1e-30)
        near = -(((nodes - ratios.log().unsqueeze(-1)) / _LOG_STD) ** 2) / 2
        powers = ratios @ near.softmax(-1) / _RATIOS
        return powers * self.scale[k] ** 2 * (self.sizes[k] / len(band))

    def _mixtures(self, kurtosis: Sequence[float]) -> None:
        """Mixtures for the bands, and the quantiles that stand for them."""
        log_std = [max(math.log(max(v, 3.0) / 3), 0.0) ** 0.5 for v in kurtosis]
        heavy = any(log_std)
        self.shares = torch.tensor(_SHARES if heavy else (1.0,), dtype=torch.float64)
        points = torch.tensor(_POINTS if heavy else (0.0,), dtype=torch.float64)
        parts = torch.outer(torch.tensor(log_std, dtype=torch.float64), points).exp()
        self.parts = (parts / (parts @ self.shares).unsqueeze(-1)).mT
        z, density = np.polynomial.hermite_e.hermegauss(2 * _QUANTILES)
        z, density = (z, density) if heavy else (np.array([1.0]), np.array([1.0]))
        self.z = torch.from_numpy(z[z > 0])
        self.density = torch.from_numpy(density[z > 0] / density[z > 0].sum())
        ends = [quantiles(self.z, own, self.shares) for own in self.parts.mT]
        self.truth = torch.stack(ends).unsqueeze(1) * _RATIOS.sqrt().unsqueeze(-1)

    def cost(self, draft: Draft) -> float:
        """Full-resolution evaluations: the sum over steps of active over all components."""
        return sum(n * a for n, a in zip(draft.steps, self.active, strict=True)) / self.active[-1]

    def errors(self, drafts: Sequence[Draft]) -> list[float]:
        """``W2^2 / trace`` of the samples of drafts, with the estimator's errors.

        Args:
            drafts: With the same numbers of steps.
        """
        starts, delays, times = self.layout.times(drafts)
        possible = (np.diff(times) < 0).all(1)
        errors = np.full(len(drafts), math.inf)
        if possible.any():
            measured = drafts[0].steps, starts[possible], delays[possible], times[possible]
            if self._together is None:
                # solvers that ask for rates, which time that is warped has others of: what they
                # find differs by far more than rounding
                alone = self._alone(*measured)
                same = np.allclose(self._measure(*measured), alone, rtol=1e-6, atol=0)
                self._together = bool(same)
            measure = self._measure if self._together else self._alone
            errors[possible] = measure(*measured)
        return [float(v) for v in errors]

    def _alone(
        self, steps: Sequence[int], starts: _Floats, delays: _Floats, times: _Floats
    ) -> _Floats:
        errors = []
        for start, delay, own in zip(starts, delays, times, strict=True):
            errors.append(self._measure(steps, start[None], delay[None], own[None], False))
        return np.concatenate(errors)

    def _measure(
        self,
        steps: Sequence[int],
        starts: _Floats,
        delays: _Floats,
        times: _Floats,
        warped: bool = True,
    ) -> _Floats:
        """Errors of drafts on times that they share, or of one as it is."""
        T, eps, bands = self.schedule.T, self.schedule.eps, len(self.sizes)
        drafts, count = times.shape
        shape = (bands, drafts, len(_RATIOS), len(self.z))
        each = shape[2] * shape[3]
        names = {f"{k}-{draft}": each for k in range(bands) for draft in range(drafts)}
        shared = torch.linspace(T, eps, count, dtype=torch.float64)
        first = [0, *itertools.accumulate(steps)]
        if warped:
            own, entries = self._clock(starts, delays), shared[first[1:-1]] / T
            clock: Clock = WarpedClock(torch.from_numpy(times) / T, own, bands, eps / T, entries)
        else:
            shared, clock = torch.from_numpy(times[0]), self._own_clock(starts[0], delays[0])
        drop = [float(shared[first[entry]]) for entry in self.entry for _ in range(drafts)]
        wide = (self.std / self.scale).repeat_interleave(drafts)
        own_basis = Identity((math.prod(shape),), names)
        sde = DiagonalSDE(self.schedule, own_basis, clock, drop=drop, std=wide)
        parts = self.parts[:, :, None, None, None] * _RATIOS.unsqueeze(-1)
        variances = parts.expand(-1, *shape).flatten(1)
        model = ScaleMixtures(sde, variances, self.shares, self._missed(shape))
        solver = attrs.evolve(self.solver, steps=count - 1, grid=lambda *_: shared)
        rows = (1 if self.excess is None else 2,)
        with torch.no_grad():
            x = solver.rsample(model, rows, generator=_Quantiles(self.z), dtype=torch.float64)
        x = x.reshape(-1, *shape)
        gap = (x[0] - self.truth.unsqueeze(1)) ** 2 + (x[-1] - x[0]) ** 2
        errors: _Floats = ((gap @ self.density) * self.weights.unsqueeze(1)).sum((0, 2)).numpy()
        return errors

    def _own_clock(self, starts: _Floats, delays: _Floats) -> Clock:
        """The clock of one draft's bands."""
        if self.fixed_sde is not None:
            return self.fixed_sde.clock
        T = self.schedule.T
        return Clock(torch.from_numpy(T / (starts - delays)), torch.from_numpy(delays / T))

    def _clock(self, starts: _Floats, delays: _Floats) -> Callable[[Tensor], Tensor]:
        """Clock times of bands at times of drafts, ``(*, drafts)`` to ``(*, bands, drafts)``."""
        bands, first = len(self.sizes), self.schedule.eps / self.schedule.T
        if self.fixed_sde is not None:
            fixed = self.fixed_sde.clock
            return lambda u: fixed(u.unsqueeze(-1), first).expand(*u.shape, bands).movedim(-1, -2)
        # of every band and draft a clock, whose time is that of its draft
        clock = self._own_clock(starts.T.ravel(), delays.T.ravel())
        return lambda u: clock(u.repeat(*[1] * (u.ndim - 1), bands), first).unflatten(
            -1, (bands, -1)
        )

    def _missed(self, shape: Sequence[int]) -> Callable[[Tensor], Tensor] | None:
        """Errors of an estimator at noise levels, component by component."""
        if self.excess is None:
            return None
        tables, size = self.excess, math.prod(shape[1:])

        def missed(noise_levels: Tensor) -> Tensor:
            pieces = noise_levels.numpy().reshape(-1, size)
            pairs = zip(pieces, tables, strict=False)  # fine bands are not always there
            return torch.from_numpy(np.concatenate([np.interp(v, *table) for v, table in pairs]))

        return missed

    def sde(self, draft: Draft) -> tuple[DiagonalSDE, Tensor]:
        """The multi-scale SDE of a draft, and its times."""
        starts, delays, times = self.layout.times([draft])
        drop, clock = starts[0].tolist(), self._own_clock(starts[0], delays[0])
        sde = self.fixed_sde or DiagonalSDE(self.schedule, self.basis, clock, self.scale, drop)
        return sde, torch.from_numpy(times[0])

    def exact(self, draft: Draft) -> float:
        """``W2^2 / trace`` of the samples of Gaussian data with these eigenvalues."""
        sde, times = self.sde(draft)
        counts = [len(band) for band in self.bands]
        basis = Identity((sum(counts),), dict(zip(self.basis.blocks.sizes, counts, strict=True)))
        known = DiagonalSDE(self.schedule, basis, sde.clock, self.scale, sde.drop, std=self.std)
        variances = torch.cat(self.bands)
        sizes = [n / k for n, k in zip(self.sizes, counts, strict=True)]
        weights = basis.blocks.expand(torch.tensor(sizes, dtype=torch.float64))
        solver = attrs.evolve(self.solver, steps=sum(draft.steps), grid=lambda *_: times)
        model = IndependentGaussian(known, variances)
        with torch.no_grad():
            std = solver.rsample(model, generator=UnitNoise(), dtype=torch.float64)
        gap = weights * (std - variances.sqrt()) ** 2
        return float(gap.sum() / (weights * variances).sum())

    def prior_loss(self, draft: Draft) -> float:
        """The divergence of what is appended: see `scoresde.planning.Plan`."""
        sde, _ = self.sde(draft)
        total = 0.0
        for start, name in list(zip(sde.drop, self.basis.blocks.sizes, strict=True))[1:]:
            at = sde.at(torch.tensor([[start]], dtype=torch.float64))
            block, k = self.basis.blocks.slices[name], list(self.basis.blocks.sizes).index(name)
            snr = sde.blocks.expand(at.log_snr[0].exp()).expand(self.basis.dim)[block].mean()
            total += float(snr * self.bands[k].mean()) * self.sizes[k] / 2
        return total


def quantiles(z: Tensor, variances: Tensor, shares: Tensor) -> Tensor:
    """Quantiles of a mixture of Gaussians, at those of a standard normal distribution.

    Args:
        z: Standard normal quantiles, above 0.
        variances: Of the parts, whose means are 0.
        shares: Of the parts.
    """
    low, high = torch.zeros_like(z), z * variances.max().sqrt()
    wanted = torch.erfc(z / math.sqrt(2))
    for _ in range(60):  # halvings: to the last bit
        middle = (low + high) / 2
        above = torch.erfc(middle.unsqueeze(-1) / (2 * variances).sqrt()) @ shares > wanted
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high
