"""Files of samples, as the data were: integers as integers, tables under their header."""

from __future__ import annotations

import csv
import io
import itertools
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoresde.app import plots
from scoresde.checks import expect
from scoresde.data import quantize
from scoresde.internals.atomic import atomic_write

WRITTEN = ".npy, .npz, .csv, .png (one picture of all), or a folder of PNG files, which ends in /"
"""What `Export.writer` knows."""

_ROW = 16
"""Images in a row, at most, of a picture with one for each class."""

Write = Callable[[Tensor], None]
"""Writes samples ``(N, *event_shape)``, whole or not at all."""


def is_image(shape: Sequence[int]) -> bool:
    """Whether events are grey or colour images."""
    return len(shape) == 3 and shape[0] in (1, 3)


@attrs.frozen(kw_only=True)
class Export:
    """Writes samples of a model in the format of its data.

    Where data were integers, samples are the integers in whose bins they lie
    (`scoresde.data.quantize`).

    Args:
        event_shape: Of the samples.
        bins: Of integer data; None for real numbers.
        columns: Names of a table's columns.
        delimiter: What stands between two cells, as of `scoresde.data.read_csv`.
        decimal: What begins the fraction of a number, as there.
        header: Whether the first line names the columns; by default, if they have names and not
            their places alone.
        encoding: Of the text; UTF-8 by default.
        figure: Of samples, for pictures; a grid of them by default.
        classes: Of each sample by name, if there are several: a folder has one in it for each.
        extra_columns: Columns of a table beside those of the events, by name, a cell for each
            sample.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from scoresde.app.export import Export
        >>> path = Path(tempfile.mkdtemp(), "x.csv")
        >>> write = Export(event_shape=(2,), columns=("a", "b")).writer(path)
        >>> write(torch.tensor([[0.5, 2.0]]))
        >>> path.read_text().split()
        ['a,b', '0.5,2.0']
    """

    event_shape: tuple[int, ...] = attrs.field(converter=tuple)
    bins: int | None = None
    columns: Sequence[str] | None = None
    delimiter: str | None = None
    decimal: str = "."
    header: bool | None = None
    encoding: str | None = None
    figure: Callable[[Tensor], Any] | None = None
    classes: Sequence[str] | None = None
    extra_columns: Mapping[str, Sequence[str]] = attrs.field(factory=dict)

    def writer(self, path: str | os.PathLike[str], name: str = "path") -> Write:
        """A function that writes samples to a path, in the format that its suffix says.

            x.npy     an array, integers in uint8, or in uint16 if there are more bins
            x.npz     the same as ``x``, beside ``label`` or whatever else is of each sample
            x.csv     a table, of events that are vectors
            x.png     one picture with all of them, of images
            folder/   a PNG file for each, of images that were integers: black is the lowest
                      bin and white the highest, in 8 bits, or 16 of grey ones with more bins

        Args:
            path: Where. A folder ends in a slash or exists, and is new or empty.
            name: Of the argument, for messages.

        Raises:
            OSError: If nothing can be written there.
            ValueError: If samples like these are not written so; the message says how they are.
            ImportError: If a picture is asked for and matplotlib is not installed.
        """
        text, target = os.fspath(path), Path(path)
        expect(text != "", name, WRITTEN, "an empty path")
        suffix = target.suffix.lower()
        if target.is_dir() or text.endswith(("/", os.sep)):
            self._check_folder(target, name)
            return partial(self._folder, target)
        kinds = {".npy": self._npy, ".npz": self._npz, ".csv": self._csv, ".png": self._picture}
        expect(suffix in kinds, name, WRITTEN, text)
        if suffix == ".csv":
            vector = len(self.event_shape) == 1
            expect(vector, name, "events that are vectors for .csv (.npy takes all)", self._kind)
        if suffix == ".png":
            self.expect_images(name)
            plots.image_grid({"": torch.zeros(1, *self.event_shape)})  # fails now, if it does
        _expect_room(target)
        return partial(kinds[suffix], target)

    def expect_images(self, name: str) -> None:
        """Raises ``ValueError`` with an argument's name unless events are images."""
        expected = "events that are images, (1 | 3, height, width)"
        expect(is_image(self.event_shape), name, expected, self.event_shape)

    @property
    def _kind(self) -> str:
        numbers = "real numbers" if self.bins is None else f"integers of {self.bins} bins"
        return f"{self.event_shape} of {numbers}"

    def _check_folder(self, target: Path, name: str) -> None:
        self.expect_images(name)
        deep = 256 if self.event_shape[0] == 3 else 2**16
        expected = f"images of at most {deep} bins for PNG files (.npy takes all)"
        expect(self.bins is not None and self.bins <= deep, name, expected, self._kind)
        for part in set(self.classes or ()):
            wanted = "classes whose names are those of folders"
            expect(Path(part).name == part and part[0] != ".", name, wanted, repr(part))
        if target.exists():
            full = not target.is_dir() or any(target.iterdir())
            if full:
                raise FileExistsError(f"{name}: expected a new or an empty folder, got {target}")
        _expect_room(target)

    def _values(self, x: Tensor) -> Any:
        """Samples as an array of what the data were."""
        if self.bins is None:
            return x.detach().cpu().numpy()
        small = self.bins <= 256
        return quantize(x, self.bins).cpu().numpy().astype(np.uint8 if small else np.uint16)

    def _npy(self, target: Path, x: Tensor) -> None:
        with atomic_write(target) as file:
            np.save(file, self._values(x))

    def _npz(self, target: Path, x: Tensor) -> None:
        columns: dict[str, Any] = {k: np.asarray(v) for k, v in self.extra_columns.items()}
        with atomic_write(target) as file:
            np.savez(file, x=self._values(x), **columns)

    def _csv(self, target: Path, x: Tensor) -> None:
        with atomic_write(target) as file:
            text = io.TextIOWrapper(file, encoding=self.encoding or "utf-8", newline="")
            rows = csv.writer(text, delimiter=self.delimiter or ",", lineterminator="\n")
            names = [*(self.columns or ()), *self.extra_columns]
            numbers = [str(i + 1) for i in range(len(names))]
            if list(names) != numbers if self.header is None else self.header:
                rows.writerow(names)
            # the shortest numbers that are read as the same ones
            cells = self._values(x).astype(str)
            columns = self.extra_columns.values()
            extra_cells = zip(*columns, strict=True) if columns else itertools.repeat(())
            for row, more in zip(cells, extra_cells, strict=False):
                rows.writerow([*(cell.replace(".", self.decimal) for cell in row), *more])
            text.detach()

    def _picture(self, target: Path, x: Tensor) -> None:
        draw = self.figure or self._grid
        plots.save(draw(x), target)

    def _grid(self, x: Tensor) -> Any:
        counts = Counter(self.classes or ())
        # a row for each class, if all have as many and those fit
        alike = len({*counts.values()}) == 1 and max(counts.values()) <= _ROW
        columns, names = (max(counts.values()), [*counts]) if alike else (8, [])
        return plots.image_grid({f"{len(x)} samples": x}, columns, names)

    def _folder(self, target: Path, x: Tensor) -> None:
        pixels = map(self._pixels, x)  # one after the other: many are large
        digits = len(str(len(x) - 1))
        # beside its place, which it takes as a whole
        target = target.resolve()
        draft = target.with_name(f".{target.name[:48]}.{secrets.token_hex(8)}.tmp")
        draft.mkdir()
        try:
            for i, image in enumerate(pixels):
                grey = image.shape[-1] == 1
                inner = draft / self.classes[i] if self.classes else draft
                inner.mkdir(exist_ok=True)
                Image.fromarray(image[..., 0] if grey else image).save(inner / f"{i:0{digits}}.png")
            if target.exists():
                target.rmdir()
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _pixels(self, image: Tensor) -> Any:
        """Shades ``(height, width, channels)``, the lowest bin black and the highest white."""
        assert self.bins is not None
        white = 255 if self.bins <= 256 else 2**16 - 1
        shades = np.rint(self._values(image).astype(np.float64) * white / (self.bins - 1))
        return np.moveaxis(shades.astype(np.uint8 if white == 255 else np.uint16), 0, -1)


def _expect_room(target: Path) -> None:
    """Raises OSError where nothing could be written, before there is something to write."""
    parent = target.resolve().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{target}: no such folder: {parent}")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:  # which names a file that nobody has asked for
        raise OSError(error.errno, error.strerror, str(target)) from error
