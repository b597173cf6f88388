"""Multi-scale diffusion: one network per stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from estimators.budget import widths
from estimators.denoising import Denoising
from estimators.mismatch import check_range, check_standard
from estimators.prediction import seen_basis
from scoresde.bases import Basis
from scoresde.bases.views import view
from scoresde.checks import expect, instance, positive, real
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator
from scoresde.internals.messages import describe_error
from scoresde.noise import Generators, Noise
from scoresde.objectives.parametrization import Parametrization
from scoresde.objectives.weighting import Weighting
from scoresde.precision import Numbers, expect_near
from scoresde.sampling.grid import Grid
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde_coefficients import SDECoefficients
from scoresde.selection import samples

Maker = Callable[..., nn.Module]
"""``event_shape -> network``, or with a budget ``(event_shape, width) -> network``."""


class MultiScale(PlannedEstimator):
    """A denoiser for every stage of an SDE that drops blocks (Batzolis et al. 2022, section 5).

    Each network sees the components of its stage only, at their own resolution, and is trained on
    its interval of time. Stages are independent: train them together through `loss`, or each by
    itself, ``model.stages[i]``, a `Denoising` estimator; see `Denoising.on_coefficients` for
    transformed data.

    Args:
        sde: Drops blocks, see `scoresde.DiagonalSDE`.
        networks: One for every stage, coarse first (the order of ``sde.stages()``); the same
            object several times for a shared network. Or a function from the shape of the events
            that a network sees to that network, for all or one of each.
        network_bases: The basis whose events each network sees, for instance `scoresde.Packed`; see
            `Denoising`. Or the name of a view, see `scoresde.bases.views`: ``"events"`` of low
            resolution, their bands ``"packed"`` at half of it, or ``"coefficients"``.
        budget: Parameters of all networks, or a number for each: functions are then called as
            ``networks(event_shape, width)``, with widths by `estimators.budget.widths`.
        operations: Of an evaluation of all networks for one event, or of each, likewise; beside a
            budget of parameters both are kept.
        shares: Part of a batch that each stage is trained on, coarse first, above 0 and at most 1;
            1 for all of them if None. Fine stages with fewer events make updates cheaper, and have
            losses of the same mean and more variance. In evaluation mode every event counts. If a
            share of each process's events is a whole number, the result does not depend on the
            number of processes.
        data_mean: Of the whole SDE, see `Denoising`.
        data_std: See there.
        parametrization: See there.
        weighting: See there.
        times: Density of training times, see there.
        baseline: See there.

    Raises:
        ValueError: If there is not one network, one basis of them, or one share, per stage, or a
            share is out of its range.

    Example:
        >>> from estimators import MultiScale, ResidualMLP
        >>> from scoresde import Cosine, DiagonalSDE, Haar
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), levels=1), drop=[1.0, 0.5])
        >>> networks = [ResidualMLP((stage.dim,), 16, 1) for stage in sde.stages()]
        >>> DDIM(8).sample(MultiScale(sde, networks), (5,)).shape
        torch.Size([5, 1, 4, 4])
    """

    references = "batzolis2022"

    sde: DiagonalSDE

    def __init__(
        self,
        sde: DiagonalSDE,
        networks: Sequence[nn.Module | Maker] | Maker,
        *,
        network_bases: Sequence[Basis | None] | str | None = None,
        budget: int | Sequence[int] | None = None,
        operations: int | Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
        parametrization: str | Parametrization = "preconditioned",
        weighting: str | Weighting = "prediction",
        times: str | Grid = "log_snr",
        baseline: ScoreEstimator | None = None,
    ) -> None:
        super().__init__(sde)
        stages = sde.stages()
        bases = one_for_each("network_bases", _seen(network_bases, sde), len(stages))
        makers = one_for_each("networks", networks, len(stages))
        modules = make_networks(makers, _shapes(sde, bases), budget, operations)
        self.shares = _checked(shares, len(stages))
        models = [
            Denoising(
                sde,
                network,
                stage=stage,
                network_basis=basis,
                data_mean=data_mean,
                data_std=data_std,
                parametrization=parametrization,
                weighting=weighting,
                times=times,
                baseline=baseline,
            )
            for network, stage, basis in zip(modules, stages, bases, strict=True)
        ]
        self.stages = nn.ModuleList(models)
        check_range(sde, models[0].data_mean, models[0].data_std)
        self._met, self._place = False, {stage.dim: i for i, stage in enumerate(stages)}

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """The denoisers of the stage whose components are the state.

        Raises:
            ValueError: If it has the length of no stage.
        """
        return self._stage(at.like).denoisers(at, condition)

    def _stage(self, z: Tensor) -> Denoising:
        dim = z.shape[-1]
        expect(dim in self._place, "z", f"one of {list(self._place)} components", dim)
        stage = self.stages[self._place[dim]]
        assert isinstance(stage, Denoising)
        return stage

    def losses(
        self,
        x: Tensor,
        condition: Any = None,
        generator: Generators = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """Sum of the stages' losses, ``(batch,)``: sums, so that nats stay nats.

        A stage with a share of the batch has larger losses on the first events by its inverse, and
        none on the others, so that means stay the same.
        """
        expect_near("x", x, self)
        noise, z = Noise.of(generator), self.sde.basis(x)
        if not (self._met or torch.compiler.is_compiling()):
            self._met, last = True, self._stage(z)  # as of `Denoising.losses`
            check_standard(self.sde, x, z, last.data_mean, last.data_std)
        counts = [self._count(share, len(z)) for share in self.shares]
        drawn = [
            stage.draw(z[:count, : stage.stage.dim], noise.part(slice(count)))
            for stage, count in zip(self._models, counts, strict=True)
        ]
        # one reading of the schedule for all of them
        at = self.sde.at(torch.cat([each.times for each in drawn]).unsqueeze(0), z)
        first = next(self._models)
        # what is the same for all stages, too, where it is of blocks: few numbers
        few = first.data_std.numel() <= len(self.sde.blocks)
        known = first.preconditioning(at) if few else None
        losses, ends = [], itertools.accumulate(counts)
        for stage, each, count, end in zip(self._models, drawn, counts, ends, strict=True):
            times = slice(end - count, end)
            own = at.part((slice(None), times), each.z)
            if known is not None:
                own.cache[id(stage)] = known.part(at, times, own)
            told = condition
            if count < len(z):
                told = samples(condition, torch.arange(count, device=z.device), z.shape[:1])
            loss = stage.drawn_losses(own, each, told, weighting)
            if count < len(z):
                loss = nn.functional.pad(loss * (len(z) / count), (0, len(z) - count))
            losses.append(loss)
        return reduce(torch.add, losses)

    @property
    def _models(self) -> Iterator[Denoising]:
        for stage in self.stages:
            assert isinstance(stage, Denoising)
            yield stage

    def _count(self, share: float, count: int) -> int:
        """Number of events of a batch for a stage, at least one."""
        return count if not self.training else max(round(share * count), min(count, 1))

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """Mean of `losses`, per component of the data."""
        losses = self.losses(x, condition, generator)
        expect(len(losses) > 0, "x", "at least one event", tuple(x.shape))
        return losses.mean() / self.sde.basis.dim


def _shapes(sde: DiagonalSDE, bases: Sequence[Basis | None]) -> list[torch.Size]:
    """Shapes of the events that each network sees."""
    pairs = zip(bases, sde.stages(), strict=True)
    return [seen_basis(basis, sde.basis, stage.dim).event_shape for basis, stage in pairs]


def _checked(shares: Sequence[float] | None, count: int) -> list[float]:
    shares = one_for_each("shares", 1.0 if shares is None else shares, count)
    for share in shares:
        real("shares", share, 0, 1)
        positive("shares", share)
    return shares


def _seen(bases: Sequence[Basis | None] | str | None, sde: DiagonalSDE) -> Any:
    """The bases of networks, as they are given or by the name of a view."""
    if not isinstance(bases, str):
        return bases
    return [view(bases)(sde.basis, stage.dim) for stage in sde.stages()]


def one_for_each(name: str, values: Any, count: int) -> list[Any]:
    """A list with one value for every stage, from one for all or from several."""
    if not isinstance(values, (Sequence, nn.ModuleList)):
        return [values] * count
    expect(len(values) == count, name, f"{count}", len(values))
    return [*values]


def make_networks(
    makers: Sequence[nn.Module | Maker],
    shapes: Sequence[torch.Size],
    budget: int | Sequence[int] | None = None,
    operations: int | Sequence[int] | None = None,
) -> list[nn.Module]:
    """Networks of stages, as they are given or made for their events.

    Args:
        makers: One for each.
        shapes: Of those events.
        budget: See `MultiScale`.
        operations: See there.

    Raises:
        TypeError: If there is a budget for a network that is made already.
    """
    said = [n for n, v in {"budget": budget, "operations": operations}.items() if v is not None]
    if not said:
        return [_make_network(maker, shape) for maker, shape in zip(makers, shapes, strict=True)]
    for maker in makers:
        if isinstance(maker, nn.Module):
            raise TypeError(f"{said[0]}: expected functions that make networks, got {type(maker)}")
    wide = [
        partial(_make_network, maker, shape) for maker, shape in zip(makers, shapes, strict=True)
    ]
    sizes = widths(wide, budget, operations, shapes)
    return [make(width) for make, width in zip(wide, sizes, strict=True)]


def _make_network(maker: nn.Module | Maker, shape: torch.Size, *width: int) -> nn.Module:
    if isinstance(maker, nn.Module):
        return maker
    try:
        network = maker(shape, *width)
    except (TypeError, ValueError) as error:
        raise type(error)(f"networks: {describe_error(error)}, of {maker!r}") from error
    instance("networks", network, nn.Module)
    return network
