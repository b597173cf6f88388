"""Coefficients of a `scoresde.PhaseSDE` and its reverse equations at several times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.equation import Field, Forcing
from scoresde.phase_space.dynamics import Dynamics, PhaseKernel
from scoresde.phase_space.mixing import Mixing
from scoresde.phase_space.steps import phase_step, symmetric_root
from scoresde.propagator import Propagator
from scoresde.sdes.denoised_reverse import DenoisedReverse, constant_diffusion, standard_increment
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients, root
from scoresde.sdes.sde_coefficients import Kernel, Score, SDECoefficients

_FAINT = 1e-30
"""What a gain of 0 is taken for, where it divides what a step of another shape would add."""


class PhaseCoefficients(SDECoefficients):
    """Coefficients of a `scoresde.PhaseSDE` at several times, for states ``y = (x, v)``.

    Estimators are given what a state says of data, a state of `DiagonalCoefficients`; all else are
    matrices, one per component (`scoresde.phase_space.mixing.Mixing`).

    Args:
        seen: Coefficients of that diffusion of data (`scoresde.phase_space.dynamics`).
        dynamics: Of position and velocity.
        like: A state of all copies, ``(*batch, k n)``.
    """

    _reading: tuple[Tensor, PhaseKernel] | None = None
    _part: tuple[PhaseCoefficients, Any] | None = None
    """Of what says more, and which of its times these are, if anything does."""

    def __init__(self, seen: DiagonalCoefficients, dynamics: Dynamics, like: Tensor) -> None:
        super().__init__(seen.t, like, seen.blocks.repeated(dynamics.copies))
        self.seen, self.dynamics = seen, dynamics

    def part(self, index: Any, like: Tensor) -> Self:
        """See `scoresde.sdes.sde_coefficients.SDECoefficients.part`."""
        seen = self.seen.part(index, like[..., : self.seen.layout.dim])
        some = type(self)(seen, self.dynamics, like)
        some._part = self, index
        return some

    def together(self, *values: Any) -> list[Any]:
        """See `scoresde.equation.Coefficients`: matrices are sent one by one."""
        return [self.cast(v) for v in values]

    @property
    def s(self) -> Tensor:
        """The ``s`` of the dynamics, ``(k, *, 1 | blocks | n)``, in full precision."""
        return self._read()[0]

    @property
    def s_rate(self) -> Tensor:
        """``ds/dt``."""
        return self.seen.log_snr_decay.to(self.s) / self.phase_kernel.decay

    @property
    def phase_kernel(self) -> PhaseKernel:
        """The kernel of states given data, in units of the noise."""
        return self._read()[1]

    def _read(self) -> tuple[Tensor, PhaseKernel]:
        """``s`` and the kernel, once: by the coefficients of which these are a part, if any."""
        if self._reading is None:
            if self._part is None:
                s = self.dynamics.diffused(-2 * self.noise_levels)
                self._reading = s, self.dynamics.kernel(s)
            else:
                whole, index = self._part
                s, kernel = whole._read()
                self._reading = s[index], PhaseKernel(*(v[index] for v in kernel))
        return self._reading

    def vector(self, values: Tensor) -> Tensor:
        """``(*, 1 | blocks | n, copies)`` along the component axis of all copies."""
        values = values.mT
        if values.shape[-1] == 1:
            values = values.expand(*values.shape[:-1], len(self.seen.blocks))
        return values.flatten(-2)

    def mixing(self, matrices: Tensor) -> Any:
        """``(*, 1 | blocks | n, copies, copies)`` as factors of states."""
        return Mixing(matrices.movedim(-3, -1), self.seen.blocks)

    def in_units(self, matrices: Tensor) -> Tensor:
        """Matrices ``(*, 1 | blocks | n, copies, copies)`` in the noise's units."""
        values, unit = self.seen.blocks.broadcastable(matrices.movedim(-3, -1), self.seen.scale)
        return (values * unit).movedim(-1, -3)

    def gain(self, gains: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gain of a `Propagator`, and its moments.

        Args:
            gains: Weights of powers of ``v``, ``(*, 1 | blocks | n, copies, powers)``.
        """
        gain, *others = (self.vector(v) for v in gains.unbind(-1))
        gain = torch.where(gain == 0, _FAINT, gain)
        return gain, [v / gain for v in others]

    def log_det(self, triangular: Tensor) -> Tensor:
        """The log-determinant of matrices ``(1, 1 | blocks | n, m, m)``, summed over components."""
        each = triangular.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.seen.blocks.expand(each).expand(1, self.seen.blocks.dim).sum()

    @property
    def noise_levels(self) -> Tensor:
        """The noise levels of what a state says of data."""
        return self.seen.noise_levels

    @property
    def noise_level(self) -> Tensor:
        """The noise level of what a state says of data, averaged over the blocks."""
        return self.seen.noise_level

    @property
    def kernel(self) -> Kernel:
        """``a`` and ``L``: the state is ``a x_0 + L xi``, whatever stands beside data."""
        kernel = self.phase_kernel
        return Kernel(self.vector(kernel.mean), self.mixing(self.in_units(kernel.root)))

    def propagator(self, end: PhaseCoefficients) -> Propagator:
        """The exact transition."""
        passed = end.s - self.s
        still = passed <= 0
        flow, covariance = self.dynamics.transition(passed.masked_fill(still, 1.0))
        still, one = still[..., None, None], torch.eye(self.dynamics.copies).to(flow)
        flow = torch.where(still, one, flow)
        noise = symmetric_root(covariance.masked_fill(still, 0.0))
        h = (end.t - self.t).expand(*self.t.shape[:-1], 1)
        none = torch.zeros_like(h)
        return Propagator(self.mixing(flow), none, h, none, self.mixing(self.in_units(noise)))

    def fields(self) -> Iterator[Field]:
        """``A y`` and ``Q^(1/2)``, by the time."""
        (drift,) = self.dynamics.constants(self.s, "drift")
        rate = self.s_rate
        slopes = self.cast(self.mixing(rate[..., None, None] * drift)).unbind()
        for slope, diffusion in zip(slopes, self.cast(self.diffusion).unbind(), strict=True):
            along, constant = partial(_product, slope), partial(constant_diffusion, diffusion)
            yield Field(torch.zeros_like, standard_increment, along, constant)

    @property
    def diffusion(self) -> Tensor:
        """``g``, ``(k, *, copies blocks | copies n)``."""
        (g2,) = self.dynamics.constants(self.s, "g2")
        rate, unit = self.seen.blocks.broadcastable(root(self.s_rate), self.seen.scale)
        return self.vector((rate * unit).unsqueeze(-1) * g2.sqrt())

    def denoisers(self, estimator: Score, condition: Any) -> Iterator[Forcing]:
        """The denoised mean, once for every copy."""
        readout = self.phase_kernel.readout.to(self.t)
        seen = self.seen.alpha
        readouts = self.cast(self.vector(seen.unsqueeze(-1) * readout))
        denoisers = estimator.denoisers(self.seen, condition)
        return map(partial(partial, denoised, self.dynamics.copies), denoisers, readouts.unbind())

    def reverse(self, estimator: Score, eta: float, condition: Any, sign: int) -> PhaseReverse:
        """Coefficients of an equation with the same marginals: see `scoresde.ReverseSDE`."""
        return PhaseReverse(self, estimator, eta, condition, sign)


class PhaseReverse(DenoisedReverse):
    """Coefficients of the reverse equation of a `scoresde.PhaseSDE` at several times.

    Takes the arguments of `scoresde.sdes.denoised_reverse.DenoisedReverse`.
    """

    forward: PhaseCoefficients

    def together(self, *values: Any) -> list[Any]:
        """See `PhaseCoefficients`."""
        return self.forward.together(*values)

    @property
    def slope(self) -> Any:
        """``A + (1 + eta^2)/2 Q S^-1``, by the SDE's time."""
        kernel = self.forward.phase_kernel
        pull = kernel.root @ (kernel.drift + self._share * kernel.g2)
        slope = torch.linalg.solve_triangular(kernel.root, pull, upper=False, left=False)
        return self.forward.mixing(self.forward.s_rate[..., None, None] * slope.to(self.t))

    @property
    def response(self) -> Tensor:
        """``-(1 + eta^2)/2 Q S^-1 a``."""
        kernel, rate = self.forward.phase_kernel, self.forward.s_rate
        pulled = kernel.root @ (kernel.g2 @ kernel.rho.unsqueeze(-1))
        response = -self._share * pulled.squeeze(-1)
        return self.forward.vector(rate.unsqueeze(-1) * response.to(self.t))

    @property
    def _share(self) -> float:
        return (1 + self.eta**2) / 2

    @property
    def length_rate(self) -> Tensor:
        """Half the derivative of the log-SNR."""
        decay = self.forward.seen.log_snr_decay.unsqueeze(-1) / -2
        return self.forward.vector(decay.expand(*decay.shape[:-1], self.forward.dynamics.copies))

    def propagator(self, end: PhaseReverse) -> Propagator:
        """See `scoresde.phase_space.steps`."""
        known, last = self.forward, end.forward
        step = phase_step(known.dynamics, known.s, last.s, self.eta)
        h = known.vector(step.h.unsqueeze(-1).expand(*step.h.shape, known.dynamics.copies))
        noise_std = known.mixing(known.in_units(step.noise_std)) if self.eta else None
        gain, means = known.gain(step.gains)
        damping = (1 + self.eta**2) * h
        return Propagator(known.mixing(step.decay), gain, h, damping, noise_std, *means)

    def score(self, z: Tensor, forcing: Tensor) -> Tensor:
        """``S^-1 (a D - y)``."""
        known = self.forward
        mean = known.vector(known.phase_kernel.mean)
        inverse = torch.linalg.inv(known.in_units(known.phase_kernel.root))
        pull = known.cast(known.mixing(inverse.mT @ inverse))
        return pull * (known.cast(mean) * forcing - z)


def _product(slope: Any, y: Tensor) -> Tensor:
    product: Tensor = slope * y
    return product


def denoised(copies: int, denoise: Forcing, readout: Tensor, y: Tensor) -> Tensor:
    """The denoised mean by what a state says of data, once for every copy."""
    seen = (readout * y).unflatten(-1, (copies, -1)).sum(-2)
    return torch.cat([denoise(seen)] * copies, -1)
