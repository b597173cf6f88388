"""Several kinds of data as one event."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from scoresde.bases.basis import Basis
from scoresde.bases.identity import Identity
from scoresde.blocks import Blocks
from scoresde.checks import expect, instance
from scoresde.internals.messages import nearest


class Joint(Basis):
    """Named parts of any shapes, each in a basis of its own: the data of a joint model.

    An event is one vector ``(n,)``, the parts flattened one after the other; `join` makes it
    and `split` takes it apart. A part's blocks are named ``part.block``, or by the part alone if
    it has one. What a multi-scale SDE is to drop must come last.

    Args:
        parts: A basis, or an event shape, by name.

    Raises:
        ValueError: If there is no part.

    Source:
        Batzolis et al. 2022, *Non-Uniform Diffusion Models* (arXiv 2207.09786), section 4.

    Example:
        >>> import torch
        >>> from scoresde import Haar, Joint
        >>> joint = Joint(y=(2,), x=Haar((1, 4, 4), levels=1))
        >>> joint.blocks
        Blocks({'y': 2, 'x.a1': 4, 'x.d1': 12})
        >>> event = joint.join(y=torch.zeros(5, 2), x=torch.ones(5, 1, 4, 4))
        >>> event.shape, joint.split(event)["x"].shape
        (torch.Size([5, 18]), torch.Size([5, 1, 4, 4]))
    """

    references = "batzolis2022"

    def __init__(self, **parts: Basis | tuple[int, ...]) -> None:
        expect(len(parts) > 0, "parts", "at least one", parts)
        bases = {
            name: part if isinstance(part, Basis) else Identity(part)
            for name, part in parts.items()
        }
        blocks = [_named(name, basis, basis.blocks) for name, basis in bases.items()]
        sizes = dict(itertools.chain.from_iterable(blocks))
        super().__init__((sum(sizes.values()),), Blocks(sizes))
        self.parts = nn.ModuleDict(bases)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Event shape of every part."""
        return {k: b.event_shape for k, b in zip(self.parts, self._bases(), strict=True)}

    @property
    def groups(self) -> Blocks:
        """The groups of every part."""
        bases = zip(self.parts, self._bases(), strict=True)
        groups = [_named(name, basis, basis.groups) for name, basis in bases]
        return Blocks(dict(itertools.chain.from_iterable(groups)))

    @property
    def slices(self) -> dict[str, slice]:
        """The slice of each part, in an event and in the state."""
        pairs = zip(self.parts, self._bases(), strict=True)
        return Blocks({name: basis.dim for name, basis in pairs}).slices

    def join(self, **events: Tensor) -> Tensor:
        """One event of all parts': ``(*batch, *part_shape)`` each to ``(*batch, n)``.

        Raises:
            ValueError: If a part is missing or unknown, or has another shape.
        """
        self.check(events)
        for name in self.parts:
            expect(name in events, "events", f"all of {', '.join(self.parts)}", list(events))
        flat = [_flat(name, events[name], shape) for name, shape in self.shapes.items()]
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in flat))
        return torch.cat([v.expand(*batch, -1) for v in flat], -1)

    def split(self, event: Tensor) -> dict[str, Tensor]:
        """The parts of an event: ``(*batch, n)`` to ``(*batch, *part_shape)`` each."""
        return {
            name: event[..., self.slices[name]].reshape(*event.shape[:-1], *shape)
            for name, shape in self.shapes.items()
        }

    def per_block(self, **values: float) -> Tensor:
        """A number per part as one per block, along the component axis (`scoresde.blocks`)."""
        self.check(values)
        expect(len(values) == len(self.parts), "values", f"one for each of {[*self.parts]}", values)
        parts = zip(self.parts, self._bases(), strict=True)
        each = [values[name] for name, basis in parts for _ in basis.blocks.sizes]
        return torch.tensor(each, dtype=torch.float64)

    def without(self, names: Collection[str]) -> Basis:
        """The basis of the other parts: one's own, or a joint one of several."""
        rest = {
            name: basis
            for name, basis in zip(self.parts, self._bases(), strict=True)
            if name not in names
        }
        return next(iter(rest.values())) if len(rest) == 1 else Joint(**rest)

    def prefix(self, dim: int) -> Joint:
        """The basis of the first components, see `Basis.prefix`; only the last part is cut."""
        *names, last = self.parts
        *first, basis = self._bases()
        before = sum(part.dim for part in first)
        wanted = f"more than {before}: of the last part, {last!r}, alone a part may be left out"
        expect(dim > before, "dim", wanted, dim)
        return Joint(**dict(zip(names, first, strict=True)), **{last: basis.prefix(dim - before)})

    def mapped(self, function: Callable[[Basis], Basis]) -> Joint:
        """The same parts in other bases of as many components."""
        parts = zip(self.parts, self._bases(), strict=True)
        return Joint(**{name: function(basis) for name, basis in parts})

    def check(self, names: Mapping[str, object]) -> None:
        """Raises ``ValueError`` if one of the names is no part."""
        for name in names:
            if name not in self.parts:
                raise ValueError(f"parts: unknown name {name!r}{nearest(name, self.parts)}")

    def analyse(self, x: Tensor) -> Tensor:
        """Every part in its basis."""
        parts = zip(self._bases(), self.split(x).values(), strict=True)
        return torch.cat([basis.analyse(part) for basis, part in parts], -1)

    def synthesise(self, z: Tensor) -> Tensor:
        """Every part back."""
        parts = zip(self._bases(), z.split([p.dim for p in self._bases()], -1), strict=True)
        flat = [b.synthesise(part).reshape(*z.shape[:-1], b.dim) for b, part in parts]
        return torch.cat(flat, -1)

    def _bases(self) -> list[Basis]:
        return [basis for basis in self.parts.values() if isinstance(basis, Basis)]


