"""Data sets: a user's arrays, tables and images, or a built-in one, checked on the way in.

A data set is ``(N, *event_shape)``: floating-point numbers, or integers of ``0..levels-1``. It is
in memory, or stays on the disk and is read as it is needed (``lazy=True``, `Stored`).
Integers become densities by *uniform dequantisation*: ``y = v + u`` with ``u`` uniform on
``[0, 1)``, scaled to ``x = 2 y / levels - 1`` in ``[-1, 1]``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from PIL import Image, ImageOps
from torch import Tensor

from scoresde.checks import expect, finite, floating, nearest
from scoresde.noise import Generators, Noise
from scoresde.stored import Array, Stored, joined, native
from scoresde.table import table


def _check_levels(levels: int) -> None:
    expect(2 <= levels <= 2**16, "levels", f"2 to {2**16}", levels)


@frozen(eq=False)
class Dataset:
    """Checked data.

    Args:
        name: Where they come from.
        values: ``(N, *event_shape)``: all of them, or `Stored` ones, which are checked as they
            are read.
        levels: Number of levels of integer values; ``None`` for floating-point ones.

    Raises:
        TypeError: If ``levels`` is ``None`` and the values are not floating-point, or the reverse.
        ValueError: If there are no events, or values are not finite or not in ``0..levels-1``.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset
        >>> data = Dataset("mine", torch.tensor([[0, 3], [1, 2]]), levels=4)
        >>> len(data), data.read(slice(1))
        (2, tensor([[0, 3]]))
    """

    name: str
    values: Tensor | Stored = field(repr=lambda values: f"{tuple(values.shape)} of {values.dtype}")
    levels: int | None = None

    def __attrs_post_init__(self) -> None:
        shape = tuple(self.values.shape)
        expect(
            len(shape) > 1 and min(shape) > 0, self.name, "a shape (N, *event), no size 0", shape
        )
        if self.levels is not None:
            _check_levels(self.levels)
        self._check(self.values[:1] if self.stored else self.values[:])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def stored(self) -> bool:
        """Whether events are read as they are needed."""
        return isinstance(self.values, Stored)

    def read(self, rows: Tensor | slice) -> Tensor:
        """The events at some places ``(k,)``, or in a slice; `Stored` ones are checked now."""
        values = self.values[rows]
        if self.stored:
            self._check(values)
        return values

    def part(self, name: str, rows: Tensor) -> Dataset:
        """A data set of some events only, read as late as these."""
        values = self.values
        only = values.only(rows) if isinstance(values, Stored) else values[rows.to(values.device)]
        return Dataset(f"{self.name}/{name}", only, self.levels)

    def _check(self, values: Tensor) -> None:
        if self.levels is None:
            floating(self.name, values)
            finite(self.name, values)
            return
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{self.name}: expected integers, got {values.dtype}")
        low, high = int(values.min()), int(values.max())
        expected = f"integers from 0 to {self.levels - 1}"
        expect(low >= 0 and high < self.levels, self.name, expected, f"{low} to {high}")


def load(source: str | os.PathLike[str], **options: Any) -> Dataset:
    """Reads data: a built-in set by name, a ``.npy``, ``.npz`` or ``.csv`` file, or a folder.

    Args:
        source: ``"digits"``, ``"patches"``, or a path: of a file, of a folder with ``.npy`` files,
            or of one with images.
        options: Those of `digits`, `patches`, `read_array`, `read_csv` or `read_images`.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.
        TypeError: If an option does not apply, or the data are not real numbers.
        ValueError: If the data cannot be read or used; the message says why.

    Example:
        >>> from scoresde.data import load
        >>> load("digits")
        Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, levels=17)
    """
    return reader(source)(**options)


def reader(source: str | os.PathLike[str]) -> Callable[..., Dataset]:
    """What `load` calls with options, and with nothing else.

    Raises:
        FileNotFoundError: If ``source`` is neither a built-in set nor a path.

    Example:
        >>> from scoresde.data import reader
        >>> reader("digits")().values.shape
        torch.Size([1797, 1, 8, 8])
    """
    if isinstance(source, str) and source in BUILT_IN:
        return BUILT_IN[source]
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir() and not any(path.glob("*.npy")):
        return partial(read_images, path)
    if suffix == ".csv":
        return partial(read_csv, path)
    if path.exists() or suffix in (".npy", ".npz"):
        return partial(read_array, path)
    hint = nearest(str(source), BUILT_IN)
    raise FileNotFoundError(f"{source}: no such file or folder, nor a built-in data set{hint}")


def read_array(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    levels: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Reads an array ``(N, *event_shape)``.

    Args:
        path: A ``.npy`` or ``.npz`` file, or a folder of ``.npy`` files that follow each other
            in the order of their names. Arrays of Python objects are refused: reading them can
            run code.
        key: Which array of an ``.npz`` file; may be omitted if it holds one.
        levels: Number of levels of integer data; known for ``uint8`` (256) and booleans (2).
        lazy: Whether to leave the numbers on the disk, memory-mapped, and read those that are
            asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the data are not real numbers.
        ValueError: If a file cannot be read, or the data are not as `Dataset` expects.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from scoresde.data import read_array
        >>> path = Path(tempfile.mkdtemp(), "x.npy")
        >>> np.save(path, np.zeros((10, 2, 3), "f4"))
        >>> read_array(path).values.shape
        torch.Size([10, 2, 3])
    """
    path = Path(path)
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    expect(len(paths) > 0, str(path), "a folder with .npy files in it", "none")
    mapped = lazy or path.is_dir()
    arrays = [_array(one, key, mapped) for one in paths]
    kind = arrays[0].dtype
    if kind.kind not in "biuf":
        raise TypeError(f"{path}: expected real numbers, got an array of {kind}")
    if kind.kind == "f":
        expect(levels is None, "levels", f"None for {kind} data", levels)
    elif levels is None:
        levels = {"bool": 2, "uint8": 256}.get(str(kind))
        expect(levels is not None, "levels", f"the number of levels of {kind} data", None)
    if not mapped:
        return Dataset(path.name, native(arrays[0]), levels)
    for one, array in zip(paths, arrays, strict=True):
        whole = array.ndim > 1 and array.size > 0
        expect(whole, str(one), "a shape (N, *event), no size 0", array.shape)
    stored = joined(arrays)
    return Dataset(path.name, stored if lazy else stored[:], levels)


