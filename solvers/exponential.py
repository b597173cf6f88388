"""Exponential solvers: exact on the linear part and the noise, elementwise.

They integrate a polynomial through the latest denoised means and everything else in closed form
(`scoresde.propagator.Propagator`); on an SDE that knows no linear part they are Euler-Maruyama,
Adams-Bashforth and Adams-Moulton. Every component has nodes and weights of its own: its steps are
those of its own clock.

The weights, for one component. A step of length ``h`` adds ``gain <F>``, with the mean over
``v = u/h`` in [0, 1] that weighs ``v`` by ``e^(damping v)``; ``m_1`` and ``m_2`` are those of ``v``
and ``v^2`` (`scoresde.propagator.exponential_moments`). With ``F_0`` at the start, and ``F_1`` and
``F_2`` where the steps of ``h_1`` and ``h_2`` before have started, Newton's polynomial is

    F(u) = F_0 + u D_1 + u (u + h_1) D_2,    D_1 = (F_0 - F_1)/h_1,
                                             D_2 = (D_1 - (F_1 - F_2)/h_2)/(h_1 + h_2),

    <F> = F_0 + m_1 h D_1 + (m_2 h^2 + m_1 h h_1) D_2.

The order is the number of terms. With ``F_+`` at the end, once it is known, that through three
points is

    F(u) = F_0 + u D_+ + u (u - h) E,        D_+ = (F_+ - F_0)/h,   E = (D_+ - D_1)/(h + h_1),

    <F> = F_0 + m_1 h D_+ + (m_2 - m_1) h^2 E,

and its difference to the first, times ``gain``, corrects the end. The next step starts there, and
multiplies it by its own ``decay``: both are known beforehand, so that the correction and what the
step adds by itself are one sum over ``F_+, F_0, F_1, F_2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from scoresde.blocks import Blocks
from scoresde.checks import choice, validator
from scoresde.equation import Coefficients
from scoresde.fixed_step import FixedStep, Step
from scoresde.noise import Noise
from scoresde.propagator import Propagator
from scoresde.sampling import grid as grids
from scoresde.sampling.grid import Grid, grid_field


@attrs.frozen
class DDIM(FixedStep):
    """First order: the denoised mean is held over a step (Song et al. 2020; Lu et al. 2022).

    ``z_s = (sigma_s/sigma_t) z_t + alpha_s (1 - e^-h) D`` for the ODE, and its SDE form for any
    ``eta``: see `scoresde.sdes.diagonal_coefficients.DiagonalCoefficients.denoising_step`.

    Takes the arguments of `scoresde.Solver`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from solvers import DDIM
        >>> point = torch.tensor([3.0, -1.0])
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((2,))), point, torch.zeros(2, 2))
        >>> DDIM(1).sample(model).round(decimals=1)  # its denoised mean is constant
        tensor([ 3., -1.])
    """

    references = "song2020 lu2022"

    order = 1.0
    weak_order = 1.0

    def step(self, y: Tensor, step: Step, noise: Noise, memory: Any) -> tuple[Tensor, Any]:
        """See the class."""
        (field,) = step.fields
        end = (step.decay * y).addcmul_(step.gain, field.forcing(y))
        if step.noise_std is not None:
            end = end.addcmul_(step.noise_std, field.increment(y, noise(y)))
        return end, None


class _Weights(NamedTuple):
    """Weights of the latest forcings in a step's end, and in the correction of it.

    Attributes:
        terms: Of forcings in the end of the step, latest first: those that lead to it, and those
            that correct where it starts, carried to its end.
        first: Whether it is the first of those prepared together, as after something is appended.
        lengths: With the last of many steps, ``h`` of the last two, ``(1 | blocks | m)``.
        correction: With it as well, of that end, once the forcing there is known: in full
            precision, ``(1 | blocks | m)``.
    """

    terms: Sequence[Tensor]
    first: bool
    lengths: Sequence[Tensor] = ()
    correction: Sequence[Tensor] = ()


class _Past(NamedTuple):
    """The memory of a multistep solver.

    Attributes:
        forcings: At the starts of the latest steps, latest first.
        weights: Of the latest step.
    """

    forcings: Sequence[Tensor]
    weights: _Weights

    def of(self, y: Tensor) -> Sequence[Tensor]:
        """The forcings, for a state that may have been appended to: what is new has no past."""
        more = y.shape[-1] - self.forcings[0].shape[-1]
        return [nn.functional.pad(v, (0, more)) for v in self.forcings] if more else self.forcings

    def steps(self, blocks: Blocks) -> list[Tensor]:
        """The lengths, for a state in these blocks; infinite for what has no past."""
        old = blocks.prefix(self.forcings[0].shape[-1])
        if old.dim == blocks.dim:
            return list(self.weights.lengths)
        lengths = []
        for length in self.weights.lengths:
            each = length.shape[-1] > len(old)
            width, whole = (old.dim, blocks.dim) if each else (len(old), len(blocks))
            padding = (0, whole - width)
            lengths.append(nn.functional.pad(length.expand(width), padding, value=math.inf))
        return lengths

    def corrects(self, size: int) -> bool:
        """Whether the end of the latest step is still to be corrected.

        What has been appended since tells of the others, too: where they are stays.
        """
        return bool(self.weights.correction) and self.forcings[0].shape[-1] == size


@attrs.frozen
class ExponentialMultistep(FixedStep):
    """Orders 1 to 3 at one evaluation a step (DPM-Solver++, Lu et al. 2022b; UniPC, Zhao 2023).

    Integrates the polynomial through the latest forcings exactly, for every component ``i`` over
    its own steps ``h_i``; published solvers have one ``h`` for all. Once the forcing at the end of
    a step is known, the end is corrected by the polynomial that goes through it, without further
    evaluations.

    A component's order is at most the number of its steps so far: lower at first, after it has
    entered, and after its clock has stood still. Higher terms fade where a step covers more than an
    e-fold of noise, over which forcings tell little of each other, and a slope is never taken from
    a step much shorter than the one it is used for.

    The weak order is at most 2, where the SDE knows its noise over a step, as
    `scoresde.DiagonalSDE` does; elsewhere the noise is that at the step's start, and the order 1.

    Args:
        order: 1, 2 or 3.
        corrected: Whether ends of steps are corrected (predictor-corrector), from order 2 on.

    Raises:
        ValueError: If the order is none of these.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import ExponentialMultistep
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> x = ExponentialMultistep(12).sample(model, (5000,), generator=torch.manual_seed(0))
        >>> x.std().round(decimals=1)
        tensor(2.)
    """

    references = "lu2022b zhao2023"

    order: int = attrs.field(default=3, kw_only=True, validator=validator(choice, 1, 2, 3))
    corrected: bool = attrs.field(default=True, kw_only=True)
    grid: Grid = grid_field(grids.arctan_log_snr)

    @property
    def weak_order(self) -> float:
        """At most 2."""
        return min(self.order, 2)

    @property
    def _closes(self) -> bool:
        return self.order > 2 or (self.corrected and self.order > 1)

    def weights(
        self, ahead: Propagator, discontinuous: Tensor, at: Coefficients, memory: _Past | None
    ) -> Iterator[_Weights]:
        """See `scoresde.FixedStep.weights`.

        A step that starts where another has ended corrects that end, and carries the correction
        along: what it adds is one sum over the latest forcings.
        """
        before = [] if memory is None else memory.steps(at.blocks)
        before += [torch.full_like(ahead.h[0], math.inf)] * (2 - len(before))
        known = (ahead.decay, ahead.gain, ahead.h, ahead.damping, *ahead.moments)
        decay, gain, h, damping, first, second, *before = at.blocks.broadcastable(*known, *before)
        size = max(v.shape[-1] for v in (h, *before))
        past = torch.cat([v.expand(-1, size) for v in (before[1][None], before[0][None], h)])
        # standing still is no past
        past = past.masked_fill(past == 0, math.inf)
        # the forcing bends otherwise than before
        restarts = discontinuous.to(h.device).unsqueeze(-1)
        opening, late = self._weights(h, damping, (first, second), past, restarts)
        # of all terms together, ``(terms, steps, 1 | blocks | m)``
        terms = gain * torch.stack(opening)
        correction: Sequence[Tensor] = ()
        if late:
            corrections = gain * torch.stack(late)
            missing = (0, 0, 0, 0, 0, len(late) - len(opening))
            carried = decay * _one_later(corrections, memory, at.blocks)
            terms = nn.functional.pad(terms, missing) + carried
            correction = corrections[:, -1].unbind()
        each = zip(*(v.unbind() for v in at.together(terms)[0]), strict=True)
        unknown: list[Sequence[Tensor]] = [()] * (len(h) - 1)
        lengths = [*unknown, (past[-1], past[-2])]
        firsts = [True, *[False] * (len(h) - 1)]
        return map(_Weights, each, firsts, lengths, [*unknown, correction])

    def _weights(
        self,
        h: Tensor,
        damping: Tensor,
        means: tuple[Tensor, Tensor],
        past: Tensor,
        restarts: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Weights of forcings in the mean over a step, and changes of these by that at its end."""
        x = damping.abs()
        # a step says little about a longer one
        least = h * (x / _LONG).clamp(0.5, 1)
        h1, h2 = (torch.where(v.abs() < least.abs(), least, v) for v in (past[1:-1], past[:-2]))
        fresh, young = h1.isinf(), h2.isinf()
        h1, h2 = h1.masked_fill(fresh, 1.0), h2.masked_fill(young, 1.0)  # gradients want numbers
        first, second = means
        slope = curve = bend = excess = torch.zeros_like(h1)
        if self.order > 1:
            slope = _finite(first * h / h1).masked_fill(fresh, 0.0)
        if self.order > 2:
            fade = 1 / (1 + (x / (3 * _LONG)) ** 4)
            if not self.corrected:
                fade = fade.masked_fill(restarts | nn.functional.pad(restarts, (0, 0, 1, -1)), 0.0)
            curve = _finite(fade * (first * h * h1 + second * h**2) / (h1 + h2) / h1)
            curve = curve.masked_fill(fresh | young, 0.0)
            bend = _finite(curve * h1 / h2)
            excess = _finite((second - first) * h / (h + h1)).masked_fill(restarts | fresh, 0.0)
        opening = [1 + slope + curve, -slope - curve - bend, bend][: self.order]
        if not self._closes:
            return opening, []
        rise, back = first + excess, _finite(excess * h / h1)
        late = [rise, 1 - rise - back - opening[0], back - opening[1], *(-v for v in opening[2:])]
        if not self.corrected:  # only where a step could not be of second order beforehand
            late = [v.masked_fill(~(fresh | restarts), 0.0) for v in late[: self.order]]
        return opening, late

    def step(
        self, y: Tensor, step: Step, noise: Noise, memory: _Past | None
    ) -> tuple[Tensor, _Past]:
        """See the class."""
        (field,), weights = step.fields, step.weights
        forcings = [field.forcing(y)]
        if memory is not None:
            forcings += memory.of(y) if weights.first else memory.forcings
        end = step.decay * y
        if step.noise_std is not None:
            end.addcmul_(step.noise_std, field.increment(y, noise(y)))
        # the first steps have more weights, all 0, than forcings
        for weight, forcing in zip(weights.terms, forcings, strict=False):
            end.addcmul_(weight, forcing)
        # the next step has a forcing of its own; one is kept, by which it knows this state's length
        return end, _Past(forcings[: len(weights.terms) - 1 or 1], weights)


_LONG = 0.5
"""A long step, in its damping: its end counts ``e^.5`` times its start."""


def _one_later(late: Tensor, memory: _Past | None, blocks: Blocks) -> Tensor:
    """Corrections by the step at whose start they are due, from those known after each."""
    known = memory is not None and memory.corrects(blocks.dim)
    correction = torch.stack([*memory.weights.correction]) if memory is not None and known else None
    first = late.new_zeros(len(late), 1) if correction is None else correction
    late, first = blocks.broadcastable(late, first.unsqueeze(1))
    size = max(late.shape[-1], first.shape[-1])
    return torch.cat([first.expand(-1, -1, size), late[:, :-1].expand(-1, -1, size)], 1)


def _finite(weight: Tensor) -> Tensor:
    """No step before, or none to a clean state: nothing to extrapolate from or to."""
    return weight.nan_to_num(0.0, 0.0, 0.0)
