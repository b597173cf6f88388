"""Conversion of numbers in files to tensors: nothing is lost or guessed in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import choice, expect
from scoresde.internals.messages import join_names, warn

Array = np.ndarray[Any, np.dtype[Any]]

FLOATS = {"float32": torch.float32, "float64": torch.float64}
DEFAULT_BINS = {"bool": 2, "uint8": 256}

SAMPLE = 4096
"""Events that are looked at before all are converted: more would be read twice from a disk."""

RUN = 128
"""How many of them follow each other: a disk is asked for few places."""

MERGED = 0.25
"""Largest share of a column's different values that may become equal. Of 4,096 values of a normal
distribution float32 merges so many where the mean is about 6,000 deviations from zero: rounding is
below a thousandth of a deviation then."""


def conversion(
    name: str,
    arrays: Sequence[Array],
    bins: int | None = None,
    dtype: str | None = None,
    continuous: bool = False,
    columns: Sequence[str] | None = None,
) -> tuple[Callable[[Array], Tensor], int | None]:
    """A function from arrays ``(N, *event_shape)`` of one dtype to tensors, and their bins.

    Args:
        name: Where they come from, for messages.
        arrays: One after the other; `SAMPLE` of their events are checked.
        bins: Number of bins of whole numbers; ``None`` for ``uint8`` (256), booleans (2) and
            real numbers.
        dtype: ``"float32"`` or ``"float64"``, for real numbers; by default torch's default dtype,
            if that tells the values of every column apart.
        continuous: Whether whole numbers are meant as real ones.
        columns: Names of the components, for messages.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If options contradict each other or the numbers.

    Warns:
        UserWarning: If components that hold whole numbers alone are read as real ones.
    """
    source = arrays[0].dtype
    choice("continuous", continuous, False, True)
    choice("dtype", dtype, None, *FLOATS)
    if source.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got an array of {source}")
    expected = "None for what continuous=True reads as real numbers"
    expect(bins is None or not continuous, "bins", expected, bins)
    if source.kind != "f" and not continuous:
        bins = DEFAULT_BINS.get(str(source)) if bins is None else bins
        expected = f"the number of bins of {source} data, or continuous=True for real numbers"
        expect(bins is not None, "bins", expected, None)
    if bins is not None:
        expect(dtype is None, "dtype", f"None for data of {bins} bins", dtype)
        return lambda array: _whole(name, array, bins), bins
    sample = _sample(arrays)
    if not continuous:
        _warn_of_whole(name, sample, columns)
    target = torch.get_default_dtype() if dtype is None else FLOATS[dtype]
    if dtype is None and target != torch.float64:
        _expect_apart(name, sample, target, columns)
    return lambda array: _narrowed(name, _real(name, array), target), None


def _sample(arrays: Sequence[Array]) -> Array:
    """Some events, ``(k, n)``, in runs that are spread evenly: few places of a disk are visited."""
    count, size = sum(map(len, arrays)), max(1, arrays[0][:1].size)
    share = max(2, min(SAMPLE, 2**20 // size)) / count  # 8 MiB in float64
    runs = []
    for array in arrays:
        rows = min(len(array), math.ceil(share * len(array)))
        length = rows if rows == len(array) else min(rows, RUN)
        starts = np.linspace(0, len(array) - length, max(1, rows // length)).astype(int)
        runs += [array[start : start + length] for start in starts]
    return np.concatenate(runs).reshape(-1, size)


def _whole(name: str, array: Array, bins: int) -> Tensor:
    """Whole numbers as uint8 or int64."""
    if array.dtype.kind == "f":
        fractions = array[~(array == np.rint(array))]
        expect(fractions.size == 0, name, f"whole numbers of {bins} bins", fractions[:1])
    small = array.dtype.kind in "bu" and array.dtype.itemsize == 1
    return torch.from_numpy(array.astype("u1" if small else "i8", copy=False))


def _real(name: str, array: Array) -> Tensor:
    """Real numbers as float32 or float64, whichever holds them."""
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    wide = array.astype("f4" if narrow else "f8", copy=False)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        expect(bool((np.abs(wide) < 2**53).all()), name, "whole numbers below 2**53", "larger ones")
    return torch.from_numpy(wide)


def _narrowed(name: str, wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in a narrower type; raises ``ValueError`` where that has infinity for one."""
    narrow = wide.to(dtype)
    representable = bool((narrow.isfinite() | ~wide.isfinite()).all())
    expected = f"numbers that {str(dtype).removeprefix('torch.')} holds (dtype='float64' may)"
    expect(representable, name, expected, f"{float(wide[wide.isfinite()].abs().max()):.2g}")
    return narrow


def _warn_of_whole(name: str, sample: Array, columns: Sequence[str] | None) -> None:
    missing = np.isnan(sample) if sample.dtype.kind == "f" else np.zeros(sample.shape, bool)
    values = np.where(missing, 0, sample).astype("f8")
    varies = np.where(missing, -np.inf, sample).max(0) > np.where(missing, np.inf, sample).min(0)
    # every float of this size is whole
    all_whole = varies & ((values == np.rint(values)) & (np.abs(values) < 2**53)).all(0)
    if all_whole.any():
        warn(
            f"{name}, {_labels(all_whole, columns)}: whole numbers are read as real ones, whose"
            " density has no bound; bins= reads them as integers, continuous=True says that this is"
            " meant"
        )


def _expect_apart(
    name: str, sample: Array, dtype: torch.dtype, columns: Sequence[str] | None
) -> None:
    """Raises ValueError if a narrower type merges values of a column."""
    if sample.dtype.itemsize <= 4 and sample.dtype.kind == "f":
        return
    wide = sample.astype("f8")
    narrow = torch.from_numpy(wide).to(dtype).double().numpy()
    # 46 bits: values that differ by rounding errors of float64 are one
    before, after = (_different((v.view("i8") + 2**6) >> 7) for v in (wide, narrow))
    lost = before - after > MERGED * before
    if lost.any():
        first = int(lost.argmax())
        remedy = "dtype='float64' keeps them; so does subtracting what they have in common"
        location = f"{name}, {_labels(np.arange(len(lost)) == first, columns)}"
        expected = f"values that {str(dtype).removeprefix('torch.')} tells apart"
        expect(False, location, expected, f"{before[first]} that become {after[first]} ({remedy})")


def _different(keys: Array) -> Array:
    """Number of different values of every column."""
    ordered = np.sort(keys, axis=0)
    count: Array = 1 + (ordered[1:] != ordered[:-1]).sum(0)
    return count


def _labels(which: Array, columns: Sequence[str] | None) -> str:
    """Components by name, or by number from 0."""
    indices: list[int] = which.nonzero()[0].tolist()
    if columns is None and len(indices) == len(which) > 1:
        return f"all {len(which)} components"
    names = [str(i) if columns is None else repr(columns[i]) for i in indices]
    noun = "component" if columns is None else "column"
    return f"{noun}{'s' * (len(names) > 1)} {join_names(names)}"
