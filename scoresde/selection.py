"""Selection of samples of a batch, from conditions and modules with values for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import Self

from scoresde.checks import expect
from scoresde.precision import shallow_copy

M = TypeVar("M", bound=nn.Module)


def samples(condition: Any, rows: Tensor, batch: Sequence[int]) -> Any:
    """A condition for some samples of a batch.

    Args:
        condition: A tensor with the batch in front, as it is or flattened, or lists, tuples and
            dictionaries of such; anything else is for all samples.
        rows: Places in the flattened batch, ``(k,)``.
        batch: Shape of the batch.
    """
    count = math.prod(batch)

    def of(value: Tensor) -> Tensor:
        if value.shape[: len(batch)] == tuple(batch):
            value = value.reshape(count, *value.shape[len(batch) :])
        return value[rows.to(value.device)] if value.ndim and len(value) == count else value

    return tree_map_only(Tensor, of, condition)


def broadcast(name: str, *shapes: Sequence[int]) -> torch.Size:
    """The broadcast shape of several batches; raises ``ValueError`` if they do not fit."""
    batches = [shape for shape in shapes if len(shape)]
    if len(batches) < 2:
        return torch.Size(batches[0] if batches else ())
    try:
        return torch.Size(torch.broadcast_shapes(*batches))
    except RuntimeError as error:
        got = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected batches that fit each other, got {got}") from error


def per_sample(name: str, values: Tensor, batch: Sequence[int]) -> Tensor:
    """Vectors ``(*own, n)``, one for every sample: ``(*batch, n)``.

    Raises:
        ValueError: If ``own`` does not broadcast to the batch.
    """
    batch_shape = values.shape[:-1]
    wanted = f"a batch whose last axes are {tuple(batch_shape)}"
    expect(broadcast(name, batch_shape, batch) == tuple(batch), name, wanted, tuple(batch))
    return values.expand(*batch, values.shape[-1])


class Selectable(nn.Module):
    """A module that may have values for single samples, or parts that do.

    Example:
        >>> import torch
        >>> from scoresde.conditioning import Observation
        >>> known = Observation(torch.tensor([True]), torch.tensor([[1.0], [2.0], [3.0]]))
        >>> known.batch_shape, known.select(torch.tensor([2, 0]), (3,)).values.tolist()
        (torch.Size([3]), [[3.0], [1.0]])
    """

    @property
    def batch_shape(self) -> torch.Size:
        """The batch of values for single samples, empty without any.

        Samples have it as their last batch axes.
        """
        return broadcast("batch_shape", *(part.batch_shape for part in _parts(self)))

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """A view for some samples only, for solvers that go on without the others.

        Modules with values for samples override it, and ``batch_shape``; others ask their parts.

        Args:
            rows: Their places in the flattened batch, ``(k,)``; a sample may come twice.
            batch: The batch so far.

        Returns:
            For states ``(k, n)``; itself, if no part has values for single samples.
        """
        return select(self, rows, batch)


def _parts(module: nn.Module) -> Iterator[Selectable]:
    """The nearest selectable parts, which ask theirs."""
    for child in module.children():
        if isinstance(child, Selectable):
            yield child
        else:
            yield from _parts(child)


def select(module: M, rows: Tensor, batch: Sequence[int]) -> M:
    """A view of a module whose parts are for some samples only.

    Args:
        module: Returned itself, if none of its parts has values for single samples.
        rows: Places in the flattened batch, ``(k,)``; a sample may come twice.
        batch: Shape of the batch.
    """
    inner: dict[str, nn.Module] = {}
    for name, part in module._modules.items():
        if part is None:
            continue
        selectable = part if isinstance(part, Selectable) else None
        new = select(part, rows, batch) if selectable is None else selectable.select(rows, batch)
        if new is not part:
            inner[name] = new
    return shallow_copy(module, **inner) if inner else module
