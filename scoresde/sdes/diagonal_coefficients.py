"""Coefficients of a linear SDE at given times, from one evaluation of its schedule.

A component with speed ``tau'`` reads its schedule at ``tau(t)`` and is there

    z_t | z_0 ~ N(alpha z_0, sigma^2),    dz = f z dt + g dw,    lambda = log(alpha^2 / sigma^2),

and from these five numbers follow transitions, bridges, and the reverse equation, which is affine
in the denoised mean ``D``: with ``w = (1 + eta^2)/2`` and ``r = g^2/sigma^2 = -lambda'``,

    dz/dt = (f + w r) z - w alpha r D.

They are kept one per block where blocks share a clock, and are expanded to components only where
they meet a state. All but ``sigma`` and ``g`` are independent of the unit of the noise, so that it
is multiplied last.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.blocks import Blocks
from scoresde.equation import Field
from scoresde.precision import cast_like
from scoresde.propagator import Propagator
from scoresde.sdes.denoised_reverse import DenoisedReverse, constant_diffusion, standard_increment
from scoresde.sdes.reading import Reading
from scoresde.sdes.sde_coefficients import Kernel, Score, SDECoefficients


class Bridge(NamedTuple):
    """``z_s | z_t, z_0 ~ N(now z_t + start z_0, sigma^2)``; all ``(*, 1 | m)``.

    Source:
        *Variational Diffusion Models* (arXiv 2107.00630), eq. 23-25.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[1.0], [2.0]]))
        >>> at[:1].bridge(at[1:])
        Bridge(now=tensor([[0.2500]]), start=tensor([[0.7500]]), sigma=tensor([[0.8660]]))
    """

    now: Tensor
    start: Tensor
    sigma: Tensor


class DiagonalCoefficients(SDECoefficients):
    """Coefficients of a `scoresde.DiagonalSDE` at several times; see the module.

    All are ``(k, *, 1 | blocks | m)``, in the dtype of the times. Made by
    `scoresde.DiagonalSDE.at`.

    Args:
        t: See `scoresde.equation.Coefficients`.
        like: See there.
        layout: The blocks of all components, of which the state has the first.
        reading: Values of the schedule, in its own units, for all of them.
        scale: Unit of the noise.
        part: Coefficients of more times, and the index of these among them, if there are any.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> at = DiagonalSDE(VP(), Identity((2,)), scale=3.0).at(torch.tensor([[0.5]]))
        >>> at.alpha, at.sigma, at.g2  # sqrt(.079), 3 sqrt(.921), 9 beta
        (tensor([[0.2812]]), tensor([[2.8790]]), tensor([[90.4500]]))
    """

    _noise_level: Tensor | None = None

    def __init__(
        self,
        t: Tensor,
        like: Tensor,
        layout: Blocks,
        reading: Reading,
        scale: Tensor,
        part: tuple[DiagonalCoefficients, Any] | None = None,
    ) -> None:
        super().__init__(t, like, layout.prefix(like.shape[-1]))
        self.layout, self._reading, self._scale, self._part = layout, reading, scale, part
        self.scale = layout.restrict(scale, self.blocks)
        # what an estimator knows of these times, by its id: a loss asks it twice
        self.cache: dict[int, Any] = {}

    def part(self, index: Any, like: Tensor) -> Self:
        """See `scoresde.sdes.sde_coefficients.SDECoefficients.part`."""
        known = self.layout, self._reading, self._scale
        return type(self)(self.t[index], like, *known, (self, index))

    def renamed(self, t: Tensor) -> Self:
        """The same values at the times ``(k, *)`` of an SDE with another clock."""
        same = copy.copy(self)
        same.t, same.cache = t, {}
        return same

    def _read(self, name: str) -> Tensor:
        """Values of the schedule for the state's components, ``(k, *, 1 | blocks | m)``."""
        return self.layout.restrict(self._read_all(name), self.blocks)

    def _read_all(self, name: str) -> Tensor:
        if self._part is not None:
            whole, index = self._part
            return whole._read_all(name)[index]
        value: Tensor = getattr(self._reading, name)
        return value

    @property
    def alpha(self) -> Tensor:
        """The signal's factor."""
        return self._read("alpha")

    @property
    def sigma(self) -> Tensor:
        """The noise's standard deviation."""
        return self._scaled(self._read("sigma"), self.scale)

    @property
    def f(self) -> Tensor:
        """The drift's rate."""
        return self._read("f")

    @property
    def g2(self) -> Tensor:
        """The squared diffusion."""
        return self._scaled(self._read("g2"), self.scale**2)

    @property
    def diffusion(self) -> Tensor:
        """``g``."""
        return root(self.g2)

    @property
    def log_snr(self) -> Tensor:
        """``log(alpha^2 / sigma^2)``, infinite where clean."""
        log_snr, unit = self.blocks.broadcastable(self._read("log_snr"), self.scale.log())
        return log_snr - 2 * unit

    @property
    def noise_levels(self) -> Tensor:
        """``log(sigma / alpha)`` in the schedule's units, ``(k, *, 1 | blocks | n)``.

        Of all components; minus infinity where clean.
        """
        return self._read_all("log_snr") / -2

    @property
    def noise_level(self) -> Tensor:
        """The `noise_levels` that are finite, averaged over the blocks: ``(k, *)``."""
        if self._part is not None:
            whole, index = self._part
            return whole.noise_level[index]
        if self._noise_level is None:
            finite = self.noise_levels.nan_to_num(torch.nan, torch.nan, torch.nan)
            self._noise_level = self.layout.average(finite)
        return self._noise_level

    @property
    def kernel(self) -> Kernel:
        """The distribution of ``z_t`` given clean ``z_0``, ``(k, *, 1 | m)``."""
        return Kernel(self.blocks.expand(self.alpha), self.blocks.expand(self.sigma))

    def transition(self, end: DiagonalCoefficients) -> Kernel:
        """The distribution at later times given the state at these, ``(k, *, 1 | m)``.

        ``alpha_ts = alpha_t / alpha_s``, ``sigma_ts^2 = -sigma_t^2 expm1(lambda_t - lambda_s)``.
        """
        return Kernel(*map(self.blocks.expand, self._transition(end)))

    def _transition(self, end: DiagonalCoefficients) -> Kernel:
        early, late = self._pair(end)
        # two clean times: the difference of two infinite log-SNRs is none
        fall = (late.log_snr - early.log_snr).nan_to_num(nan=0.0).clamp(max=0)
        sigma = late.sigma * root(-torch.expm1(fall))
        return Kernel((late.log_alpha - early.log_alpha).exp(), self._scaled(sigma, self.scale))

    def bridge(self, end: DiagonalCoefficients) -> Bridge:
        """The distribution at these times given the state at later ones and the clean state.

        Mean ``(alpha_ts sigma_s^2 / sigma_t^2) z_t + (alpha_s sigma_ts^2 / sigma_t^2) z_0``,
        variance ``sigma_s^2 sigma_ts^2 / sigma_t^2``; a clean component stays ``z_0``.
        """
        step = self._transition(end)
        alpha, now, then, ratio, drawn = self.blocks.broadcastable(
            self.alpha, self.sigma, end.sigma, step.alpha, step.sigma
        )
        clean = then == 0
        sigma = then.masked_fill(clean, 1.0)
        retained = torch.where(clean, 0.0, now / sigma)
        fresh = torch.where(clean, 1.0, drawn / sigma)
        factors = (ratio * retained**2, alpha * fresh**2, now * fresh)
        return Bridge(*map(self.blocks.expand, factors))

    def propagator(self, end: DiagonalCoefficients) -> Propagator:
        """The exact transition: one step of any length is a draw of the kernel."""
        alpha, sigma = self._transition(end)
        h = end.t - self.t
        return Propagator(alpha, torch.zeros_like(h), h, torch.zeros_like(h), sigma)

    def fields(self) -> Iterator[Field]:
        """``f_i z_i`` and ``g_i``; nothing is left to the solver."""
        f, g = self.each(self.f, self.diffusion)
        for rate, diffusion in zip(f, g, strict=True):
            drift, constant = partial(torch.mul, rate), partial(constant_diffusion, diffusion)
            yield Field(torch.zeros_like, standard_increment, drift, constant)

    def reverse(self, estimator: Score, eta: float, condition: Any, sign: int) -> DiagonalReverse:
        """Coefficients of an equation with the same marginals: see `scoresde.ReverseSDE`."""
        return DiagonalReverse(self, estimator, eta, condition, sign)

    @property
    def log_snr_decay(self) -> Tensor:
        """``r = -lambda' = g^2/sigma^2``, 0 for a component that stands still."""
        g2, sigma = self.blocks.broadcastable(self._read("g2"), self._read("sigma"))
        still = g2 == 0
        return torch.where(still, 0.0, g2 / sigma.masked_fill(still, 1.0) ** 2)

    @property
    def snr_decay(self) -> Tensor:
        """``-SNR' = alpha^2 g^2 / sigma^4``, 0 for a component that stands still.

        A number as well where data are clean, of no meaning, so that gradients are numbers.
        """
        alpha, sigma, g2 = self.blocks.broadcastable(self.alpha, self.sigma, self.g2)
        sigma = sigma.masked_fill(sigma == 0, 1.0)
        return (alpha / sigma) ** 2 * g2 / sigma**2

    def denoising_step(self, end: DiagonalCoefficients, eta: float) -> Propagator:
        """Exact for a constant denoised mean, of any ``eta`` (reference: DDIM, DPM-Solver++).

        With ``e^-h = (alpha_t sigma_s)/(alpha_s sigma_t)`` from ``t`` to ``s``:
        ``decay = (sigma_s/sigma_t) e^(-eta^2 h)``, ``gain = alpha_s (1 - e^(-(1 + eta^2) h))``,
        ``noise_std = sigma_s sqrt(1 - e^(-2 eta^2 h))``, ``damping = (1 + eta^2) h``. A clean or
        frozen component has ``h = 0``.
        """
        now, then = self._pair(end)
        # by logarithms: a signal may be too weak for its factor to be told from 0
        gained, clean = then.log_alpha - now.log_alpha, now.sigma == 0
        ratio = torch.where(clean, gained.exp(), then.sigma / now.sigma.masked_fill(clean, 1.0))
        q = torch.where(clean, 1.0, ratio * (-gained).exp())
        last, k = q == 0, 1 + eta**2  # infinitely far away, where data are clean
        h = torch.where(last, torch.inf, -q.masked_fill(last, 1.0).log())
        gain = then.log_alpha.exp() * (1 - q**k)
        noise_std = None
        if eta:
            drawn = then.sigma * root((1 - q ** (2 * eta**2)).clamp(min=0))
            noise_std = self._scaled(drawn, self.scale)
        return Propagator(ratio * q ** (eta**2) if eta else ratio, gain, h, k * h, noise_std)

    def _pair(self, end: DiagonalCoefficients) -> tuple[_SignalAndNoise, _SignalAndNoise]:
        """Values of the schedule at these times and at others, which may differ in width."""
        read = [at._read(name) for at in (self, end) for name in _SignalAndNoise._fields]
        read = [*self.blocks.broadcastable(*read)]
        return _SignalAndNoise(*read[:3]), _SignalAndNoise(*read[3:])

    def _scaled(self, value: Tensor, unit: Tensor) -> Tensor:
        value, unit = self.blocks.broadcastable(value, unit)
        return value * unit


