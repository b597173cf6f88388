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
    """One batch of many samples, with what is known of its samples."""

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
    """The shape of samples, checked to end with the batch of what is known of them."""
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
    """An empty tensor with the dtype and on the device that samples are to have."""
    if dtype is not None:
        instance("dtype", dtype, torch.dtype)
        expect(dtype.is_floating_point, "dtype", "a floating-point one", dtype)
    # constants are in float64 whatever the network is: only parameters say
    if dtype is None:
        first = next(estimator.parameters(), None)
        dtype = torch.get_default_dtype() if first is None else first.dtype
    return torch.empty(0, dtype=dtype, device=device_of(estimator))
