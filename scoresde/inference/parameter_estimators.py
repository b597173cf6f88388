"""Estimators of parameters alone, from joint ones or for given observations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.bases import Identity, Joint
from scoresde.blocks import Blocks
from scoresde.checks import expect
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator, kernels
from scoresde.inference.coordinates import Coordinates
from scoresde.precision import Float64Constants, cast_like, shallow_copy
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde_coefficients import Kernel, SDECoefficients
from scoresde.selection import per_sample, samples

_M = TypeVar("_M", bound=Float64Constants)


class PartEstimator(PlannedEstimator):
    """One part of a joint event, the others being a condition: a joint estimator asked for it.

    Args:
        joint: Of all parts, under a `scoresde.DiagonalSDE` with a `scoresde.Joint` basis.
        part: The last of them, in no basis of its own.
        clean: Whether the others are kept clean, whatever their speed.

    Raises:
        TypeError: If the SDE is another one.
        ValueError: If the others diffuse.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Joint
        >>> from scoresde.inference.parameter_estimators import PartEstimator
        >>> sde = DiagonalSDE(VP(), Joint(y=(1,), x=(1,)), speeds=[0.0, 1.0])
        >>> joint = Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
        >>> part = PartEstimator(joint, "x")
        >>> part.denoise(torch.zeros(1, 1), 1.0, condition=torch.ones(1, 1)).round(decimals=2)
        tensor([[0.8000]])
    """

    sde: DiagonalSDE

    def __init__(self, joint: ScoreEstimator, part: str, clean: bool = False) -> None:
        whole = joint.sde
        if not isinstance(whole, DiagonalSDE) or not isinstance(whole.basis, Joint):
            raise TypeError(f"joint: expected an estimator of joint events, got one of {whole}")
        self_part = whole.basis.slices[part]
        super().__init__(_part_of(whole, whole.basis.shapes[part], self_part))
        self.joint, self.part, self.clean = joint, self_part, clean
        end = torch.full((1,), whole.T, dtype=torch.float64, device="cpu")
        noise = whole.kernel(end).sigma.expand(whole.basis.dim)[: self_part.start]
        wanted = "parts that do not diffuse (CDE, or clean=True)"
        still = clean or not bool(noise.any())
        expect(still, "joint", wanted, f"noise of up to {float(noise.max()):.3g} on them")

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """Denoisers of states ``(*batch, m)`` given the other parts, flattened: ``(*batch, n)``."""
        z, t, count = at.like, at.t, self.part.start
        if self.clean or t.shape[-1] > 1:
            here = t.reshape(len(t), *[1] * (z.ndim + 1 - t.ndim), *t.shape[1:])
            here = here.expand(*here.shape[:-1], z.shape[-1])
            t = torch.cat([here.new_zeros(*here.shape[:-1], count), here], -1)
        others = condition.to(z).expand(*z.shape[:-1], count)

        def of_part(joint: Denoiser, z: Tensor) -> Tensor:
            return joint(torch.cat([others, z], -1))[..., self.part]

        whole = self.joint.sde.at(t, torch.cat([others, z], -1))
        return map(partial(partial, of_part), self.joint.denoisers(whole))


def _part_of(sde: DiagonalSDE, shape: torch.Size, part: slice) -> DiagonalSDE:
    """The diffusion of some components, which all others leave alone."""
    scale, mean, std = (
        sde.blocks.expand(v)[part] if v.numel() > 1 else v for v in (sde.scale, sde.mean, sde.std)
    )
    schedule = _restricted(sde.schedule, sde.blocks, part)
    clock = _restricted(sde.clock, sde.blocks, part)
    return DiagonalSDE(schedule, Identity(shape), clock, scale, mean=mean, std=std)


def _restricted(module: _M, blocks: Blocks, part: slice) -> _M:
    """A view of a module whose constants along the component axis are those of some components."""
    view = module.per_component(blocks)
    _restrict_in_place(view, blocks.dim, part)
    return view


def _restrict_in_place(view: Float64Constants, dim: int, part: slice) -> None:
    # per_component has copied the modules, not what they hold: what is learned is that of both
    for registry in (view._parameters, view._buffers):
        for name, value in registry.items():
            if value is not None:
                own = value[..., part] if value.ndim and value.shape[-1] == dim else value
                registry[name] = own if own.requires_grad else own.clone()  # type: ignore[assignment]
    for child in view._modules.values():
        if isinstance(child, Float64Constants):
            _restrict_in_place(child, dim, part)


class PosteriorEstimator(PlannedEstimator):
    """Posteriors of parameters, in coordinates in which nothing is explained.

    There, ``u = z + k`` with the residual ``z`` and ``k`` what a regression says of it, all
    observations share a state, ``z_t = u_t - alpha k``, and can be composed.

    Args:
        estimator: Of residuals ``z``, given an observation as a condition.
        condition: What it is given, ``(*batch, *condition_shape)``.
        shift: ``k``, in units of the residuals, ``(*batch, m)``.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.inference.parameter_estimators import PosteriorEstimator
        >>> left = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> seen = PosteriorEstimator(left, None, torch.tensor([[-2.0], [2.0]]))
        >>> seen.denoise(torch.zeros(2, 1), 1.0)
        tensor([[-1.],
                [ 1.]])
    """

    shift: Tensor
    condition: Tensor | None

    def __init__(self, estimator: ScoreEstimator, condition: Tensor | None, shift: Tensor) -> None:
        super().__init__(estimator.sde)
        self.estimator = estimator
        self.register_buffer("condition", condition)
        self.register_buffer("shift", shift)

    @classmethod
    def of(
        cls,
        estimator: ScoreEstimator,
        coordinates: Coordinates,
        observation: Tensor,
        *,
        shifted: bool = True,
    ) -> PosteriorEstimator:
        """The estimator for observations ``(*batch, *observation_shape)``.

        Args:
            estimator: See the class.
            coordinates: Of parameters and observations.
            observation: See above.
            shifted: Whether in coordinates without observation; in those of the residual if not.
        """
        seen = coordinates.observation(observation)
        shift = coordinates.explanation(observation) / coordinates.std
        shift = shift if shifted else torch.zeros_like(shift)
        if isinstance(estimator, PartEstimator):
            seen = seen.reshape(*shift.shape[:-1], -1)
        return cls(estimator, seen, shift)

    @property
    def batch_shape(self) -> torch.Size:
        """The batch of observations."""
        return self.shift.shape[:-1]

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The estimator for some samples' observations."""
        new = super().select(rows, batch)
        shift = samples(per_sample("observation", self.shift, batch), rows, batch)
        condition = self.condition
        if condition is not None:
            own = condition.shape[len(self.batch_shape) :]
            condition = condition.expand(*batch, *own).reshape(-1, *own)[rows]
        return shallow_copy(new, shift=shift, condition=condition)

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """The denoisers of residuals, shifted."""
        seen, shift = self.condition, cast_like(self.shift, at.like)
        if seen is not None:
            seen = seen.expand(*at.like.shape[:-1], *seen.shape[len(self.batch_shape) :])

        def shifted(kernel: Kernel, left: Denoiser, z: Tensor) -> Tensor:
            return left(z - kernel.alpha * shift) + shift

        return map(partial(partial, shifted), kernels(at), self.estimator.denoisers(at, seen))