def _array(path: Path, key: str | None, mapped: bool) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                expect(not mapped, "lazy", "False for an .npz file", mapped)
                if key is None and len(content.files) == 1:
                    key = content.files[0]
                expect(key in content.files, "key", f"one of {', '.join(content.files)}", key)
                return np.asarray(content[str(key)])
        expect(key is None, "key", "None for a single array", key)
        return np.asanyarray(content)
    # Garbled files fail in numpy, zipfile or zlib, each with errors of its own.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as .npy or .npz: {error}") from error


def read_csv(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, delimiter: str = ","
) -> Dataset:
    r"""Reads a table of numbers: every line is an event ``(columns,)``.

    Args:
        path: A text file in UTF-8. A first line without a single number names the columns;
            without one, their names are ``"1"``, ``"2"``, and so on.
        columns: Names of those to read, in this order; all if None.
        delimiter: What stands between two numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no events, a column is unknown, a line is longer or shorter than
            the first, or something is not a finite number; the message names line and column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.data import read_csv
        >>> path = Path(tempfile.mkdtemp(), "x.csv")
        >>> _ = path.write_text("name,length,weight\nrose,1.5,20\nlily,2.5,30\n")
        >>> read_csv(path, columns=["weight", "length"]).values
        tensor([[20.0000,  1.5000],
                [30.0000,  2.5000]])
    """
    path = Path(path)
    return Dataset(path.name, native(table(path, columns, delimiter)))


