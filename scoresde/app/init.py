"""``scoresde init``: a configuration to start from, with comments.

The files are the project's examples, which are part of the wheel.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from scoresde.app.options import NamedPath
from scoresde.checks import expect
from scoresde.internals.atomic import atomic_write
from scoresde.internals.messages import nearest, warn

_INSTALLED, _CHECKOUT = Path(__file__).parent / "examples", Path(__file__).parents[2] / "examples"
"""Where a wheel puts the examples (``pyproject.toml``), and where they are before that."""


_TABLES = (".csv", ".tsv", ".parquet")


def examples() -> dict[str, Path]:
    """Paths of the files, by name."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    paths = sorted(folder.glob("*.toml"))
    return {path.stem.replace("_", "-"): path for path in paths}


def example(name: str, source: str | None = None, path: str | Path | None = None) -> str:
    """The text of a file.

    Args:
        name: One of `examples`.
        source: Of the data, or of a model, in the place of the example's.
        path: Where it will be, for the commands in its first lines.

    Raises:
        ValueError: If there is no such example.

    Example:
        >>> from scoresde.app.init import example
        >>> example("table", path="a/b.toml").splitlines()[0]
        '# scoresde train a/b.toml --output model'
    """
    known = examples()
    if name not in known:
        raise ValueError(f"init: no example {name!r}{nearest(name, known)}")
    text = known[name].read_text(encoding="utf-8")
    if path is not None:
        text = text.replace(known[name].name, str(path))
    if source is None:
        return text
    value = json.dumps(str(source), ensure_ascii=False)
    # what a file has first: a model's folder, or the data
    text = re.sub(r'(?m)^(folder|source) = "[^"]*"', lambda m: f"{m[1]} = {value}", text, count=1)
    # of the example's data
    return re.sub(r"(?m)^columns = ", "# columns = ", text)


def _expect_source(name: str, text: str, source: str) -> None:
    """Raises ``ValueError`` if a file to start from is of another kind of data, or none."""
    if 'name = "crop"' in text:
        known = {other: path.read_text(encoding="utf-8") for other, path in examples().items()}
        others = [o for o, t in known.items() if "[data.parts]" in t and 'name = "crop"' not in t]
        wanted = f"none, as its parts are pixels of its own images ({', '.join(others)} take one)"
        expect(False, f"init {name}: SOURCE", wanted, source)
    if re.search(r"(?m)^folder = ", text):
        expect(Path(source).is_dir(), f"init {name}: SOURCE", "a folder that is there", source)
    if re.search(r"(?m)^columns = ", text) and not source.lower().endswith(_TABLES):
        _expect_rows(f"init {name}: SOURCE", source)


def _expect_rows(name: str, source: str) -> None:
    from scoresde.data import load

    try:
        shape = tuple(load(source).values.shape[1:])
    except ValueError as error:  # as of one of several arrays: the file is there to say which
        warn(f"{name}: {error}; [data] is to say how {source} is read")
        return
    wanted = "a table (images is of images)"
    expect(len(shape) == 1, name, wanted, f"events {shape} in {source}")


def next_steps(text: str) -> list[str]:
    r"""The commands in the first lines of a file."""
    return re.findall(r"(?m)^# (scoresde [^\n]*)$", text)


@click.command(
    "init",
    help=f"""Write a commented configuration to start from, of data, or a model, in SOURCE.

    NAME is one of {", ".join(examples())}.""",
)
@click.argument("name")
@click.argument("source", required=False)
@click.option("--output", type=NamedPath(path_type=Path), help="The file; NAME.toml if omitted.")
def init(name: str, source: str | None, output: Path | None) -> None:
    """See the command's help."""
    path = Path(f"{name}.toml") if output is None else output
    text = example(name, source, path)
    if source is not None:
        _expect_source(name, example(name), source)
    if path.exists():
        raise FileExistsError(f"--output: expected a new file, {path} exists")
    with atomic_write(path) as file:
        file.write(text.encode())
    steps = "\n".join(f"  {step}" for step in next_steps(text))
    click.echo(f"{path}: written; look at it, and then\n{steps}")