def joint(
    parts: Mapping[str, Sequence[int]],
    bases: Mapping[str, Basis | Callable[[Sequence[int]], Basis]] | None = None,
) -> Joint:
    """A `Joint` of parts by their shapes, as a configuration makes it.

    Args:
        parts: Event shapes by name.
        bases: Of some of the parts, or what makes them of a shape; others stay as they are.

    Raises:
        TypeError: If parts or bases have no names, or what makes a basis cannot be called.
        ValueError: If there is a basis of what is no part, or of another shape.

    Example:
        >>> from scoresde import Haar
        >>> from scoresde.bases.joint import joint
        >>> joint({"y": (2,), "x": (1, 4, 4)}, {"x": lambda shape: Haar(shape, levels=1)}).blocks
        Blocks({'y': 2, 'x.a1': 4, 'x.d1': 12})
    """
    given = {} if bases is None else bases
    for argument, names in (("parts", parts), ("bases", given)):
        instance(argument, names, Mapping)
        for name in names:
            instance(argument, name, str)
    plain = Joint(**{name: Identity(shape) for name, shape in parts.items()})
    plain.check(given)
    made: dict[str, Basis] = {}
    for name, shape in plain.shapes.items():
        basis = given.get(name, Identity(shape))
        instance(f"bases.{name}", basis, Callable)  # type: ignore[arg-type]
        made[name] = basis if isinstance(basis, Basis) else basis(shape)
        expect(made[name].event_shape == shape, f"bases.{name}", f"{shape}", made[name])
    return Joint(**made)


joint.example = {"parts": {"a": (4,), "b": (2, 14)}}  # type: ignore[attr-defined]


def _named(part: str, basis: Basis, blocks: Blocks) -> Iterator[tuple[str, int]]:
    """A part's blocks or groups with names in the joint basis."""
    first, *rest = basis.blocks.sizes
    for name, size in blocks.sizes.items():
        yield f"{part}.{name}" if rest else part + name.removeprefix(first), size


def _flat(name: str, event: Tensor, shape: torch.Size) -> Tensor:
    lead = event.ndim - len(shape)
    expect(event.shape[lead:] == shape, name, f"shape (*batch, {tuple(shape)})", tuple(event.shape))
    return event.reshape(*event.shape[:lead], prod(shape))
