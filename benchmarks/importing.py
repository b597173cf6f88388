"""What importing costs: fresh processes in turn, torch alone and torch with us."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

IMPORTS = {
    "torch": "import torch",
    "scoresde": "import scoresde",
    "all three packages": "import scoresde, estimators, solvers",
    "a distribution for Pyro": "from scoresde import ScoreDistribution",
    "the adapters": "from solvers import TorchDiffEq, TorchSDE",
}


def run(quick: bool = False) -> dict[str, Any]:
    """Medians of wall-clock and processor seconds, and both in units of torch's."""
    measurements: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for repetition in range(4 if quick else 16):
        for name, statement in IMPORTS.items():
            measured = _run(statement)
            if repetition > 0:  # the first fills caches of files and of bytecode
                measurements[name].append(measured)
    median = {
        name: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for name, pairs in measurements.items()
    }
    rows = []
    for name, (wall, processor) in median.items():
        of_torch = [round(a / b, 3) for a, b in zip(median[name], median["torch"], strict=True)]
        rows.append({"import": name, "wall": wall, "processor": processor, "of_torch": of_torch})
        print(f"{name:24} {wall:6.2f} s {processor:6.2f} s of processor, of torch's {of_torch}")
    return {"of_torch": {row["import"]: row["of_torch"] for row in rows}, "rows": rows}


def _run(statement: str) -> tuple[float, float]:
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    wall, after = time.perf_counter() - start, os.times()
    spent = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    return wall, spent
