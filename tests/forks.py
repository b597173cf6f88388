"""Processes of their own that need not import torch: forked from one that has.

That one has a single thread, and nothing of what tests leave in a process. Functions that are run
are found by their names, in modules that import little.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
if hasattr(os, "fork"):
    FORKS = multiprocessing.get_context("forkserver")
    FORKS.set_forkserver_preload(
        [
            "without_cwd",
            "pytest",
            "scoresde.app.cli",
            "scoresde.app.model",
            "sklearn.datasets",
            "solvers",
        ]
    )


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def forked(function, *arguments):
    """Runs a function as a script is run: its exit status and all that it said."""
    with tempfile.TemporaryDirectory() as folder:
        process = FORKS.Process(target=_captured, args=(folder, function, arguments))
        process.start()
        process.join(600)
        said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
        assert process.exitcode is not None, said
        return Done(process.exitcode, *said)


def _captured(folder, function, arguments):
    for number, name in enumerate(("stdout", "stderr"), 1):
        with open(Path(folder, name), "w") as file:
            os.dup2(file.fileno(), number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    function(*arguments)
