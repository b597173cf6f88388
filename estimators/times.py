"""Times of the components of an event in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from scoresde.blocks import Blocks
from scoresde.checks import choice, expect, look_up, real, validator
from scoresde.noise import Noise
from scoresde.sampling import grid as grids
from scoresde.sampling.grid import Grid, grid_field
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE


@attrs.frozen
class TrainingTimes(ABC):
    """The joint distribution of the times of an event's components, each with a grid's density.

    Subclasses implement `quantiles`, and are given to `estimators.Denoising` as its ``times``.

    Args:
        grid: Density of every time: a grid's name or function.

    Raises:
        TypeError: If ``grid`` cannot be called.
        ValueError: If its name is unknown.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from estimators.times import TrainingTimes
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> class Ramp(TrainingTimes):  # later components of a series have more noise
        ...     def quantiles(self, sde, z, noise):
        ...         ramp = torch.linspace(-0.5, 0.5, z.shape[-1]).to(z)
        ...         return (noise.uniform(z[:, :1]) + ramp).clamp(0, 1)
        >>> sde = DiagonalSDE(VP(), Identity((4,)))
        >>> network = ResidualMLP((4,), width=8, depth=1, noise_levels=4)
        >>> Denoising(sde, network, times=Ramp()).loss(torch.randn(5, 4)).shape
        torch.Size([])
    """

    grid: Grid = grid_field(grids.log_snr)

    @property
    def apart(self) -> bool:
        """Whether components have different times: the network is given the level of each."""
        return True

    def check(self, clock: Clock, blocks: Blocks) -> None:
        """Raises ``ValueError`` if times of components along a clock are none of training.

        Args:
            clock: Along which events are to be drawn.
            blocks: Of the components.
        """
        wanted = "independent ones in training: other paths have levels that it has not met"
        expect(self.apart, "times", wanted, self)

    @abstractmethod
    def quantiles(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """Numbers in ``[0, 1]``, ``(batch, 1 | blocks | n)``: 0 is ``eps`` and 1 is ``T``.

        Each should be uniform by itself, for the density of times that weightings assume.

        Args:
            sde: How data are diffused.
            z: Clean states, ``(batch, n)``.
            noise: Where random numbers come from.
        """


@attrs.frozen
class Together(TrainingTimes):
    """One time for all, stratified over the batch (Kingma et al. 2021, appendix I.1).

    Takes the arguments of `TrainingTimes`.

    Example:
        >>> import torch
        >>> from estimators.times import Together
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> sde = DiagonalSDE(VP(), Identity((3,)))
        >>> Together(grid="karras").quantiles(sde, torch.zeros(8, 3), Noise()).shape
        torch.Size([8, 1])
    """

    references = "kingma2021"

    @property
    def apart(self) -> bool:
        """No."""
        return False

    def quantiles(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """See the class."""
        return noise.stratified(z).mT


@attrs.frozen
class Independent(TrainingTimes):
    """An independent time for every block, or component.

    Samples may then be drawn along any path, see `scoresde.ScoreEstimator.with_clock`: the loss is
    a sum of those of all paths (Chen et al. 2024, "diffusion forcing"). Independent times of many
    components are hardly ever near each other, as they are on the path that draws all together: for
    that path, let some events have one time for all.

    Args:
        over: ``"blocks"`` or ``"components"``.
        together: Share of the events with one time for all, from 0 to 1.

    Raises:
        ValueError: If ``over`` is neither, or the share is out of its range.

    Example:
        >>> import torch
        >>> from estimators.times import Independent
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}))
        >>> Independent(over="blocks").quantiles(sde, torch.zeros(8, 3), Noise()).shape
        torch.Size([8, 2])
    """

    references = "chen2024"

    over: str = attrs.field(
        default="blocks", kw_only=True, validator=validator(choice, "blocks", "components")
    )
    together: float = attrs.field(default=0.0, kw_only=True, validator=validator(real, 0, 1))

    def check(self, clock: Clock, blocks: Blocks) -> None:
        """See the class: where times are drawn for blocks, a clock has one reading for each."""
        if self.over == "components":
            return
        read = clock(torch.linspace(0, 1, _READINGS, dtype=torch.float64).unsqueeze(-1))
        if read.shape[-1] not in (1, len(blocks)):
            own = blocks.expand(blocks.mean(read))
            wanted = f"one time for all of a block, as times have in training, of {len(blocks)}"
            expect(torch.allclose(own, read, rtol=0, atol=_SAME), "clock", wanted, "several")

    def quantiles(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """See the class."""
        apart = self._uniform(sde, z, noise)
        if not self.together:
            return apart
        return torch.where(noise.uniform(z[:, :1]) < self.together, apart[:, :1], apart)

    def _uniform(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """A number for every block, or component."""
        count = len(sde.blocks) if self.over == "blocks" else z.shape[-1]
        return noise.uniform(z.new_empty(len(z), count))


@attrs.frozen
class Fronts(Independent):
    """Times along fronts: in a random order, with a random overlap, at a random moment.

    What events are drawn by, see `scoresde.sdes.fronts.front`, in any order: with ranks ``r_i`` of
    0 to ``R`` a component is at the quantile

        clip(s - (1 - overlap) r_i, 0, 1),        s ~ U(0, 1 + (1 - overlap) R),

    clean, of noise alone, or on its way between them. Independent times are hardly ever such, as
    on a path one by one all components but one are at an end. Quantiles that are at no end are
    uniform.

    Args:
        over: ``"blocks"`` or ``"components"``.
        together: Share of the events with an overlap of 1. That of others is ``1 - v^2`` with ``v``
            uniform, mostly large.

    Raises:
        ValueError: If ``over`` is neither, or the share is out of its range.

    Example:
        >>> import torch
        >>> from estimators.times import Fronts
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> sde = DiagonalSDE(VP(), Identity((8,)))
        >>> times = Fronts(over="components").quantiles(sde, torch.zeros(6, 8), Noise())
        >>> times.shape, bool(((times == 0) | (times == 1)).any())
        (torch.Size([6, 8]), True)
    """

    references = "chen2024"

    together: float = attrs.field(default=0.3, kw_only=True, validator=validator(real, 0, 1))

    def quantiles(self, sde: DiagonalSDE, z: Tensor, noise: Noise) -> Tensor:
        """See the class."""
        one, rank = z[:, :1], self._uniform(sde, z, noise).argsort(-1).to(z)
        apart = noise.uniform(one).square()  # 1 - overlap: mostly little
        apart = apart.masked_fill(noise.uniform(one) < self.together, 0.0)
        moment = noise.stratified(z).mT * (1 + apart * (rank.shape[-1] - 1))
        return (moment - apart * rank).clamp(0, 1)


_READINGS, _SAME = 65, 1e-6
"""Of clocks that are compared: at so many times, and how near they are if they are one."""

_APART = {over: Independent(over=over) for over in ("blocks", "components")}
_APART |= {f"fronts-of-{over}": Fronts(over=over) for over in _APART}


def training_times(times: str | Grid | TrainingTimes, whole: bool = True) -> TrainingTimes:
    """The `TrainingTimes` that ``times`` of an estimator stands for.

    Args:
        times: ``"blocks"`` or ``"components"``, for `Independent` ones; with ``"fronts-of-"``
            before it, for `Fronts`; a grid's name or function, for one time with its density; or
            `TrainingTimes` as they are.
        whole: Whether states have all components: on a stage of some there is one time.

    Raises:
        TypeError: If it is none of them.
        ValueError: If the name is unknown, or times are apart on a stage.
    """
    known: dict[str, Any] = {**grids.GRIDS, **_APART}
    chosen: Any = times if isinstance(times, TrainingTimes) else look_up("times", times, known)
    if not isinstance(chosen, TrainingTimes):
        chosen = Together(grid=grids.of_two("times", chosen))
    expect(whole or not chosen.apart, "times", "one for all on a stage of some components", times)
    return chosen  # type: ignore[no-any-return]


def first_noise_level(sde: DiagonalSDE) -> Tensor:
    """The level of noise of every component at the first time, ``(1, 1 | blocks | n)``."""
    with torch.no_grad():
        return sde.at(sde.scale.new_full((1, 1), sde.eps)).noise_levels


class TrainingDraws(NamedTuple):
    """Random numbers of a training step for some events; see `estimators.Denoising.draw`.

    Attributes:
        z: Clean states, ``(batch, n)``; 0 where values are missing.
        times: ``(batch, 1 | blocks | n)``.
        density: Of the times, per unit of time, as they.
        xi: Standard normal numbers, as ``z``.
        missing: Which values are missing, as ``z``; None if none are.
    """

    z: Tensor
    times: Tensor
    density: Tensor
    xi: Tensor
    missing: Tensor | None
