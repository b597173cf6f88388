"""Files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files(folder: Path) -> Iterator[Path]:
    """Files in a folder and below it, in the order of their names, but for hidden ones."""
    for root, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
