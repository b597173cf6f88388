"""The command line: ``scoresde train``, ``sample``, ``evaluate``, ``list``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import click

from scoresde import plugins
from scoresde.checks import expect
from scoresde.files import replacing

# What users get wrong, in one line; anything else is a bug and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        # the latter two, of --help and of Ctrl-C, are RuntimeErrors
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except _USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            message = str(error) or type(error).__name__
            raise click.ClickException(message) from error


_allow_imports = click.option(
    "--allow-imports",
    "imports",
    is_flag=True,
    help="Let names in the file be import paths: they can run any code, so only if you trust it.",
)


@click.group(cls=_Group)
@click.version_option(package_name="scoresde", prog_name="scoresde")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Train, sample and evaluate diffusion models."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Model folder.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="Folder for samples on the way, of images."
)
@click.option(
    "--distributed", is_flag=True, help="As one of the processes that accelerate launch starts."
)
@click.option("--replace", is_flag=True, help="Train anew where a finished model is.")
@_allow_imports
def train(
    config: Path,
    output: Path,
    pictures: Path | None,
    distributed: bool,
    replace: bool,
    imports: bool,
) -> None:
    """Train the model that CONFIG, a TOML file, describes.

    The same command goes on with a run that was interrupted.
    """
    from scoresde import checkpoint
    from scoresde.config import read
    from scoresde.distributed import ALONE
    from scoresde.model import Model

    unfinished = output / "training"
    checkpoint.check(output)
    finished, begun = ((folder / "config.json").exists() for folder in (output, unfinished))
    if finished and not (begun or replace):
        raise FileExistsError(f"--output: {output} holds a finished model; --replace trains anew")
    processes = _accelerator() if distributed else ALONE
    model = Model.train(
        read(config), folder=unfinished, pictures=pictures, processes=processes, imports=imports
    )
    if not processes.is_main_process:
        return
    model.save(output)
    checkpoint.remove(unfinished)
    assert model.history is not None
    click.echo(
        f"{output}: trained in {model.history.seconds:.0f} s, best step {model.history.best}"
    )


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(path_type=Path), default="samples.npy")
@click.option("--png", type=click.Path(path_type=Path), help="Also a picture, of images.")
@click.option("--solver", help="A solver's name, instead of the model's own.")
@click.option("--steps", type=int, help="Its steps.")
@click.option("--eta", type=float, help="Its noise.")
@click.option("--seed", default=0, show_default=True)
@_allow_imports
def sample(
    folder: Path,
    count: int,
    output: Path,
    png: Path | None,
    solver: str | None,
    steps: int | None,
    eta: float | None,
    seed: int,
    imports: bool,
) -> None:
    """Sample from the model in FOLDER into a .npy file."""
    import numpy as np
    import torch

    from scoresde.model import Model

    model = Model.load(folder, imports=imports)
    if png is not None:
        model.expect_images("--png")
    generator = torch.Generator().manual_seed(seed)
    chosen = _solver(model.solver, solver, imports, steps=steps, eta=eta)
    x = chosen.sample(model.estimator, (count,), generator=generator, progress=True)
    with replacing(output) as file:
        np.save(file, x.numpy())
    if png is not None:
        from scoresde import plots

        plots.save(plots.image_grid({f"{count} samples": x}), png)
    click.echo(f"{output}: {tuple(x.shape)}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", help="A data set, file or folder; the model's held-out part if omitted.")
@click.option("--count", type=click.IntRange(min=2), help="Events to evaluate; all if omitted.")
@click.option(
    "--hutchinson", type=click.IntRange(min=1), help="Probes, instead of the exact trace."
)
@click.option("--solver", help="A solver's name, instead of the model's own.")
@click.option("--steps", type=int, help="Its steps.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_allow_imports
def evaluate(
    folder: Path,
    data: str | None,
    count: int | None,
    hutchinson: int | None,
    solver: str | None,
    steps: int | None,
    seed: int,
    as_json: bool,
    imports: bool,
) -> None:
    """Evaluate the log-density of data under the model in FOLDER."""
    import torch

    from scoresde.evaluation import evaluate as measure
    from scoresde.likelihood import ExactTrace, Hutchinson
    from scoresde.model import Model, data_like, data_of

    model = Model.load(folder, imports=imports)
    own = model.settings
    events = data_of(own)[1] if data is None else data_like(own, data)
    chosen = _solver(model.solver, solver, imports, steps=steps)
    trace = ExactTrace() if hutchinson is None else Hutchinson(hutchinson)
    generator = torch.Generator().manual_seed(seed)
    levels = model.facts["levels"]
    expect(events.levels == levels, "data", f"{levels} levels, as trained on", events.levels)
    report = measure(
        model.estimator, events, chosen, trace, count=count, generator=generator, progress=True
    )
    click.echo(json.dumps(report, indent=2) if as_json else _lines(report))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_allow_imports
def cite(folder: Path, imports: bool) -> None:
    """Print BibTeX of the works that the model in FOLDER stands on."""
    from scoresde.model import Model
    from scoresde.sources import citation

    click.echo(citation(Model.load(folder, imports=imports)))


@main.command("list")
def list_plugins() -> None:
    """List what is installed, built in or not."""
    for group in plugins.GROUPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            broken = plugins.check(group)
        click.echo(group)
        for name, plugin in plugins.available(group).items():
            origin = f"{plugin.distribution} {plugin.version}"
            click.echo(f"  {name:24} {plugin.value:40} {origin}")
            if name in broken:
                click.echo(f"    broken: {broken[name]}")


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        message = "several processes need accelerate: pip install 'scoresde[distributed]'"
        raise ImportError(message) from error
    return Accelerator()


def _solver(own: Any, name: str | None, imports: bool, **options: Any) -> Any:
    """The model's solver or another one, with options that were given."""
    import attrs

    given = {key: value for key, value in options.items() if value is not None}
    if name is None:
        return attrs.evolve(own, **given)
    factory: Any = plugins.get("solvers", name, imports=imports)
    return factory(**given)


def _lines(report: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in report.items())
