"""Image files in a folder, or in a zip file, which is not unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Protocol

from scoresde.checks import expect
from scoresde.data.folders import files
from scoresde.data.picture import FORMATS
from scoresde.internals import limits
from scoresde.internals.messages import join_names

SUFFIXES = {
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
}
"""Ends of names of images that are read."""

_OTHERS = {
    *(".avif", ".dds", ".dib", ".dng", ".eps", ".exr", ".fits", ".hdr", ".heic", ".heif", ".icns"),
    *(".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".pcx", ".pfm", ".psd", ".qoi", ".sgi", ".svg"),
    *(".tga", ".wmf", ".xbm", ".xpm"),
}
"""Ends of names of images that are not read."""

_RESOURCES = "__MACOSX"
"""A folder beside what was packed on a Mac, of no images."""

_PART = 2**20
"""Bytes that are unpacked at a time: no more than were claimed."""


class ImageFiles(Protocol):
    """Images that can be opened one by one.

    Attributes:
        name: Of the folder or file.
        paths: Of the images, relative to it.
    """

    name: str
    paths: Sequence[PurePath]

    @property
    def on_disk(self) -> int:
        """Bytes that all take on the disk."""

    def label(self, index: int) -> str:
        """Name of one of them, for messages."""

    def size_on_disk(self, index: int) -> int:
        """Bytes that one takes on the disk."""

    def opened(self, index: int) -> contextlib.AbstractContextManager[IO[bytes]]:
        """The content of one."""


def image_files(path: Path, subfolders: bool | None) -> ImageFiles:
    """The images of a folder or a zip file, sorted by name, those of subfolders behind others.

    If ``path`` is an image, it is the only one.

    Args:
        path: Of the folder or the file.
        subfolders: Whether to take those in subfolders; None if there may be none.

    Raises:
        OSError: If there is nothing.
        ValueError: If there is no image, or there are some that would be left out unsaid.
    """
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _Folder(path.parent, False, only=path.name)
    return _Folder(path, subfolders) if path.is_dir() else _Archive(path, subfolders)


class _Folder:
    paths: Sequence[PurePath]

    def __init__(self, folder: Path, subfolders: bool | None, only: str | None = None) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        every = files(folder) if subfolders is not False else folder.iterdir()
        paths = [path.relative_to(folder) for path in every if not path.is_dir()]
        paths = [path for path in paths if only in (None, path.name)]
        self.name, self._folder = folder.name, folder
        self.paths = _chosen(str(folder), paths, subfolders)

    @property
    def on_disk(self) -> int:
        return sum(map(self.size_on_disk, range(len(self.paths))))

    def label(self, index: int) -> str:
        return str(self._folder / self.paths[index])

    def size_on_disk(self, index: int) -> int:
        return limits.size_on_disk(self.label(index))

    def opened(self, index: int) -> contextlib.AbstractContextManager[IO[bytes]]:
        return limits.opened(self.label(index))


class _Archive:
    """Members are unpacked into memory, one at a time and as far as their sizes say."""

    paths: Sequence[PurePath]

    def __init__(self, path: Path, subfolders: bool | None) -> None:
        self.name, self._path, self._opened_by = path.stem, path, -1
        self._opening = threading.Lock()
        with limits.opened(path):  # a file, and no pipe
            pass
        entries = [entry for entry in self._zip().infolist() if not entry.is_dir()]
        members = {PurePosixPath(entry.filename): entry for entry in entries}
        different = len(members) == len(entries)
        expect(different, str(path), "images of different names", join_names(map(str, members)))
        folder = _common_folder([member for member in members if _is_image(member)])
        inner = {
            member.relative_to(folder): entry
            for member, entry in members.items()
            if member.is_relative_to(folder)
        }
        self.paths = _chosen(str(path), list(inner), subfolders)
        self._entries = [inner[PurePosixPath(member)] for member in self.paths]

    def _zip(self) -> zipfile.ZipFile:
        """The archive, open: every process has a place of its own in it."""
        with self._opening:  # once for all threads
            if self._opened_by != os.getpid():
                with self._readable():
                    self._archive, self._opened_by = zipfile.ZipFile(self._path), os.getpid()
        return self._archive

    @property
    def on_disk(self) -> int:
        return limits.size_on_disk(self._path)

    def label(self, index: int) -> str:
        return str(self._path / self._entries[index].filename)

    def size_on_disk(self, index: int) -> int:
        return min(self._entries[index].compress_size, self.on_disk)

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[IO[bytes]]:
        entry, label, content = self._entries[index], self.label(index), bytearray()
        expect(not entry.flag_bits & 1, label, "an image without a password", "an encrypted one")
        usual = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        expect(usual, label, "an image that is stored or deflated", entry.compress_type)
        limits.expect_memory(label, 2 * entry.file_size, self.size_on_disk(index))
        with self._readable(), self._zip().open(entry) as member:
            while part := member.read(min(_PART, entry.file_size - len(content))):
                content += part
            expect(len(content) == entry.file_size, label, f"{entry.file_size} bytes", len(content))
        yield io.BytesIO(content)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns errors of damaged archives, of zipfile or zlib, into one ``ValueError``."""
        try:
            yield
        except Exception as error:
            raise ValueError(f"{self._path}: cannot be read as a zip file: {error}") from error


def _is_image(path: PurePath) -> bool:
    return path.suffix.lower() in SUFFIXES and not _hidden(path)


def _hidden(path: PurePath) -> bool:
    return any(part.startswith(".") or part == _RESOURCES for part in path.parts)


def _common_folder(paths: Sequence[PurePath]) -> PurePath:
    """The folder that all are in: mostly a whole one was packed."""
    folders = [path.parent for path in paths]
    return PurePosixPath(os.path.commonpath(folders)) if folders else PurePosixPath()


def _chosen(label: str, paths: Sequence[PurePath], subfolders: bool | None) -> list[PurePath]:
    """Paths of images, sorted; raises ``ValueError`` if others would be ignored silently."""
    visible = [path for path in paths if not _hidden(path)]
    visible = [path for path in visible if len(path.parts) == 1 or subfolders is not False]
    others = [path.name for path in visible if path.suffix.lower() in _OTHERS]
    expect(not others, label, f"images of {', '.join(FORMATS)}", join_names(others))
    images = sorted(filter(_is_image, visible), key=_place)
    below = [path for path in images if len(path.parts) > 1]
    if below and not subfolders:
        got = f"{join_names([str(below[0])])} (subfolders=True reads such, too"
        expected = "images in no subfolder"
        expect(False, label, expected, f"{got}, subfolders=False leaves them out)")
    expect(len(images) > 0, label, "a folder with images in it", "none")
    return images


def _place(path: PurePath) -> list[tuple[bool, str]]:
    """Files of a folder by name, before those of its subfolders."""
    return [*((True, part) for part in path.parts[:-1]), (False, path.name)]
