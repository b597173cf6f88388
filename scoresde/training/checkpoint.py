"""Checkpoints: weights as safetensors, configuration as JSON, never a pickle.

A checkpoint is a folder with two files, written whole or not at all:

    model-<digest>.safetensors    the tensors, named by the start of their SHA-256
    config.json                   {"format": 2, "sha256": <digest>, "own_sha256": <digest>,
                                   "config": {...}}

Two files cannot be replaced in one step, nor can a folder that is not empty. So new weights get a
name of their own beside the old, and the one atomic step is the replacement of ``config.json``,
which names the weights. A process killed before that step leaves the old pair, after it the new
one; the next save removes leftovers. The digest detects weights that were truncated or altered
since; a second one, of ``config.json`` with zeros in its own place, detects changes there. A folder
has one writer at a time (`scoresde.training.lock`); others may load meanwhile. Format 1, without
the second digest, is still read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from scoresde.internals import limits
from scoresde.internals.atomic import atomic_write
from scoresde.training.lock import folder_lock

FORMAT = 2
"""Of files: raised when what is in them can no longer be read as before."""

_PATIENCE = 60.0
"""Seconds that a save waits for another one: more than any takes, less than a training."""

_HIDDEN = "0" * 64
"""What stands in ``config.json`` for its digest while that is computed."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file and what is wrong."""


def save(
    folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Writes a checkpoint, replacing the one in ``folder`` if any.

    Args:
        folder: Created if missing.
        state_dict: Tensors on any device, in any memory layout; shared memory is written out
            once per name.
        config: What JSON can hold; tuples come back as lists.

    Raises:
        FileExistsError: If ``folder`` has a ``config.json`` of another kind, see `check`.
        FolderLocked: If another process has been writing there for a minute, see
            `scoresde.training.lock`.
        TypeError: If JSON cannot hold ``config``, or safetensors ``state_dict``; nothing is
            written then.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from scoresde.training.checkpoint import load, save
        >>> folder = tempfile.mkdtemp()
        >>> save(folder, {"weight": torch.ones(2)}, {"width": 64})
        >>> load(folder)
        ({'weight': tensor([1., 1.])}, {'width': 64})
    """
    check(folder)
    with writer(folder, _PATIENCE) as write:
        write(state_dict, config)


Write = Callable[[Mapping[str, Tensor], Mapping[str, Any]], None]
"""Writes a checkpoint, as `save` does."""


@contextmanager
def writer(folder: str | os.PathLike[str], wait: float = 0.0) -> Iterator[Write]:
    """A folder to save into repeatedly, with no other writer meanwhile.

    Existing content is not checked: see `check`.

    Args:
        folder: Created if missing.
        wait: For how many seconds to wait for another writer to end.

    Raises:
        FolderLocked: If there still is one (`scoresde.training.lock`).

    Example:
        >>> import tempfile
        >>> import torch
        >>> from scoresde.training.checkpoint import load, writer
        >>> folder = tempfile.mkdtemp()
        >>> with writer(folder) as write:
        ...     for step in range(3):
        ...         write({"weight": torch.ones(2)}, {"step": step})
        >>> load(folder)[1]
        {'step': 2}
    """
    with folder_lock(folder, wait) as path:
        yield lambda state_dict, config: _write(path, state_dict, config)


def _write(folder: Path, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    try:
        # safetensors refuses tensors that share memory or are not contiguous.
        weights = safetensors.save(
            {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in state_dict.items()
            }
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"state_dict: expected dense tensors by name, got {error!r}") from error
    digest = hashlib.sha256(weights).hexdigest()
    content = {"format": FORMAT, "sha256": digest, "own_sha256": _HIDDEN, "config": dict(config)}
    try:
        manifest = json.dumps(content, indent=2, allow_nan=False).encode()
    except ValueError as error:  # other programs could not read it
        raise TypeError(f"config: expected what JSON can hold: {error}") from error
    manifest_digest = hashlib.sha256(manifest).hexdigest()
    manifest = manifest.replace(_HIDDEN.encode(), manifest_digest.encode(), 1)

    current = _weights_path(folder, digest)
    for path, written in ((current, weights), (folder / "config.json", manifest)):
        with atomic_write(path) as file:
            file.write(written)
    for stale in _leftovers(folder):
        if stale != current:
            stale.unlink(missing_ok=True)


def check(folder: str | os.PathLike[str]) -> None:
    """Raises an error if a save would replace something that is no checkpoint.

    Raises:
        FileExistsError: If the folder has a ``config.json`` of another kind.
    """
    path = Path(folder, "config.json")
    if path.exists():
        try:
            _manifest(Path(folder))
        except CheckpointError as error:
            raise FileExistsError(f"{path}: in the way, and not a checkpoint's: {error}") from error


def remove(folder: str | os.PathLike[str]) -> None:
    """Removes a checkpoint, if there is one, and its folder if that is empty then."""
    folder = Path(folder)
    if folder.is_dir():
        check(folder)
        with folder_lock(folder, _PATIENCE):
            (folder / "config.json").unlink(missing_ok=True)
            for path in _leftovers(folder):
                path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
        The tensors, on the CPU, and the configuration.

    Raises:
        CheckpointError: If a file is missing, damaged, or of a newer format.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from scoresde.training.checkpoint import load, save
        >>> folder = tempfile.mkdtemp()
        >>> save(folder, {"weight": torch.ones(2)}, {})
        >>> load(folder)[0]
        {'weight': tensor([1., 1.])}
    """
    folder = Path(folder)
    while True:
        digest, config = _manifest(folder)
        path = _weights_path(folder, digest)
        try:
            weights = _read(path)
            break
        except CheckpointError:
            # Unless another process saved a new pair since the manifest was read.
            if _manifest(folder)[0] == digest:
                raise
    if hashlib.sha256(weights).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: truncated or altered: its digest is not the one in config.json"
        )
    try:
        limits.expect_memory(f"{path}, header", limits.JSON * int.from_bytes(weights[:8], "little"))
        return safetensors.load(weights), config
    # beyond its own errors, for what it lets pass that torch refuses
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def _leftovers(folder: Path) -> Iterator[Path]:
    """Weights and unfinished files, by names that only this module uses."""
    hexadecimal = "[0-9a-f]" * 16
    for pattern in (f"model-{hexadecimal}.safetensors", ".model-*.tmp", ".config.json.*.tmp"):
        yield from folder.glob(pattern)


def _weights_path(folder: Path, digest: str) -> Path:
    return folder / f"model-{digest[:16]}.safetensors"


def _manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / "config.json"
    content = _read(path, limits.JSON)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    match manifest:
        case {"format": int(version)} if version > FORMAT:
            raise CheckpointError(
                f"{path}: format {version} is newer than {FORMAT}, the newest this scoresde reads"
            )
        case {"format": 1, "sha256": str(digest), "config": dict(config), **rest}:
            good = not rest
        case {
            "format": 2,
            "sha256": str(digest),
            "own_sha256": str(own),
            "config": dict(config),
            **rest,
        }:
            good = not rest
            hidden = content.replace(own.encode(), _HIDDEN.encode(), 1)
            if good and hashlib.sha256(hidden).hexdigest() != own:
                raise CheckpointError(f"{path}: altered: its digest is another")
        case _:
            good = False
    if good and re.fullmatch("[0-9a-f]{64}", digest):
        return digest, config
    raise CheckpointError(f"{path}: expected a format, SHA-256 digests and a configuration")


def _read(path: Path, factor: int = 1) -> bytes:
    try:
        return limits.read(path, factor)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