def read_images(
    folder: str | os.PathLike[str],
    *,
    mode: str = "RGB",
    size: int | None = None,
    lazy: bool = False,
) -> Dataset:
    """Reads the images of a folder, not of its subfolders, sorted by name.

    Args:
        folder: Other files in it are ignored.
        mode: ``"RGB"``, or ``"L"`` for grey.
        size: If given, images are cropped to their central square and resized to it.
        lazy: Whether to read an image every time it is asked for, instead of all of them now.

    Returns:
        ``(N, channels, height, width)``, 256 levels.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no image, or one is unreadable, of another size than the first, of
            more than 8 bits per channel, or of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from scoresde.data import read_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (20, 30)).save(folder / "black.png")
        >>> read_images(folder, mode="L", size=8).values.shape
        torch.Size([1, 1, 8, 8])
    """
    expect(mode in ("L", "RGB"), "mode", "'L' or 'RGB'", repr(mode))
    expect(size is None or size > 0, "size", "a positive number of pixels", size)
    folder = Path(folder)
    formats, suffixes = _formats(), Image.registered_extensions()
    paths = sorted(
        path
        for path in folder.iterdir()
        if suffixes.get(path.suffix.lower()) in formats and not path.name.startswith(".")
    )
    expected = "a folder with images in it (its subfolders are not read)"
    expect(len(paths) > 0, str(folder), expected, "none")
    wanted = _image(paths[0], mode, size).shape

    def read(places: Tensor) -> Tensor:
        images = []
        for path in (paths[i] for i in places):
            images.append(_image(path, mode, size))
            expected = f"the size of {paths[0].name} {wanted}, or pass size="
            expect(images[-1].shape == wanted, str(path), expected, images[-1].shape)
        return torch.from_numpy(np.stack(images))

    stored = Stored(len(paths), read)
    return Dataset(folder.name, stored if lazy else stored[:], levels=256)