class _SignalAndNoise(NamedTuple):
    log_alpha: Tensor
    sigma: Tensor
    log_snr: Tensor


class DiagonalReverse(DenoisedReverse):
    """Coefficients of the reverse equation of a `scoresde.DiagonalSDE` at several times.

    Takes the arguments of `DenoisedReverse`.
    """

    forward: DiagonalCoefficients

    @property
    def slope(self) -> Tensor:
        """``f + w r``."""
        f, rate = self.blocks.broadcastable(self.forward.f, self.forward.log_snr_decay)
        return f + (1 + self.eta**2) / 2 * rate

    @property
    def slope_by_length(self) -> Tensor:
        """``-2 (w + f/r)``, also where rates jump."""
        read = self.forward._read
        quotient, sigma = self.blocks.broadcastable(read("f_by_g2"), read("sigma"))
        return -(1 + self.eta**2) - 2 * quotient * sigma**2

    @property
    def response(self) -> Tensor:
        """``-w alpha r``."""
        return self.forward._scaled(self.response_by_length, self.length_rate)

    @property
    def response_by_length(self) -> Tensor:
        """``2 w alpha``, also where rates jump."""
        return (1 + self.eta**2) * self.forward.alpha

    @property
    def length_rate(self) -> Tensor:
        """``lambda'/2 = -r/2``."""
        return -self.forward.log_snr_decay / 2

    def propagator(self, end: DiagonalReverse) -> Propagator:
        """See `DiagonalCoefficients.denoising_step`."""
        return self.forward.denoising_step(end.forward, self.eta)

    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """``(alpha D - z)/sigma^2``; 0 where clean."""
        alpha, sigma = (self.blocks.expand(cast_like(v, z)) for v in self.forward.kernel)
        clean = sigma == 0
        score = (alpha * forcing - z) / sigma.masked_fill(clean, 1.0) ** 2
        return score.masked_fill(clean, 0.0)


def root(value: Tensor) -> Tensor:
    """The square root, whose derivative where nothing is to be drawn is 0 as well."""
    none = value == 0
    return value.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)
