"""Files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files(folder: Path) -> Iterator[Path]:
    """Files in a folder and below it, in the order of their names, but for hidden ones.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from scoresde.data.folders import files
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "below").mkdir()
        >>> for name in ("b", "a", ".hidden", "below/c"):
        ...     (folder / name).touch()
        >>> [path.name for path in files(folder)]
        ['a', 'b', 'c']
    """
    for root, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