def _formats() -> list[str]:
    """Formats of images that are read: PostScript is a program, and Ghostscript would run it."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _image(path: Path, mode: str, size: int | None) -> Array:
    """``(channels, height, width)``."""
    try:
        with Image.open(path, formats=_formats()) as file:
            # Pillow would clip these to 8 bits without a word.
            expect(file.mode[0] not in "IF", "image", "8 bits per channel", file.mode)
            # A few bytes may claim to be gigabytes: Pillow warns, and refuses twice as many only.
            pixels, most = file.width * file.height, Image.MAX_IMAGE_PIXELS
            expected = f"at most {most} pixels, which is PIL.Image.MAX_IMAGE_PIXELS"
            expect(most is None or pixels <= most, "image", expected, pixels)
            image = ImageOps.exif_transpose(file).convert(mode)
    # Decoders of damaged files raise errors of every kind.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    image = image if size is None else ImageOps.fit(image, (size, size))
    values: Array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return values


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        message = "built-in data need scikit-learn: pip install 'scoresde[data]'"
        raise ImportError(message) from error
    return datasets


def digits() -> Dataset:
    """Handwritten digits of scikit-learn: ``(1797, 1, 8, 8)``, 17 levels.

    Example:
        >>> from scoresde.data import digits
        >>> digits().values.shape
        torch.Size([1797, 1, 8, 8])
    """
    images = _sklearn_datasets().load_digits().images
    return Dataset("digits", torch.from_numpy(images).to(torch.uint8)[:, None], levels=17)


def patches(size: int = 32, *, stride: int | None = None, seed: int = 0) -> Dataset:
    """Grey patches of the two photographs of scikit-learn, in random order.

    Args:
        size: Width and height of a patch.
        stride: Distance between neighbours. By default ``size``: patches are disjoint, so that a
            `split` shares no pixels. Smaller strides give more patches, which overlap.
        seed: Seed of the order, and of where the grid of patches starts.

    Returns:
        ``(N, 1, size, size)``, 256 levels.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If a patch is larger than the smaller photograph, or ``stride`` not positive.

    Example:
        >>> from scoresde.data import patches
        >>> patches(size=64).values.shape
        torch.Size([108, 1, 64, 64])
    """
    photographs = _sklearn_datasets().load_sample_images().images
    images = [np.asarray(Image.fromarray(rgb).convert("L")) for rgb in photographs]
    smallest = min(min(image.shape) for image in images)
    expect(0 < size <= smallest, "size", f"1 to {smallest} pixels", size)
    stride = size if stride is None else stride
    expect(stride > 0, "stride", "a positive number of pixels", stride)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for image in images:
        room = torch.tensor(image.shape) - size + 1
        top, left = (torch.rand(2, generator=generator) * room.clamp(max=stride)).int().tolist()
        grid = torch.tensor(image)[top:, left:].unfold(0, size, stride).unfold(1, size, stride)
        found.append(grid.reshape(-1, 1, size, size))
    values = torch.cat(found)
    return Dataset("patches", values[torch.randperm(len(values), generator=generator)], levels=256)


BUILT_IN: dict[str, Callable[..., Dataset]] = {"digits": digits, "patches": patches}


def split(
    dataset: Dataset, fraction: float, seed: int | torch.Generator = 0
) -> tuple[Dataset, Dataset]:
    """Splits a data set at random: ``(train, held_out)``.

    Args:
        dataset: At least two events.
        fraction: Share of the events to train on, rounded so that neither part is empty.
        seed: The same seed gives the same split.

    Raises:
        ValueError: If ``fraction`` is not between 0 and 1, or there is only one event.

    Example:
        >>> import torch
        >>> from scoresde.data import Dataset, split
        >>> train, held_out = split(Dataset("mine", torch.randn(10, 2)), 0.8)
        >>> len(train), len(held_out)
        (8, 2)
    """
    count = len(dataset)
    expect(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
    expect(count > 1, dataset.name, "two events or more to split", count)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    order = torch.randperm(count, generator=generator, device=generator.device)
    cut = min(max(round(fraction * count), 1), count - 1)
    return dataset.part("train", order[:cut]), dataset.part("held_out", order[cut:])


def dequantize(values: Tensor, levels: int, generator: Generators = None) -> Tensor:
    """Spreads each level over its cell: ``x = 2 (v + u) / levels - 1``, ``u`` uniform on [0, 1).

    Source:
        Theis et al. 2016 (arXiv 1511.01844), section 3.1.

    Args:
        values: ``(*)``, integers of ``0..levels-1``.
        levels: Number of levels.
        generator: Source of ``u``.

    Returns:
        ``(*)`` in ``[-1, 1]``, of the default dtype, which `quantize` takes back exactly.

    Raises:
        ValueError: If ``levels`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import dequantize, quantize
        >>> levels = torch.tensor([0, 1, 255])
        >>> x = dequantize(levels, 256, torch.Generator().manual_seed(0))
        >>> quantize(x, 256)
        tensor([  0,   1, 255])
    """
    _check_levels(levels)
    u = Noise.of(generator).uniform(torch.empty(values.shape, device=values.device))
    # Rounding must not carry x over the edge of its cell: float32 cannot tell 255 + u from 256
    # if u is within 2^-17 of 1. Twice levels * eps bounds all roundings, those of `quantize` too.
    margin = 2 * levels * torch.finfo(u.dtype).eps
    return 2 * (values + u.clamp(margin, 1 - margin)) / levels - 1


def quantize(x: Tensor, levels: int) -> Tensor:
    """The levels in whose cells ``x`` lies: ``floor(levels (x + 1) / 2)``, clamped.

    Args:
        x: ``(*)``; what is outside ``[-1, 1]`` goes to the nearest level.
        levels: Number of levels.

    Returns:
        ``(*)``, int64 of ``0..levels-1``.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` has NaN entries, or ``levels`` is not in ``2..65536``.

    Example:
        >>> import torch
        >>> from scoresde.data import quantize
        >>> quantize(torch.tensor([-1.5, -1.0, -0.1, 0.0, 1.0]), levels=4)
        tensor([0, 0, 1, 2, 3])
    """
    _check_levels(levels)
    floating("x", x)
    expect(not bool(x.isnan().any()), "x", "numbers", "NaN")
    return ((x + 1) * levels / 2).floor().clamp(0, levels - 1).long()


def bits_per_dim(log_prob: Tensor, dim: int, levels: int) -> Tensor:
    """Bits per dimension of integer data, from the log-density of dequantised data.

    ``x = 2 y / levels - 1`` with ``y = v + u`` has ``p(y) = p(x) (2 / levels)^dim``, so
    ``-log2 p(y) / dim = -log p(x) / (dim ln 2) + log2(levels / 2)``. As ``P(v)`` is the mean of
    ``p(v + u)`` over ``u``, Jensen's inequality makes the expectation over ``u`` an upper bound
    of ``-log2 P(v) / dim`` (Theis et al. 2016, section 3.1).

    Args:
        log_prob: ``(*)``, natural log-density of ``x``, scaled as by `dequantize`.
        dim: Number of components of an event.
        levels: Number of levels.

    Returns:
        ``(*)``.

    Raises:
        ValueError: If ``dim`` is not positive or ``levels`` not in ``2..65536``.

    Example:
        The uniform density on ``[-1, 1]^3`` costs as much as storing the levels.

        >>> import math
        >>> import torch
        >>> from scoresde.data import bits_per_dim
        >>> bits_per_dim(torch.tensor(-3 * math.log(2)), dim=3, levels=256)
        tensor(8.)
    """
    _check_levels(levels)
    expect(dim > 0, "dim", "a positive number of components", dim)
    return -log_prob / (dim * math.log(2)) + math.log2(levels / 2)
