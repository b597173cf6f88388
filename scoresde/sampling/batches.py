"""Samples a batch at a time: how many there are, which each batch is of, and where they go."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect, instance, sizes
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.internals.atomic import atomic_write
from scoresde.internals.messages import warn
from scoresde.noise import Noise
from scoresde.precision import device_of
from scoresde.selection import broadcast, samples


class Batch(NamedTuple):
    """One batch of many samples, with what is known of its samples.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.sampling.batches import Batch, batches_of
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> parts: list[Batch] = list(batches_of(model, (5, 2), 4, torch.arange(10), Noise()))
        >>> [(part.size, part.condition.tolist()) for part in parts]
        [(4, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (2, [8, 9])]
    """

    estimator: ScoreEstimator
    size: int
    condition: Any
    noise: Noise


def batches_of(
    estimator: ScoreEstimator, shape: Sequence[int], size: int, condition: Any, noise: Noise
) -> Iterator[Batch]:
    """The samples of a shape, flattened, at most so many at a time.

    Args:
        estimator: What it knows of single samples goes with them.
        shape: Of all samples.
        size: Of a batch.
        condition: As the estimator, see `scoresde.selection.samples`.
        noise: One generator goes from batch to batch; of one per sample each has its own.

    Raises:
        ValueError: If there are generators, and not one per sample.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.sampling.batches import batches_of
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> [part.size for part in batches_of(model, (5, 2), 4, None, Noise())]
        [4, 4, 2]
    """
    count = math.prod(shape)
    noise.check(count)
    for rows in torch.arange(count, device="cpu").split(size):
        part = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0)
        model = estimator.select(rows, shape)
        yield Batch(model, len(rows), samples(condition, rows, shape), noise.part(part))


def collected(
    parts: Iterator[Tensor],
    shape: Sequence[int],
    like: Tensor,
    output: str | os.PathLike[str] | None,
) -> Tensor:
    """Events that come batch by batch, as one tensor: in memory, or mapped from a file.

    Args:
        parts: Events, ``(batch, *event_shape)``.
        shape: Of all of them, ``(*sample_shape, *event_shape)``.
        like: Has their dtype and device.
        output: A ``.npy`` file, which is there once all have come; none if None.

    Returns:
        In that shape. What is written to the tensor of a file does not reach the file.

    Raises:
        OSError: If the file cannot be written.
        TypeError: If such a file has no numbers like these, as bfloat16.
        ValueError: If its name does not end in ``.npy``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from scoresde.sampling.batches import collected
        >>> path, parts = Path(tempfile.mkdtemp(), "x.npy"), [torch.zeros(2, 2), torch.ones(1, 2)]
        >>> collected(iter(parts), (3, 1, 2), torch.empty(0), path).flatten().tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """
    if output is None:
        events, place = like.new_empty(tuple(shape)), 0
        flat = events.view(-1)
        for part in parts:
            flat[place : place + part.numel()] = part.reshape(-1)
            place += part.numel()
        return events
    path, kind = Path(output), _numpy_dtype(like.dtype)
    expect(path.suffix == ".npy", "output", "a name that ends in .npy", str(path))
    with atomic_write(path) as file:
        header = {"descr": kind, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.cpu().contiguous().numpy().data)
    if not math.prod(shape):  # nothing can be mapped
        return torch.empty(tuple(shape), dtype=like.dtype, device="cpu")
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _numpy_dtype(dtype: torch.dtype) -> str:
    """The dtype's name in the header of a file."""
    try:
        return str(torch.empty(0, dtype=dtype, device="cpu").numpy().dtype.str)
    except TypeError as error:
        wanted = "one that .npy files have, such as torch.float32, for an output"
        raise TypeError(f"dtype: expected {wanted}, got {dtype}") from error


def sample_shape_of(estimator: ScoreEstimator, sample_shape: Sequence[int]) -> torch.Size:
    """The shape of samples, checked to end with the batch of what is known of them.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Joint, condition
        >>> from scoresde.sampling.batches import sample_shape_of
        >>> sde = DiagonalSDE(VP(), Joint(y=(1,), x=(1,)))
        >>> model = Gaussian(sde, torch.zeros(2), torch.eye(2))
        >>> sample_shape_of(condition(model, y=torch.zeros(4, 1)), (3, 4))
        torch.Size([3, 4])
    """
    expect_estimator(estimator)
    event, batch = estimator.sde.basis.event_shape, estimator.batch_shape
    shape = _checked_shape(sample_shape, event, len(batch))
    wanted = f"a shape that ends with {tuple(batch)}, the batch of what is known"
    fits = broadcast("sample_shape", shape, batch) == shape
    expect(fits, "sample_shape", wanted, tuple(shape))
    return shape


def _checked_shape(value: Iterable[int], event_shape: torch.Size, known: int) -> torch.Size:
    """A shape of samples; warns if it seems to be that of the result, event and all.

    What is known of samples has axes of its own, which are last, and may be of any size.
    """
    shape, axes = sizes("sample_shape", value), len(event_shape)
    several = event_shape.numel() > 1 and len(shape) > (axes == 1)  # (n,) may be n samples
    several = several and not known
    if several and shape[-axes:] == event_shape:
        few = tuple(shape[:-axes])
        warn(
            f"sample_shape: {tuple(shape)} are {shape.numel()} samples of shape "
            f"{tuple(event_shape)} each; for {math.prod(few)} of them, give {few}"
        )
    return shape


def samples_like(estimator: ScoreEstimator, dtype: torch.dtype | None) -> Tensor:
    """An empty tensor with the dtype and on the device that samples are to have.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.sampling.batches import samples_like
        >>> network = ResidualMLP((2,), 8, 1).double()
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), network)
        >>> samples_like(model, None).dtype, samples_like(model, torch.float32).dtype
        (torch.float64, torch.float32)
    """
    if dtype is not None:
        instance("dtype", dtype, torch.dtype)
        expect(dtype.is_floating_point, "dtype", "a floating-point one", dtype)
    # constants are in float64 whatever the network is: only parameters say
    if dtype is None:
        first = next(estimator.parameters(), None)
        dtype = torch.get_default_dtype() if first is None else first.dtype
    return torch.empty(0, dtype=dtype, device=device_of(estimator))
