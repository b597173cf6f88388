"""Runs one benchmark by name and prints its rows."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import pkgutil
from inspect import signature
from pathlib import Path

import benchmarks

HELPERS = (
    *("__main__", "beds", "equal_time", "images", "inverse_peers", "mutation", "posteriors"),
    *("recipes", "references", "unets"),
)


def main() -> None:
    """See ``--help``."""
    names = [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in HELPERS
    ]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true", help="fewer rows, smaller sizes")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--data", type=Path, help="folder of the data, where a benchmark has any")
    parser.add_argument("--pictures", type=Path, help="PNG file for samples beside real images")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of its run()"
    )
    arguments = parser.parse_args()
    run = importlib.import_module(f"benchmarks.{arguments.name}").run
    parameters = signature(run).parameters
    options = {k: v for k, v in vars(arguments).items() if k in parameters}
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        if name not in parameters:
            parser.error(f"--set: {arguments.name} takes {', '.join(parameters)}; got {setting}")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    results = run(**options)
    for key, value in results.items():
        if key != "rows":
            print(f"{key}: {json.dumps(value)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
