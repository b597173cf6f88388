"""Observed components of a state, and bases with observed components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.bases import Basis, Joint
from scoresde.checks import expect, finite, floating, instance
from scoresde.precision import shallow_copy
from scoresde.selection import Selectable, broadcast, per_sample, samples


class Observation(Selectable):
    """Values of some components of a state.

    Args:
        mask: Which components are observed, ``(n,)``.
        values: ``(*batch, n)``; entries that are not observed do not matter.

    Raises:
        TypeError: If the mask is not one of booleans.
        ValueError: If it does not have the values' length, or a value that is observed is not
            finite.

    Example:
        >>> import torch
        >>> from scoresde.conditioning import Observation
        >>> known = Observation(torch.tensor([True, False]), torch.tensor([3.0, 0.0]))
        >>> known.pin(torch.ones(1, 2))
        tensor([[3., 1.]])
    """

    mask: Tensor
    values: Tensor

    def __init__(self, mask: Tensor, values: Tensor) -> None:
        super().__init__()
        for name, value in (("mask", mask), ("values", values)):
            instance(name, value, Tensor)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected a tensor of booleans, got {mask.dtype}")
        wanted = f"shape (*batch, n) beside a mask of shape (n,) = {tuple(mask.shape)}"
        fits = mask.ndim == 1 and values.shape[-1:] == mask.shape
        expect(fits, "values", wanted, tuple(values.shape))
        self.register_buffer("mask", mask)
        self.register_buffer("values", torch.where(mask, values, 0.0))
        finite("observed", self.values)

    @classmethod
    def of_parts(cls, basis: Joint, parts: Mapping[str, Tensor]) -> Observation:
        """The observation of some parts of a joint event, ``(*batch, *part_shape)`` each.

        Raises:
            TypeError: If a part is not a floating-point tensor.
            ValueError: If a name is unknown, no or every part is given, or a shape is wrong.
        """
        basis.check(parts)
        for name, value in parts.items():
            floating(name, value)
        expect(0 < len(parts) < len(basis.parts), "observed", f"some of {[*basis.parts]}", [*parts])
        leads = (v.shape[: max(0, v.ndim - len(basis.shapes[k]))] for k, v in parts.items())
        batch, first = broadcast("observed", *leads), next(iter(parts.values()))
        others = {k: first.new_zeros(*batch, *s) for k, s in basis.shapes.items()}
        mask = torch.zeros(basis.dim, dtype=torch.bool, device=first.device)
        for name in parts:
            mask[basis.slices[name]] = True
        return cls(mask, basis(basis.join(**{**others, **parts})))

    @property
    def batch_shape(self) -> torch.Size:
        """The batch of the values."""
        return self.values.shape[:-1]

    def joined(self, other: Observation) -> Observation:
        """Both.

        Raises:
            ValueError: If a component is observed twice, or the batches do not fit each other.
        """
        repeated = (self.mask & other.mask).nonzero().flatten().tolist()
        expect(
            not repeated, "observed", "components that are not observed yet", f"{repeated} again"
        )
        batch = broadcast("observed", self.batch_shape, other.batch_shape)
        mine, others = (per_sample("observed", v.values, batch) for v in (self, other))
        return Observation(self.mask | other.mask, torch.where(other.mask, others, mine))

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The observation of some samples of a batch; see `scoresde.selection.Selectable`."""
        values = per_sample("observed", self.values, batch)
        return shallow_copy(self, values=samples(values, rows, batch))

    def pin(self, z: Tensor, first: int = 0) -> Tensor:
        """A state, or its components from the ``first`` on, with the values in their place."""
        here = slice(first, first + z.shape[-1])
        pinned: Tensor = torch.where(self.mask[here], self.values[..., here].to(z), z)
        return pinned


class ConditionedBasis(Basis):
    """A basis some of whose coefficients are known.

    Its events are the parts of a `Joint` that are not observed; of other bases they are whole, with
    the observed values filled in. Coefficients that are not observed are orthonormal coordinates
    of the rest, so that densities are those of what is not observed.

    Args:
        basis: Of all components; may be conditioned already.
        observation: What is known.
        rest: The basis of the parts that are not, None if events are whole.

    Raises:
        ValueError: If the observation is not of these components, of all of them, or of some that
            are known.

    Example:
        >>> import torch
        >>> from scoresde import Joint
        >>> from scoresde.conditioning import ConditionedBasis, Observation
        >>> joint = Joint(y=(1,), x=(2,))
        >>> basis = ConditionedBasis(joint, Observation.of_parts(joint, {"y": torch.ones(1)}), None)
        >>> basis(torch.zeros(1, 3))
        tensor([[1., 0., 0.]])
    """

    observation: Observation
    rest_index: Tensor
    unobserved_index: Tensor

    def __init__(self, basis: Basis, observation: Observation, rest: Basis | None) -> None:
        nn.Module.__init__(self)
        n = len(observation.mask)
        expect(n == basis.dim, "observed", f"a mask of {basis.dim} components", f"one of {n}")
        if isinstance(basis, ConditionedBasis):
            observation = basis.observation.joined(observation)
        left = ~observation.mask
        expect(bool(left.any()), "observed", "some components that are not", f"all {n}")
        self.event_shape = (basis if rest is None else rest).event_shape
        self.blocks = basis.blocks
        self.whole, self.rest, self.observation = basis, rest, observation
        # where in the rest's coefficients a component is, and where in these one of the rest's
        self.register_buffer("rest_index", (torch.cumsum(left, 0) - 1).clamp(min=0))
        self.register_buffer("unobserved_index", left.nonzero().flatten())

    def analyse(self, x: Tensor) -> Tensor:
        """The state of events, what is observed included.

        Raises:
            ValueError: If their batch does not fit that of the observation.
        """
        z = (
            self.whole.analyse(x)
            if self.rest is None
            else self.rest.analyse(x)[..., self.rest_index]
        )
        broadcast("x", z.shape[:-1], self.observation.batch_shape)
        return self.observation.pin(z)

    def synthesise(self, z: Tensor) -> Tensor:
        """The events of a state, whatever it holds of what is observed."""
        if self.rest is None:
            return self.whole.synthesise(self.observation.pin(z))
        return self.rest.synthesise(z[..., self.unobserved_index])


def observing(basis: Basis, parts: Mapping[str, Any]) -> tuple[Observation, Basis]:
    """The observation of some parts of joint events, and the basis of the other parts.

    Args:
        basis: A `Joint`, or one of which some parts are known already and several are not.
        parts: ``(*batch, *part_shape)`` by name.

    Raises:
        TypeError: If the basis is another one.
        ValueError: As of `Observation.of_parts`.

    Example:
        >>> import torch
        >>> from scoresde import Joint
        >>> from scoresde.conditioning.observation import ConditionedBasis, observing
        >>> joint = Joint(a=(1,), b=(1,), c=(2,))
        >>> once = ConditionedBasis(joint, *observing(joint, {"b": torch.ones(1)}))
        >>> observation, rest = observing(once, {"c": torch.ones(2)})
        >>> observation.mask, rest.event_shape
        (tensor([False, False,  True,  True]), torch.Size([1]))
    """
    if isinstance(basis, ConditionedBasis) and basis.rest is not None:
        inner, rest = observing(basis.rest, parts)
        mask = torch.zeros_like(basis.observation.mask)
        mask[basis.unobserved_index] = inner.mask
        return Observation(mask, inner.values[..., basis.rest_index]), rest
    if not isinstance(basis, Joint):
        raise TypeError(f"basis: expected a Joint one, whose parts have names, got {basis}")
    return Observation.of_parts(basis, parts), basis.without(parts)
