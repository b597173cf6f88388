"""Conditional estimators: with exact scores, on simulators, and on images.

Three benchmarks that also run by themselves: ``bias``, ``simulators`` and ``restoration``. The
last one needs ``--data``, a folder with the faces' zip file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import bias, restoration, simulators

FACES = "celeba-10k.zip"


def run(
    quick: bool = False, data: Path | None = None, pictures: Path | None = None
) -> dict[str, Any]:
    """The rows of all three."""
    results: dict[str, Any] = {"exact": bias.run(quick)["rows"], **simulators.run(quick, data)}
    if data is not None and (data / FACES).exists():
        results["images"] = restoration.run(quick, data / FACES, pictures)
    else:
        print(f"no images: {FACES} is not in --data")
    return results
