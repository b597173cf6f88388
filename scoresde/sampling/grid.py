"""Grids of times for solvers.

A grid is a function ``(sde, steps) -> times``: ``steps + 1`` times in float64, decreasing from
``T`` to ``eps``. Every breakpoint of the SDE (a clock that starts or stops) is one of them, if
there are steps enough, because no solver has its order across a discontinuity.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoresde.checks import expect, look_up, numbers
from scoresde.equation import Equation
from scoresde.sdes.sde import SDE, Stage
from scoresde.sdes.sde_coefficients import SDECoefficients

Grid = Callable[[SDE, int], Tensor]
"""``(sde, steps) -> times``."""

_Floats = npt.NDArray[np.float64]


def uniform_time(sde: SDE, steps: int) -> Tensor:
    """Equal steps in time.

    Args:
        sde: Has a first and a last time, and breakpoints.
        steps: At least 1.

    Returns:
        ``(steps + 1,)``, decreasing, in float64; as of all grids.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import uniform_time
        >>> uniform_time(DiagonalSDE(VP(), Identity((2,))), 4).round(decimals=3).tolist()
        [1.0, 0.75, 0.5, 0.251, 0.001]
    """
    return _equal(sde, steps, lambda at: at.t.squeeze(-1))


def log_snr(sde: SDE, steps: int) -> Tensor:
    """Equal steps in the SDE's noise level ``log(sigma/alpha)``: minus half the log-SNR.

    The natural choice for exponential solvers (Lu et al. 2022), whose step length it is. For a
    For a non-uniform SDE the blocks' levels are averaged; one without a kernel takes equal steps
    in time.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import log_snr
        >>> sde = DiagonalSDE(VP(), Identity((1,)))
        >>> steps = sde.at(log_snr(sde, 4).reshape(-1, 1, 1)).noise_level.diff(dim=0)
        >>> bool((steps / steps[0] - 1).abs().max() < 1e-3)
        True
    """
    return _equal(sde, steps, lambda at: at.noise_level)


def root_time(sde: SDE, steps: int) -> Tensor:
    """Equal steps in the square root of time: for SDEs without a kernel, whose noise grows so.

    Example:
        >>> from scoresde import CoxIngersollRoss
        >>> from scoresde.sampling.grid import root_time
        >>> root_time(CoxIngersollRoss((2,), T=4.0), 4).sqrt().diff().round(decimals=2).tolist()
        [-0.49, -0.49, -0.49, -0.49]
    """
    return _equal(sde, steps, lambda at: at.t.squeeze(-1).sqrt())


def karras(sde: SDE, steps: int) -> Tensor:
    """Equal steps in ``(sigma/alpha)^(1/7)`` (Karras et al. 2022, eq. 5).

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import karras
        >>> karras(DiagonalSDE(VP(), Identity((2,))), 4).shape
        torch.Size([5])
    """
    return _equal(sde, steps, lambda at: (at.noise_level / 7).exp())


def arctan_log_snr(sde: SDE, steps: int) -> Tensor:
    """Equal steps in ``arctan((log(sigma/alpha) + 3/4) / 2)``: dense where samples are decided.

    Far above the data's scale the denoised mean hardly depends on the noise level, and far below
    it no longer changes. For data of unit scale, or in units of the SDE's ``scale``; for a
    non-uniform SDE averaged over the blocks. Centre and width are those that served few steps best
    on mixtures (benchmark ``accuracy``).

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import arctan_log_snr
        >>> arctan_log_snr(DiagonalSDE(VP(), Identity((2,))), 4).shape
        torch.Size([5])
    """

    def turns(at: SDECoefficients) -> Tensor:
        return sde.basis.blocks.average(((at.noise_levels + 0.75) / 2).arctan())

    return _equal(sde, steps, turns)


def wide_arctan_log_snr(sde: SDE, steps: int) -> Tensor:
    """As `arctan_log_snr`, with ``arctan((log(sigma/alpha) + 1) / 3)``: for densities.

    Densities depend on lower noise levels than samples do.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import wide_arctan_log_snr
        >>> wide_arctan_log_snr(DiagonalSDE(VP(), Identity((2,))), 4).shape
        torch.Size([5])
    """

    def turns(at: SDECoefficients) -> Tensor:
        return sde.basis.blocks.average(((at.noise_levels + 1) / 3).arctan())

    return _equal(sde, steps, turns)


def log_normal(sde: SDE, steps: int) -> Tensor:
    """Levels ``log(sigma/alpha)`` at quantiles of ``N(-1.2, 1.2^2)``: for training.

    Those of Karras et al. 2022 (table 1) for images in [-1, 1]. For a non-uniform SDE of its
    blocks' average.

    Example:
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.sampling.grid import log_normal
        >>> log_normal(DiagonalSDE(EDM(), Identity((2,))), 4).log()[2].round(decimals=2)  # median
        tensor(-1.2000, dtype=torch.float64)
    """
    return _equal(sde, steps, lambda at: torch.special.ndtr((at.noise_level + 1.2) / 1.2))


_U = np.linspace(0, 1, 2049)
_DENSE = np.where(_U < 0.5, 4 * _U**3, 1 - 4 * (1 - _U) ** 3)
"""Parts of a piece at which levels are read: dense at both ends, where they change fastest."""

_AT_ONCE = 2**20
"""Numbers of a kind that are read of a schedule at once: 8 MB, of which it makes some tens."""

_TINY = 1e-12
"""By how much times of a grid may miss those of stages: what float64 rounds, many times over."""

_ALL = (uniform_time, root_time, log_snr, karras, arctan_log_snr)
GRIDS: dict[str, Grid] = {f.__name__: f for f in (*_ALL, wide_arctan_log_snr, log_normal)}
"""The grids above, by name."""


@attrs.frozen
class Times:
    """Times that are known, as a grid: those of a plan, for instance. Steps lie between them.

    Example:
        >>> from scoresde.sampling.grid import Times
        >>> Times((1.0, 0.4))(None, steps=1)
        tensor([1.0000, 0.4000], dtype=torch.float64)
    """

    times: tuple[float, ...]

    def __call__(self, sde: SDE, steps: int) -> Tensor:
        """See the class; ``steps`` have to be as many."""
        wanted = f"{len(self.times) - 1}, as many as lie between the times of the grid"
        expect(steps == len(self.times) - 1, "steps", wanted, steps)
        return torch.tensor(self.times, dtype=torch.float64, device="cpu")


def grid(name: str | Grid | Sequence[float], argument: str = "grid") -> Grid:
    """A grid by name, or of `Times`; a function of one's own passes through.

    Args:
        name: Of the grid; or its function, or its times.
        argument: What errors call it.

    Raises:
        TypeError: If it is no function of an SDE and a number of steps.
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.sampling.grid import grid
        >>> grid("karras").__name__
        'karras'
    """
    if isinstance(name, (list, tuple)):
        return Times(tuple(numbers(argument, name).tolist()))
    return of_two(argument, look_up(argument, name, GRIDS))  # type: ignore[arg-type]


def grid_field(default: Grid) -> Any:
    """The field ``grid`` of a solver, with a default of its own.

    Example:
        >>> import attrs
        >>> from scoresde import Solver
        >>> from scoresde.sampling.grid import grid_field, karras
        >>> @attrs.frozen
        ... class Mine(Solver):
        ...     order, weak_order = 1.0, None
        ...     grid = grid_field(karras)
        ...     def walk(self, equation, y, ts, noise, memory=None):
        ...         yield y, None
        >>> Mine(5).grid.__name__
        'karras'
    """
    return attrs.field(
        default=default,
        kw_only=True,
        converter=grid,
        repr=lambda grid: getattr(grid, "__name__", repr(grid)),
    )


def of_two(argument: str, function: Grid) -> Grid:
    """The function itself; raises ``TypeError`` if it does not take an SDE and a number."""
    try:
        inspect.signature(function).bind(None, 1)
    except TypeError:
        expected = f"{argument}: expected a function (sde, steps)"
        raise TypeError(f"{expected}, got {reprlib.repr(function)}") from None
    except ValueError:  # of some built-in functions nothing is known
        pass
    return function


def check(sde: SDE, times: Tensor) -> Tensor:
    """A user's times, checked: decreasing, in the SDE's range.

    Raises:
        ValueError: If they are not one finite decreasing sequence within ``[0, T]``.
    """
    times = numbers("times", times).to("cpu", torch.float64)
    expect(times.ndim == 1 and len(times) > 1, "times", "two or more numbers", tuple(times.shape))
    if not bool((times[1:] < times[:-1]).all()):
        expect(False, "times", "a decreasing sequence", times.tolist())
    if not (times[0].item() <= sde.T and times[-1].item() >= 0):
        expect(False, "times", f"numbers in [0, {sde.T}]", times.tolist())
    for stage in sde.stages()[1:]:
        there = bool((times - stage.start).abs().min() < _TINY)
        wanted = f"{stage.start} among them, where the state grows (a step per stage at least)"
        expect(there, "times", wanted, times.tolist())
    return times


def restrict(times: Tensor, stage: Stage) -> Tensor:
    """The part of a grid that belongs to a stage."""
    times = numbers("times", times)
    return times[(times <= stage.start + _TINY) & (times >= stage.end - _TINY)]


def _read(equation: Equation, coordinate: Callable[[Any], Tensor], times: Tensor) -> Tensor:
    """A function of an equation at times on the CPU, in float64."""
    times = times.double()
    with torch.no_grad():
        return coordinate(equation.at(times.unsqueeze(-1), times.new_empty(equation.basis.dim)))


def _equal(sde: SDE, steps: int, coordinate: Callable[[SDECoefficients], Tensor]) -> Tensor:
    """Equal steps in an increasing coordinate, between breakpoints if there are any."""
    expect(steps >= 1, "steps", "at least 1", steps)

    width = 1

    def seen(at: SDECoefficients) -> Tensor:
        nonlocal width
        width = at.noise_levels.shape[-1]
        return coordinate(at)

    def read(t: _Floats) -> _Floats:
        return _read(sde, seen, torch.from_numpy(t.ravel())).numpy().reshape(t.shape)

    knots = [sde.eps, *sde.breakpoints(), sde.T]
    knots = knots if len(knots) - 1 <= steps else [sde.eps, sde.T]
    dense = np.array(knots)[:-1, None] + np.diff(knots)[:, None] * _DENSE
    values = read(dense[:1])
    if len(dense) > 1:
        parts = min(len(dense) - 1, -(-dense.size * width // _AT_ONCE))  # mostly one
        values = np.concatenate([values, *map(read, np.array_split(dense[1:], parts))])
    spans = values[:, -1] - values[:, 0]
    wanted = f"an SDE whose noise levels are numbers from {sde.eps} to {sde.T}"
    expect(bool(np.isfinite(spans).all()), "grid", wanted, "NaN or infinite ones")
    pieces = [np.array([sde.eps])]
    for t, at, b, count in zip(dense, values, knots[1:], _apportion(spans, steps), strict=True):
        pieces.append(np.interp(np.linspace(at[0], at[-1], count + 1)[1:], at, t))
        pieces[-1][-1] = b
    return torch.from_numpy(np.concatenate(pieces)[::-1].copy())


def _apportion(spans: _Floats, steps: int) -> list[int]:
    """Shares steps in proportion to spans, at least one each (largest remainders)."""
    if len(spans) == 1:  # mostly
        return [steps]
    rest = steps - len(spans)
    shares = rest * spans / spans.sum()
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares)[: rest - counts.sum()]] += 1
    return [int(c) + 1 for c in counts]


def fractions(
    equation: Equation, starts: Tensor, ends: Tensor, parts: Sequence[float]
) -> list[Tensor]:
    """Times that divide each step at given parts of its length in the equation's noise level.

    Args:
        equation: Knows its noise level.
        starts: ``(k,)``.
        ends: ``(k,)``.
        parts: Numbers in ``(0, 1)``.

    Returns:
        ``(k,)`` for every part.
    """
    u = torch.linspace(0, 1, _FRACTION_POINTS, dtype=starts.dtype, device=starts.device)
    times = starts.unsqueeze(-1) + (ends - starts).unsqueeze(-1) * u
    noise_levels = _read(equation, attrgetter("noise_level"), times.flatten()).reshape(times.shape)
    span = noise_levels[:, -1:] - noise_levels[:, :1]
    # where all components stand still one time is as good as another
    share = torch.where(span == 0, u, (noise_levels - noise_levels[:, :1]) / span)
    rows = [np.interp(parts, s.numpy(), t.numpy()) for s, t in zip(share, times, strict=True)]
    return list(torch.from_numpy(np.array(rows)).unbind(-1))


_FRACTION_POINTS = 65
"""Of a step, between which levels are lines in time: measured, parts of its length are met within
2e-4 on the built-in schedules."""

_LEVEL_POINTS = 257
"""From a time to the last, twice: by their square roots, and by logarithms, as EDM's last time is
forty thousand times its first. Measured, a rise of .01 is met within 2% there, .3% elsewhere."""


def time_at_level(sde: SDE, t: Tensor, rise: float, last: float) -> Tensor:
    """The time at which the noise level is higher by so much than at ``t > 0``, or the ``last``."""
    u = torch.linspace(0, 1, _LEVEL_POINTS, dtype=t.dtype, device=t.device)
    times = torch.cat([t + (last - t) * u**2, t * (last / t) ** u]).sort().values.clamp(max=last)
    noise_levels = _read(sde, attrgetter("noise_level"), times)
    return t.new_tensor(
        np.interp(float(noise_levels[0]) + rise, noise_levels.numpy(), times.numpy())
    )
