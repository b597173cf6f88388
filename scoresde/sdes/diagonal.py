"""Non-uniform linear SDEs: a schedule, a basis, and a clock for every component.

In coefficients ``z = U x`` of an orthonormal basis every component diffuses by itself,

    dz_i = f_i(t) z_i dt + g_i(t) dw_i,      z_t | z_0 ~ N(alpha_i z_0, sigma_i^2),

with ``alpha_i(t) = alpha(tau_i(t))`` and ``sigma_i(t) = scale_i sigma(tau_i(t))``: one scalar
schedule, read by every component on a clock of its own and in units of its own. Uniform,
multi-scale, conditional, blurring, rolling and autoregressive diffusion are settings of this one
object.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from typing_extensions import Self

from scoresde.bases import Basis
from scoresde.checks import expect, instance, numbers
from scoresde.precision import Float64Constants, Numbers, cast_like, shallow_copy
from scoresde.schedules import Schedule
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients, root
from scoresde.sdes.reading import Reading
from scoresde.sdes.sde import SDE, Append, Stage, gaussian

_F = TypeVar("_F", bound=Float64Constants)


class DiagonalSDE(Float64Constants, SDE):
    """Schedule x orthonormal basis x speeds (Batzolis et al. 2022, section 3).

    Methods without a state take times with a component axis last, ``(*, 1 | blocks | n)``; a
    time per block or per component is *vector time*. Those with a state take times as
    `scoresde.equation.align` does. A state may be a prefix of the coefficients, ``(*, m)`` with
    ``m <= n``: coarse blocks diffuse independently of the others.

    Args:
        schedule: Signal and noise at a time.
        basis: Coordinates in which components diffuse independently.
        speeds: A `Clock`, or the speeds of one: 1 for uniform diffusion.
        scale: Unit of the noise along the component axis, for instance the data's standard
            deviation per band: ``sigma_i = scale_i sigma``.
        drop: Time at which each block is dropped from the state, if any is; coarse blocks last,
            the first block at ``T``. A block whose signal is all but lost need not be carried: in
            reverse, it is appended as Gaussian noise (multi-scale diffusion).
        prior: Distribution of ``z_T`` where it is none of these Gaussians.
        mean: Of the data, along the component axis: the prior is ``N(alpha_T mean, sigma_T^2)``,
            and so is what is appended, which is right for data far from zero.
        delays: Of the clock, in units of ``T``, where it is given by its speeds: what is delayed
            most is finished first in reverse, and the rest drawn given it.
        std: Of the data, along the component axis, for a prior, and appended blocks, of
            ``N(alpha mean, alpha^2 std^2 + sigma^2)``. Blocks may then be dropped earlier, while
            their signal still has a width: every component is appended as its own Gaussian.

    Raises:
        TypeError: If the schedule or the basis is of another type.
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
    example: ClassVar = {"speeds": [1.0, 0.6]}  # of two blocks
    linear = True

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        drop: Sequence[float] | None = None,
        prior: Distribution | None = None,
        mean: Numbers = 0.0,
        delays: Numbers = 0.0,
        std: Numbers = 0.0,
    ) -> None:
        instance("schedule", schedule, Schedule)
        instance("basis", basis, Basis)
        super().__init__(basis=basis, T=schedule.T, eps=schedule.eps, prior=prior)
        self.schedule = schedule
        self.clock = Clock.of(speeds, delays)
        self.blocks = basis.blocks
        for name, value in (("scale", scale), ("mean", mean), ("std", std)):
            self.constant(name, value, positive=name == "scale")
            self.blocks.check(name, getattr(self, name), alone=True)
        expect(bool((self.std >= 0).all()), "std", "numbers of at least 0", std)
        self.clock.check(self.blocks)
        with torch.device("cpu"):  # where numbers are looked at, whatever the default
            drops = [self.T] * len(self.blocks) if drop is None else drop
            self.drop = numbers("drop", drops).tolist()
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
        fits = schedule.width in (1, len(self.blocks), self.blocks.dim)
        wanted = f"parameters of 1, {len(self.blocks)} (blocks) or {self.blocks.dim} entries"
        expect(fits, "schedule", wanted, schedule.width)

    def at(self, t: Tensor, like: Tensor | None = None) -> DiagonalCoefficients:
        """Coefficients at given times, from one evaluation of the schedule.

        Args:
            t: Times, ``(*, 1 | blocks | n)``; ``(k, 1)`` for ``k`` of them.
            like: A state ``(*batch, m)``; one of all components in the times' dtype if None.
        """
        like = t.new_empty(self.basis.dim) if like is None else like
        clock, u = self._agree(self.clock, t / self.T)
        first = self.eps / self.T
        schedule, tau = self._agree(self.schedule, self.T * clock(u, first))
        signal = schedule.read(tau)

        def rates() -> tuple[Tensor, Tensor, Tensor]:
            speed, there = self.blocks.broadcastable(clock.rate(u, first), tau)
            # a stopped clock stops its component, also where the schedule's own rate is infinite
            still = speed == 0
            f, g2 = signal.rates(~still | (there > 0))
            quotient = f / g2.masked_fill(g2 == 0, torch.inf)
            f, g2 = ((v * speed).masked_fill(still, 0.0) for v in (f, g2))
            return f, g2, quotient

        scale = self.constants(t, "scale")[0].reshape(-1)
        reading = Reading(*signal[:3], rates)
        return DiagonalCoefficients(t, like, self.blocks, reading, scale)

    def with_clock(self, clock: Clock) -> Self:
        """See `SDE.with_clock`; the schedule, and all of its numbers, are shared."""
        instance("clock", clock, Clock)
        clock.check(self.blocks)
        whole = min(self.drop) >= self.T
        expect(whole, "drop", "none: when blocks are dropped is a matter of their clock", self.drop)
        return shallow_copy(self, clock=clock)

    def _agree(self, module: _F, t: Tensor) -> tuple[_F, Tensor]:
        """Brings per-block values to components where they meet per-component ones."""
        if t.shape[-1] > 1 and module.width not in (1, t.shape[-1]):
            return module.per_component(self.blocks, t.device), self.blocks.expand(t)
        return module, t

    # torchsde's contract and the prior.

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``f_i(t) y_i``."""
        at = self.at(self.time(t, y), y)
        return at.cast(at.f) * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """``g_i(t)``, in the shape of ``y``."""
        at = self.at(self.time(t, y), y)
        return at.cast(root(at.g2)).expand_as(y)

    def diffuse(self, z: Tensor, t: Tensor | float, xi: Tensor) -> Tensor:
        """``alpha z + sigma xi`` for clean states ``(*batch, n)``: a draw of ``z_t``."""
        at = self.at(self.time(t, z), z)
        return at.cast(at.alpha) * z + at.cast(at.sigma) * xi

    def stages(self) -> list[Stage]:
        """One between every two times at which blocks are dropped."""
        sizes = list(self.blocks.sizes.values())
        ends = sorted({t for t in self.drop if t < self.T})
        edges = [self.eps, *ends, self.T]
        return [
            Stage(b, a, sum(n for n, t in zip(sizes, self.drop, strict=True) if t >= b))
            for a, b in reversed(list(itertools.pairwise(edges)))
        ]

    def appender(self, like: Tensor, stage: Stage) -> Append:
        """A draw of `distribution`."""
        if self.prior is not None and like.shape[-1] == 0:
            return super().appender(like, stage)
        moments = self.moments(stage.start, like.shape[-1], stage.dim)
        return gaussian(*cast_like(torch.stack(moments), like))

    def moments(self, t: float, first: int, last: int) -> tuple[Tensor, Tensor]:
        """``alpha_i mean_i`` and ``(alpha_i^2 std_i^2 + sigma_i^2)^(1/2)`` of components, ``(k,)``.

        In float64, on the CPU.
        """
        alpha, _, mean, std = self._at_entry(t, first, last)
        return alpha * mean, std

    def _at_entry(self, t: float, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``alpha``, ``sigma``, ``mean`` and deviation of components, for `moments`."""
        time = torch.full((1,), t, dtype=torch.float64, device="cpu")
        alpha, sigma = self.kernel(time)
        mean, std = map(self.blocks.expand, self.constants(time, "mean", "std"))
        known = alpha, sigma, mean, torch.hypot(alpha * std, sigma)
        alpha, sigma, mean, std = (v.expand(self.blocks.dim)[first:last] for v in known)
        return alpha, sigma, mean, std

    def distribution(self, t: float, first: int, last: int) -> Distribution:
        """The normal distribution of `moments`, or at ``T`` the prior that was given."""
        if self.prior is not None and first == 0:
            return self.prior
        # what is not finite has a log-density that is not, and raises nothing
        mean, std = (cast_like(v, self.scale) for v in self.moments(t, first, last))
        each = Normal(mean, std, validate_args=False)
        return Independent(each, 1, validate_args=False)

    def unobserved(self) -> Tensor:
        """Which components have a density, ``(n,)``: those that are not observed.

        Raises:
            ValueError: If there is none: observed components diffuse, or others do not.
        """
        time = torch.full((1,), self.T, dtype=torch.float64, device="cpu")
        sigma = self.kernel(time).sigma.detach().expand(self.blocks.dim)
        observed = self._observed_on_cpu()
        expect(
            bool((sigma[observed] == 0).all()),
            "observed",
            "components that do not diffuse (CDE, or clean=True): others have samples, no density",
            f"sigma up to {float(sigma.masked_fill(~observed, 0).amax()):.3g} at {self.T}",
        )
        still = int((sigma[~observed] == 0).sum())
        wanted = "components that diffuse: others have a density only if they are observed"
        expect(still == 0, "speeds", wanted, f"{still} that stand still")
        return ~self.observed

    def _observed_on_cpu(self) -> Tensor:
        """`observed`, without synchronisation with a device."""
        return torch.zeros(self.blocks.dim, dtype=torch.bool, device="cpu")

    def breakpoints(self) -> list[float]:
        """When clocks start and stop, and when blocks are dropped."""
        stops = [self.schedule.T * u for u in self.clock.breakpoints(self.eps / self.T)]
        # a clock that stops when its block is dropped may do so within a rounding error
        stops = [t for t in stops if min(abs(t - d) for d in self.drop) > 1e-12 * self.T]
        return sorted(t for t in {*stops, *self.drop} if self.eps < t < self.T)
