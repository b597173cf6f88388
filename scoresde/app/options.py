"""Options that several commands of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scoresde.checks import expect, real


class NamedPath(click.Path):
    """A path that is not empty, as that of a script's unset variable would be."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Fails for what is empty, else as `click.Path` does."""
        if value == "":
            self.fail("expected a path, got an empty one", param, ctx)
        return super().convert(value, param, ctx)


def _checked_guidance(_: Any, __: Any, value: float | None) -> float | None:
    if value is not None:
        real("--guidance", value, 0)
    return value


def _checked_interval(
    _: Any, __: Any, value: tuple[float, float] | None
) -> tuple[float, float] | None:
    if value is not None:
        good = 0 <= value[0] < value[1]
        wanted = "two numbers of at least 0, least and largest sigma/alpha"
        expect(good, "--guidance-interval", wanted, value)
    return value


trained = click.argument("folder", metavar="MODEL", type=NamedPath(path_type=Path))

data = click.option(
    "--data",
    multiple=True,
    metavar="[PART=]PATH",
    help="A data set, file or folder; the model's held-out part if omitted.",
)

given = click.option(
    "--given",
    multiple=True,
    metavar="[PART=]PATH",
    help="Events of a part, to sample the others of: a file as the data were, or images.",
)

whole = click.option(
    "--data",
    multiple=True,
    metavar="[PART=]PATH",
    help="Whole events instead, of which what is given is made as for the training.",
)

estimator = click.option(
    "--estimator",
    metavar="TABLE",
    help="One around the model's, as in a file, or a file: its operator has left what is given.",
)

seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the noise."
)

device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:1|mps",
    help="Where to compute; auto is the accelerator that is there, or else the CPU.",
)

label = click.option(
    "--label",
    "labels",
    multiple=True,
    help="A class, by name or number, of as many samples as others; drawn as in the data if none.",
)

condition = click.option(
    "--condition",
    type=NamedPath(),
    help="A .npy array or a table of what samples are conditioned on, each for as many of them.",
)

guidance = click.option(
    "--guidance",
    type=float,
    callback=_checked_guidance,
    help="How much samples are to show their condition: 0 not at all, 1 as the data do.",
)

interval = click.option(
    "--guidance-interval",
    "interval",
    type=float,
    nargs=2,
    callback=_checked_interval,
    help="Least and largest sigma/alpha at which there is guidance.",
)

allow_imports = click.option(
    "--allow-imports",
    "imports",
    is_flag=True,
    help="Let names in the file be import paths: they can run any code, so only if you trust it.",
)
