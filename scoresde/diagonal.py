"""Non-uniform linear SDEs: a schedule, a basis, and a speed for every component.

In coefficients ``z = U x`` of an orthonormal basis every component diffuses by itself,

    dz_i = f_i(t) z_i dt + g_i(t) dw_i,      z_t | z_0 ~ N(alpha_i z_0, sigma_i^2),

with ``alpha_i(t) = alpha(tau_i(t))`` and ``sigma_i(t) = scale_i sigma(tau_i(t))``: one scalar
schedule, read by every component on a clock of its own and in units of its own. Uniform,
multi-scale, conditional and blurring diffusion are settings of this one object.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from scoresde.bases import Basis
from scoresde.checks import expect, instance, numbers
from scoresde.clock import Clock, Reading
from scoresde.noise import Noise
from scoresde.precision import Float64Constants, Numbers
from scoresde.schedules import Schedule
from scoresde.sde import SDE, Forcing, Kernel, Propagator, Stage, align

if TYPE_CHECKING:
    from scoresde.estimator import ScoreEstimator


_P = TypeVar("_P", bound=Float64Constants)


class Bridge(NamedTuple):
    """``z_s | z_t, z_0 ~ N(now z_t + start z_0, sigma^2)``; all ``(*, 1 | n)``.

    Source:
        *Variational Diffusion Models* (arXiv 2107.00630), eq. 23-25.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> sde = DiagonalSDE(EDM(), Identity((1,)))
        >>> sde.bridge(torch.tensor([1.0]), torch.tensor([2.0]))
        Bridge(now=tensor([0.2500]), start=tensor([0.7500]), sigma=tensor([0.8660]))
    """

    now: Tensor
    start: Tensor
    sigma: Tensor


class DiagonalSDE(Float64Constants, SDE):
    """Schedule x orthonormal basis x speeds (Batzolis et al. 2022, section 3).

    Methods without a state take times with a component axis last, ``(*, 1 | blocks | n)``; a
    time per block or per component is *vector time*. Those with a state take times as
    `scoresde.sde.align` does. A state may be a prefix of the coefficients, ``(*, m)`` with
    ``m <= n``: the coarse blocks alone diffuse as they do in company.

    Args:
        schedule: Signal and noise at a time.
        basis: Coordinates in which components diffuse independently.
        speeds: A `Clock`, or the speeds of one: 1 for uniform diffusion.
        scale: Unit of the noise along the component axis, for instance the data's standard
            deviation per band: ``sigma_i = scale_i sigma``.
        drop: Time at which each block is dropped from the state, if any is; coarse blocks last,
            the first block at ``T``. A block that has all but lost its signal need not be
            carried: going back, it enters as Gaussian noise (multi-scale diffusion).
        prior: Distribution of ``z_T`` where it is none of these Gaussians.
        mean: Of the data, along the component axis: the prior is ``N(alpha_T mean, sigma_T^2)``,
            and so is what enters. What is left of data far from zero is where it should be.

    Raises:
        TypeError: If the schedule or the basis is none.
        ValueError: If a parameter's component axis does not fit the basis, a scale is not
            positive, or ``drop`` is not one time for each block, the first ``T``, none later
            than the one before and all above ``eps``.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> sde = DiagonalSDE(VP(), Identity((3,)), speeds=[1.0, 2.0, 4.0])
        >>> sde.kernel(torch.tensor([0.25])).alpha.shape
        torch.Size([3])
    """

    references = "batzolis2022"
    supplied: ClassVar = {"scale": "data_std", "mean": "data_mean"}  # by a configuration

    scale: Tensor
    mean: Tensor

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        drop: Sequence[float] | None = None,
        prior: Distribution | None = None,
        mean: Numbers = 0.0,
    ) -> None:
        instance("schedule", schedule, Schedule)
        instance("basis", basis, Basis)
        super().__init__(basis=basis, T=schedule.T, eps=schedule.eps, prior=prior)
        self.schedule = schedule
        self.clock = speeds if isinstance(speeds, Clock) else Clock(speeds)
        self.constant("scale", scale, positive=True)
        self.constant("mean", mean)
        self.blocks = basis.blocks
        for name in ("scale", "mean"):
            self.blocks.check(name, getattr(self, name))
        self.blocks.check("speeds", self.clock.speeds)
        self.drop = numbers("drop", [self.T] * len(self.blocks) if drop is None else drop).tolist()
        expect(
            isinstance(self.drop, list)
            and len(self.drop) == len(self.blocks)
            and self.drop[0] >= self.T
            and self.drop == sorted(self.drop, reverse=True)
            and self.drop[-1] > self.eps,
            "drop",
            f"{len(self.blocks)} times, not increasing, from T = {self.T} to above {self.eps}",
            drop,
        )
        expect(
            schedule.width in (1, len(self.blocks), self.blocks.dim),
            "schedule",
            f"parameters of 1, {len(self.blocks)} (blocks) or {self.blocks.dim} entries",
            schedule.width,
        )

    # Closed forms.

    def kernel(self, t: Tensor, dim: int | None = None) -> Kernel:
        """The law of ``z_t`` given clean ``z_0``.

        Args:
            t: Times, ``(*, 1 | blocks | n)``.
            dim: Length of the prefix of the state, all of it if None.
        """
        read = self._read(t)
        return Kernel(
            self._components(read.alpha(), dim),
            self._components(read.sigma(), dim, scaled=True),
        )

    def transition(self, s: Tensor, t: Tensor, dim: int | None = None) -> Kernel:
        """The law of ``z_t`` given ``z_s`` for ``s <= t``, in the same form.

        ``alpha_ts = alpha_t / alpha_s``, ``sigma_ts^2 = -sigma_t^2 expm1(lambda_t - lambda_s)``.
        """
        early, late = self._read(s), self._read(t)
        whole = self.blocks.expand  # the two times may differ in width
        alpha = (whole(late.log_alpha()) - whole(early.log_alpha())).exp()
        # two clean times: the difference of two infinite log-SNRs is none
        fall = (whole(late.log_snr()) - whole(early.log_snr())).nan_to_num(nan=0.0)
        sigma = whole(late.sigma()) * _root(-torch.expm1(fall.clamp(max=0)))
        return Kernel(self._components(alpha, dim), self._components(sigma, dim, scaled=True))

    def bridge(self, s: Tensor, t: Tensor, dim: int | None = None) -> Bridge:
        """The law of ``z_s`` given ``z_t`` and ``z_0`` for ``s <= t``.

        Mean ``(alpha_ts sigma_s^2 / sigma_t^2) z_t + (alpha_s sigma_ts^2 / sigma_t^2) z_0``,
        variance ``sigma_s^2 sigma_ts^2 / sigma_t^2``; a clean component stays ``z_0``.
        """
        now, then, step = self.kernel(s, dim), self.kernel(t, dim), self.transition(s, t, dim)
        clean = then.sigma == 0
        sigma = then.sigma.masked_fill(clean, 1.0)
        kept = torch.where(clean, 0.0, now.sigma / sigma)
        fresh = torch.where(clean, 1.0, step.sigma / sigma)
        return Bridge(step.alpha * kept**2, now.alpha * fresh**2, now.sigma * fresh)

    def rates(self, t: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
        """Drift rates ``f_i`` and squared diffusions ``g_i^2``, each ``(*, 1 | n)``."""
        clock, u = self._agree(self.clock, t / self.schedule.T)
        (schedule, tau), speed = self._read(t), clock.rate(u)
        if tau.shape[-1] != speed.shape[-1]:
            speed, tau = self.blocks.expand(speed), self.blocks.expand(tau)
        # a stopped clock stops its component, also where the schedule's own rate is infinite
        f, g2 = schedule.rates(torch.where(speed == 0, schedule.eps, tau))
        f, g2 = (torch.where(speed == 0, 0.0, rate * speed) for rate in (f, g2))
        return self._components(f, dim), self._components(g2, dim, scaled=True, power=2)

    def log_snr(self, t: Tensor, dim: int | None = None) -> Tensor:
        """``log(alpha_i^2 / sigma_i^2)``, ``(*, 1 | n)``."""
        read = self._read(t)
        unit = self.blocks.expand(self.scale.to(read.tau)).log()
        value = self.blocks.expand(read.log_snr()) - 2 * unit
        return self._components(value, dim)

    def _read(self, t: Tensor) -> Reading:
        """The schedule, and the times at which components read it."""
        clock, u = self._agree(self.clock, t / self.schedule.T)
        return Reading(*self._agree(self.schedule, self.schedule.T * clock(u)))

    def _agree(self, module: _P, t: Tensor) -> tuple[_P, Tensor]:
        """Brings per-block values to components where they meet per-component ones."""
        if len({module.width, t.shape[-1]} - {1}) > 1:
            return module.per_component(self.blocks), self.blocks.expand(t)
        return module, t

    def _components(
        self, value: Tensor, dim: int | None, scaled: bool = False, power: int = 1
    ) -> Tensor:
        """A schedule's values as ``(*, 1 | n)`` in the units and the prefix of a state."""
        value = self.blocks.expand(value)
        if scaled:
            value = value * self.blocks.expand(self.scale.to(value)) ** power
        return value if dim is None or value.shape[-1] == 1 else value[..., :dim]

    # torchsde's contract and the prior.

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``f_i(t) y_i``."""
        return (self.rates(self.time(t, y), y.shape[-1])[0] * y).to(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """``g_i(t)``, in the shape of ``y``."""
        return _root(self.rates(self.time(t, y), y.shape[-1])[1]).to(y).expand_as(y)

    def diffuse(self, z: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """``alpha z + sigma noise`` for clean states ``(*batch, n)``: a draw of ``z_t``."""
        alpha, sigma = self.kernel(self.time(t, z), z.shape[-1])
        return alpha.to(z) * z + sigma.to(z) * noise

    def stages(self) -> list[Stage]:
        """One between every two times at which blocks are dropped."""
        sizes = list(self.blocks.sizes.values())
        ends = sorted({t for t in self.drop if t < self.T})
        edges = [self.eps, *ends, self.T]
        return [
            Stage(b, a, sum(n for n, t in zip(sizes, self.drop, strict=True) if t >= b))
            for a, b in reversed(list(itertools.pairwise(edges)))
        ]

    def enter(self, z: Tensor, stage: Stage, noise: Noise) -> Tensor:
        """``sigma_i(t) xi`` for the components that enter, or a draw of the prior given."""
        if self.prior is not None and z.shape[-1] == 0:
            return super().enter(z, stage, noise)
        mean, sigma = self.entering(stage.start, z.shape[-1], stage.dim)
        fresh = noise(z.new_empty(*z.shape[:-1], len(sigma)))
        return torch.cat([z, torch.addcmul(mean.to(z), sigma.to(z), fresh)], -1)

    def entering(self, t: float, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Mean ``alpha_i(t) mean_i`` and deviation ``sigma_i(t)`` of the components that enter."""
        alpha, sigma = self.kernel(self.scale.new_full((1,), t))
        mean = alpha * self.blocks.expand(self.mean)
        mean, sigma = (v.expand(self.blocks.dim)[first:last] for v in (mean, sigma))
        return mean, sigma

    def law(self, t: float, first: int, last: int) -> Distribution:
        """``N(alpha_i(t) mean_i, sigma_i(t)^2)``, or at ``T`` the prior that was given."""
        if self.prior is not None and first == 0:
            return self.prior
        # what is not finite has a log-density that is not, and raises nothing
        each = Normal(*self.entering(t, first, last), validate_args=False)
        return Independent(each, 1, validate_args=False)

    def free(self) -> Tensor:
        """Which components have a density, ``(n,)``: those that are not observed.

        Raises:
            ValueError: If there is none: observed components diffuse, or others do not.
        """
        t = self.scale.new_full((1,), self.T)
        sigma = self.kernel(t).sigma.detach().expand(self.blocks.dim)
        known = self.observed.to(sigma.device)
        expect(
            bool((sigma[known] == 0).all()),
            "observed",
            "components that do not diffuse (CDE, or held): others give samples but no density",
            f"sigma up to {float(sigma.masked_fill(~known, 0).amax()):.3g} at {self.T}",
        )
        still = int((sigma[~known] == 0).sum())
        wanted = "components that diffuse: others have a density only if they are observed"
        expect(still == 0, "speeds", wanted, f"{still} that stand still")
        return ~known

    # What solvers see.

    def levels(self, t: Tensor) -> Tensor:
        """``log(sigma_i / alpha_i)`` in the schedule's units: minus half the log-SNR.

        Args:
            t: Times, ``(*, 1)``.

        Returns:
            ``(*, 1 | blocks | n)``; minus infinity where clean.
        """
        return -self._read(t).log_snr() / 2

    def breakpoints(self) -> list[float]:
        """When clocks stop, and when blocks are dropped."""
        stops = [self.schedule.T * u for u in self.clock.breakpoints()]
        # a clock that stops when its block is dropped may do so within a rounding error
        stops = [t for t in stops if min(abs(t - d) for d in self.drop) > 1e-12 * self.T]
        return sorted(t for t in {*stops, *self.drop} if self.eps < t < self.T)

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """The exact transition: one step of any length is a draw of the kernel."""
        h, (start, end) = (s - t).to(like), _wide(like, t, s)
        alpha, sigma = (v.to(like) for v in self.transition(start, end, like.shape[-1]))
        return Propagator(alpha, torch.zeros_like(h), h, torch.zeros_like(h), sigma)

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """Nothing is left to the solver."""
        return torch.zeros_like(y)

    def kick(self, t: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        """The noise of a linear SDE does not depend on its state."""
        return xi

    def marginal_drift(self, t: Tensor, z: Tensor, forcing: Tensor, eta: float) -> Tensor:
        """``[f + w g^2/sigma^2] z - w alpha g^2/sigma^2 D`` with ``w = (1 + eta^2)/2``.

        In the denoised mean ``D`` rather than the score: nothing cancels at small ``sigma``.
        """
        times, dim = align(t, z), z.shape[-1]
        alpha, sigma = self.kernel(times, dim)
        f, g2 = self.rates(times, dim)
        still = g2 == 0
        pull = (1 + eta**2) / 2 * torch.where(still, 0.0, g2 / sigma.masked_fill(still, 1.0) ** 2)
        return (f + pull).to(z) * z - (alpha * pull).to(z) * forcing

    def marginal_score(self, t: Tensor, z: Tensor, forcing: Tensor) -> Tensor:
        """``(alpha D - z)/sigma^2``; 0 where clean."""
        alpha, sigma = (v.to(z) for v in self.kernel(align(t, z), z.shape[-1]))
        clean = sigma == 0
        score = (alpha * forcing - z) / sigma.masked_fill(clean, 1.0) ** 2
        return score.masked_fill(clean, 0.0)

    def marginal_propagator(self, t: Tensor, s: Tensor, like: Tensor, eta: float) -> Propagator:
        """Exact for a constant denoised mean, of any ``eta`` (reference: DDIM, DPM-Solver++).

        With ``e^-h = (alpha_t sigma_s)/(alpha_s sigma_t)`` from ``t`` to ``s``:
        ``decay = (sigma_s/sigma_t) e^(-eta^2 h)``, ``gain = alpha_s (1 - e^(-(1 + eta^2) h))``,
        ``noise = sigma_s sqrt(1 - e^(-2 eta^2 h))``, ``damping = (1 + eta^2) h``. A clean or
        frozen component has ``h = 0``.
        """
        early, late = (self._read(v) for v in _wide(like, t, s))
        whole = self.blocks.expand  # the two times may differ in width
        s_t, s_s = whole(early.sigma()), whole(late.sigma())
        # by logarithms: a signal may be too weak for its factor to be told from 0
        gained, clean = whole(late.log_alpha()) - whole(early.log_alpha()), s_t == 0
        ratio = torch.where(clean, gained.exp(), s_s / s_t.masked_fill(clean, 1.0))
        q = torch.where(clean, 1.0, ratio * (-gained).exp())
        end, k = q == 0, 1 + eta**2  # infinitely far away, where data are clean
        h = torch.where(end, torch.inf, -q.masked_fill(end, 1.0).log())
        gain = whole(late.alpha()) * (1 - q**k)
        decay, gain, length, damping = (
            self._components(v, like.shape[-1]).to(like)
            for v in (ratio * q ** (eta**2), gain, h, k * h)
        )
        noise = None
        if eta:
            drawn = s_s * _root((1 - q ** (2 * eta**2)).clamp(min=0))
            noise = self._components(drawn, like.shape[-1], scaled=True).to(like)
        return Propagator(decay, gain, length, damping, noise)

    def marginal_pace(self, t: Tensor, z: Tensor) -> Tensor:
        """``lambda'/2 = -g^2 / (2 sigma^2)``, 0 for a component that stands still."""
        times, dim = align(t, z), z.shape[-1]
        g2, sigma = self.rates(times, dim)[1], self.kernel(times, dim).sigma
        still = g2 == 0
        return torch.where(still, 0.0, -g2 / (2 * sigma.masked_fill(still, 1.0) ** 2)).to(z)

    def marginal_forcing(
        self, t: Tensor, z: Tensor, estimator: ScoreEstimator, eta: float, condition: Any
    ) -> Tensor:
        """The denoised mean."""
        return estimator.denoise(z, t, condition)

    def marginal_forcings(
        self, ts: Tensor, like: Tensor, estimator: ScoreEstimator, eta: float, condition: Any
    ) -> Iterator[Forcing]:
        """The estimator's `scoresde.ScoreEstimator.denoisers`."""
        return estimator.denoisers(ts, like, condition)

    def marginal_kick(self, t: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """As `kick`."""
        return xi


def _root(value: Tensor) -> Tensor:
    """The square root, whose derivative where nothing is to be drawn is 0 as well."""
    none = value == 0
    return value.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)


def _wide(like: Tensor, *times: Tensor) -> list[Tensor]:
    """Times on the device of a state, in float64 wherever there is such a thing."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return [t.to(like.device, dtype) for t in times]
