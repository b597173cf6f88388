"""The properties of ``tests/test_fuzz.py``, for minutes: how many inputs each has withstood.

With atheris installed, a reader of files is led to new lines of itself, by bytes:

    python -m benchmarks.fuzz weights -max_total_time=60
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
TRACED = ["scoresde", "json", "tomllib", "csv", "numpy.lib", "safetensors", "zipfile", "PIL"]


def run(quick: bool = False, seconds: float = 300.0) -> dict[str, Any]:
    """Inputs tried, and the failures found, by property."""
    import test_fuzz

    failures: dict[str, str] = {}
    spent = dict.fromkeys(test_fuzz.properties, 0.0)
    with test_fuzz.forbidden_module():
        while spent and sum(spent.values()) < (20.0 if quick else seconds):
            name = min(spent, key=lambda name: spent[name])  # the same time for each
            start = time.perf_counter()
            try:
                test_fuzz.properties[name](100)()
                spent[name] += time.perf_counter() - start
            except BaseException as error:  # whatever it is
                failures[name] = "".join(traceback.format_exception(error, limit=-2))
                print(f"{name}\n{failures[name]}", flush=True)
                del spent[name]
    for name, count in sorted(test_fuzz.inputs.items()):
        print(f"{name:48} {count:8} inputs")
    return {"inputs": dict(test_fuzz.inputs), "failures": failures}


def follow(name: str, options: list[str]) -> None:
    """Hands a reader to atheris, with options of libFuzzer; ends the process."""
    import atheris

    with atheris.instrument_imports(include=TRACED):
        import test_fuzz

    with test_fuzz.forbidden_module(), tempfile.TemporaryDirectory() as corpus:
        for i, content in enumerate(
            [*test_fuzz.saved().values(), *test_fuzz.data_files().values()]
        ):
            Path(corpus, str(i)).write_bytes(content)
        atheris.Setup([name, corpus, *options], test_fuzz.READERS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    follow(sys.argv[1], sys.argv[2:])
