"""Learned scores of SDEs without a known kernel: what their estimators share.

States ``y_t`` can be simulated only. A network learns the score of the simulated distribution, from
an objective without a kernel (`estimators.TransitionMatching`, `estimators.SlicedScoreMatching`).
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from estimators.prediction import expect_arguments, predictor, seen_basis
from scoresde.bases import Basis
from scoresde.checks import expect, finite, instance, numbers, whole
from scoresde.estimator import DirectScoreEstimator
from scoresde.internals.derivatives import vjp
from scoresde.noise import Generators, Noise
from scoresde.objectives.time_distribution import GRID_STEPS, TimeDistribution
from scoresde.precision import (
    KeepsFloat64,
    Numbers,
    cast_like,
    expect_near,
    network_dtype,
    precision,
)
from scoresde.sampling import grid as grids
from scoresde.sampling.grid import Grid
from scoresde.sdes.sde import SDE
from scoresde.sdes.sde_coefficients import SDECoefficients

_KNOTS = 64
"""Times at which moments are found, dense at the first ones: noise grows as the root of time."""

_PATHS = range(16, 4096)
"""Pairs of paths that moments are found from: they are units, and a first guess."""

_NUMBERS = 2**19
"""In all those paths at a time, which takes a second."""

_SEED = 0
"""Of those paths: the same wherever a model is built."""


class _Local(NamedTuple):
    """Values for states ``(*batch, n)`` at their times."""

    standard: Tensor
    """States in units of their moments."""
    guess: Tensor
    """The score without a network; 0 where there is no noise."""
    noise: Tensor
    """The deviation of the noise in a state, as large as it is where that state is."""


class KernelFree(KeepsFloat64, DirectScoreEstimator):
    """A network that learns the score of an SDE without a kernel.

    With ``m`` and ``V`` the mean and the variance of the state at ``t``, ``v`` the part of it that
    is noise and ``q`` the mean of ``g^2``, all as simulated paths have them,

        s = -[(z - m) q/V + div g^2]/g^2 + F(U^T (z - m)/sqrt(V), log(t/T)/4)/a,   a = g sqrt(v/q).

    The first term is the score of the Pearson diffusion with this noise, mean and variance (Forman
    and Sorensen 2008): of a Gaussian where ``g`` does not depend on the state, of a Gamma where
    it is a root. It keeps samples of an untrained network positive where data are. ``a`` is the
    deviation of the noise at the state, so that predictions are of order 1 at all times; errors
    are of ``a s``.

    Subclasses implement `objective`.

    Args:
        sde: How data are diffused: any `scoresde.SDE`.
        network: As of `estimators.Denoising`; its level is ``log(t/T)/4``.
        times: Density of the times in training: a grid, by its name or function.
        data_mean: Of data, along the component axis.
        data_std: Of data; with it the start of paths from which moments are found.
        network_basis: The basis whose events the network sees, instead of the SDE's.
        steps: From time 0 to that of an event in training; for a linear SDE one, which is exact.

    Raises:
        TypeError: If the network cannot be called, or a basis is of another type.
        ValueError: If a name is unknown, a number out of its range, the SDE drops components, or
            simulated paths from the data are not finite.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, TransitionMatching
        >>> from estimators.kernel_free import KernelFree
        >>> from scoresde import GeometricBrownian
        >>> network = ResidualMLP((1,), width=8, depth=1)
        >>> model: KernelFree = TransitionMatching(GeometricBrownian((1,)), network)
        >>> model.simulate(torch.ones(5, 1), torch.full((5, 1), 0.5)).shape
        torch.Size([5, 1])
    """

    references = "forman2008 kloeden1992"

    moments: Tensor

    def __init__(
        self,
        sde: SDE,
        network: nn.Module,
        *,
        times: str | Grid = "root_time",
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
        network_basis: Basis | None = None,
        steps: int = 16,
    ) -> None:
        super().__init__(sde)
        instance("network", network, Callable)  # type: ignore[arg-type]
        expect_arguments(network)
        whole("steps", steps, 1)
        stages = sde.stages()
        expect(len(stages) == 1, "sde", "one that drops no components", stages)
        self.network, self.steps = network, 1 if sde.linear else steps
        self.network_basis = seen_basis(network_basis, sde.basis, sde.basis.dim)
        self.draw_times = TimeDistribution(grids.grid(times, "times")(sde, GRID_STEPS))
        self._met = False
        mean, std = (
            self._along_components(name, value)
            for name, value in (("data_mean", data_mean), ("data_std", data_std))
        )
        expect(bool((std > 0).all()), "data_std", "positive numbers", data_std)
        self.register_buffer("moments", self._moments(mean, std))

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the class; 0 where there is no noise."""
        times = self._time(t, z)
        standard, guess, noise = self._local(z, times)
        noise_level = (times.clamp(min=self._first) / self.sde.T).log() / 4
        noise_level = noise_level.expand(*z.shape[:-1], 1).reshape(z.shape[:-1].numel())
        dtype = network_dtype(self.network) or z.dtype
        predict = predictor(self.network, self.network_basis, z, dtype, condition)
        prediction = predict(standard, noise_level.to(dtype))
        noisy = noise > 0
        return torch.where(noisy, guess + prediction / torch.where(noisy, noise, 1.0), 0.0)

    def noise_std(self, z: Tensor, t: Tensor | float) -> Tensor:
        """``a`` of the class, for states ``(*batch, n)`` at their times."""
        return self._local(z, self._time(t, z)).noise

    def _local(self, z: Tensor, t: Tensor) -> _Local:
        mean, variance, rate, power = self._read(t, z)
        t, still = cast_like(t, z), power == 0
        t = t.reshape(()) if t.numel() == 1 else t
        g2, pull_back = vjp(lambda y: self.sde.g(t, y) ** 2, z, self.sde.parameters())
        pull = power * (z - mean) / variance + pull_back(torch.ones_like(z))
        own = rate * t * g2 / torch.where(still, 1.0, power)
        noise = torch.where(own > 0, own, 1.0).sqrt().masked_fill(own == 0, 0.0)
        guess = -pull / g2.masked_fill(g2 == 0, torch.inf)
        return _Local((z - mean) / variance.sqrt(), guess, noise)

    def losses(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """The objective of every event, at one random time each, stratified over the batch.

        Up to a constant it is the squared error of ``a s``, and so may be negative.

        Args:
            x: Events, ``(batch, *event_shape)``.
            condition: Passed on to the network.
            generator: Seeds times and paths.

        Returns:
            ``(batch,)``.

        Raises:
            ValueError: If the first events are not in the support of the SDE's prior, or shapes do
                not fit.
        """
        expect_near("x", x, self)
        noise, z = Noise.of(generator), self.sde.basis(x)
        if z.ndim != 2:
            expect(False, "x", "events (batch, *event_shape)", tuple(x.shape))
        if not self._met:
            self._met = True  # the first events only: looking at them waits for the device
            self._check_support(z)
        t, _ = self.draw_times(noise.stratified(z).mT)
        return self.objective(z, t.to(z), condition, noise).sum(-1)

    def _check_support(self, z: Tensor) -> None:
        """Raises ``ValueError`` for data where the SDE has no states."""
        support: Any = getattr(self.sde.prior, "support", None)
        if support is not None:
            possible = support.check(z)
            wrong = f"{int((~possible).sum())} of {possible.numel()} that are not"
            expect(bool(possible.all()), "x", f"data in the support of the prior, {support}", wrong)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """Mean of `losses`, per component."""
        losses = self.losses(x, condition, generator)
        expect(len(losses) > 0, "x", "at least one event", tuple(x.shape))
        return losses.mean() / self.sde.basis.dim

    @abstractmethod
    def objective(self, z: Tensor, t: Tensor, condition: Any, noise: Noise) -> Tensor:
        """``E a^2 (s - grad log p_t)^2``, up to a constant.

        Args:
            z: Data, ``(batch, n)``.
            t: Times to which they are to be diffused, ``(batch, 1)``.
            condition: Passed on to the network.
            noise: Where random numbers come from.

        Returns:
            ``(batch, n)``.
        """

    @torch.no_grad()
    def simulate(self, z: Tensor, t: Tensor, noise: Generators = None) -> Tensor:
        """States at times ``(batch, 1)``, from data ``(batch, n)``, by equal steps."""
        parts = torch.linspace(0, 1, self.steps + 1, dtype=t.dtype, device=t.device)
        at = self.sde.at(parts.reshape(-1, 1, 1) * t, z)
        *_, end = walk(at, z, Noise.of(noise))
        return end

    @property
    def _first(self) -> float:
        """The earliest time that networks are given."""
        return max(self.sde.eps, self.sde.T / _KNOTS**2)

    def _time(self, t: Tensor | float, z: Tensor) -> Tensor:
        times = self.sde.time(t, z)
        if times.shape[-1] != 1:
            expect(False, "t", "one time for all components", tuple(times.shape))
        return times

    def _along_components(self, name: str, value: Numbers) -> Tensor:
        tensor = torch.atleast_1d(numbers(name, value)).detach().cpu().double()
        finite(name, tensor)
        self.sde.basis.blocks.check(name, tensor, alone=True)
        return self.sde.basis.blocks.expand(tensor).expand(self.sde.basis.dim)

    @torch.no_grad()
    def _moments(self, mean: Tensor, std: Tensor) -> Tensor:
        """Mean, variance, noise by time and mean of ``g^2``, ``(4, knots, n)``.

        Of pairs of paths that start at the same place, by whose distance one sees what is noise.
        """
        noise = Noise(torch.Generator("cpu").manual_seed(_SEED))
        # data that are positive have no numbers below 0, as normal ones would
        count = min(max(_NUMBERS // len(mean), _PATHS.start), _PATHS.stop)
        signs = noise(mean.new_empty(count, len(mean))).sign()
        z = (mean + std * signs).repeat(2, 1)
        ts = self.sde.T * torch.linspace(0, 1, _KNOTS + 1, dtype=torch.float64) ** 2
        device = next((b.device for b in self.sde.buffers()), ts.device)
        ts, z = (v.to(device, precision(device)) for v in (ts, z))
        at = self.sde.at(ts.unsqueeze(-1), z)
        power = self.sde.g(ts[:1], z).square().mean(0)
        rows = [torch.stack([z.mean(0), z.var(0), power, power])]  # noise grows as g^2 t at first
        for t, y in zip(ts[1:], walk(at, z, noise), strict=True):
            own = y.reshape(2, count, -1).diff(dim=0).square().mean((0, 1)) / 2
            power = self.sde.g(t, y).square().mean(0)
            rows.append(torch.stack([y.mean(0), y.var(0), own / t, power]))
        table = torch.stack(rows, 1)
        wanted = f"an SDE whose states are numbers up to {self.sde.T}, from where data are"
        expect(bool(table.isfinite().all()), "sde", wanted, f"others of {type(self.sde).__name__}")
        return table

    def _read(self, t: Tensor, z: Tensor) -> Iterator[Tensor]:
        """The moments at times ``(*, 1)``, each as states have them."""
        # a time may be late by a rounding
        place = (t / self.sde.T).clamp(0, 1).sqrt().squeeze(-1) * _KNOTS
        before = place.long().clamp(max=_KNOTS - 1)
        share = cast_like(place - before, z).unsqueeze(-1)
        return (
            torch.lerp(cast_like(table[before], z), cast_like(table[before + 1], z), share)
            for table in self.moments
        )


def transition(at: SDECoefficients, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a state at the second of two times, given that at the first.

    Exact for a linear SDE; for others those of a step of Euler's.

    Args:
        at: Coefficients at two times.
        z: States at the first.
    """
    ((decay,), (gain,), (std,)), field = _coefficients(at), next(at.fields())
    return decay * z + gain * field.forcing(z), std * field.increment(z, torch.ones_like(z))


def walk(at: SDECoefficients, z: Tensor, noise: Noise) -> Iterator[Tensor]:
    """States at the times that follow the first, one step after the other.

    By the explicit scheme of weak order 2 of Kloeden and Platen 1992 (15.1.1), with independent
    noise for every component; exact for a linear SDE.

    Args:
        at: Coefficients at the times.
        z: States at the first.
        noise: Where random numbers come from.
    """
    one, pairs = torch.ones_like(z), itertools.pairwise(at.fields())
    for (begin, end), decay, gain, std in zip(pairs, *_coefficients(at), strict=True):
        xi, drift, width = noise(z), begin.forcing(z), std * begin.increment(z, one)
        z = decay * z
        mean = z + gain * drift
        above, below = (std * end.increment(mean + sign * width, one) for sign in (1, -1))
        drift = (drift + end.forcing(torch.addcmul(mean, width, xi))) / 2
        widths = (above + below + 2 * width) * xi + (above - below) * (xi.square() - 1)
        z = z + gain * drift + widths / 4
        yield z


def _coefficients(at: SDECoefficients) -> list[Sequence[Tensor]]:
    """Decay, gain and noise of the steps from every time to the next."""
    step = at[:-1].propagator(at[1:])
    assert step.noise_std is not None
    return at.each(step.decay, step.gain, step.noise_std)
