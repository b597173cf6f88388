"""Runs one benchmark by name and prints its rows."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
from inspect import signature
from pathlib import Path

import benchmarks


def main() -> None:
    """See ``--help``."""
    names = [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in ("__main__", "beds", "images", "mutation", "posteriors", "unets")
    ]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true", help="fewer rows, smaller sizes")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--data", type=Path, help="folder of the data, where a benchmark has any")
    parser.add_argument("--pictures", type=Path, help="PNG file for samples beside real images")
    arguments = parser.parse_args()
    run = importlib.import_module(f"benchmarks.{arguments.name}").run
    results = run(**{k: v for k, v in vars(arguments).items() if k in signature(run).parameters})
    for key, value in results.items():
        if key != "rows":
            print(f"{key}: {json.dumps(value)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
