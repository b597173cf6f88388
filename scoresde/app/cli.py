"""The command line: ``scoresde init``, ``train``, ``sample``, ``evaluate``, ``cite``, ``list``."""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scoresde import plugins
from scoresde.app import options
from scoresde.app.averaging import average
from scoresde.app.init import init
from scoresde.app.options import NamedPath
from scoresde.checks import expect
from scoresde.internals.messages import describe_error

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from scoresde.app.model import Model
    from scoresde.app.sampling_task import SamplingTask
    from scoresde.solver import Solver
    from scoresde.training.distributed import Processes


class Terminated(KeyboardInterrupt):
    """SIGTERM as an interruption, which is handled as Ctrl-C is."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_raises(), _one_line_warnings():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as error:
            click.echo("interrupted", err=True)
            ctx.exit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT))
        except SystemExit as error:
            message = f"something exited on the way, a plugin for instance, with status {error}"
            raise click.ClickException(message) from error
        except Exception as error:
            broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.params.get("debug") or broken_pipe:  # which click ends in silence
                raise
            message = describe_error(error)
            # no sentence of anybody's for users: perhaps a bug
            where = (
                " (scoresde --debug shows where)"
                if message == describe_error(error, kind=True)
                else ""
            )
            raise click.ClickException(message + where) from error


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # signals do not come there
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings are a line each, without the place in the code."""

    def show(message: Warning | str, *_: Any) -> None:
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@click.group(cls=_Group)
@click.version_option(package_name="scoresde", prog_name="scoresde")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Train, sample and evaluate diffusion models."""


main.add_command(average)
main.add_command(init)


@main.command()
@click.argument("config", type=NamedPath(path_type=Path))
@click.option("--output", type=NamedPath(path_type=Path), required=True, help="Model folder.")
@click.option(
    "--pictures", type=NamedPath(path_type=Path), help="Folder for samples on the way, of images."
)
@click.option(
    "--distributed", is_flag=True, help="As one of the processes that accelerate launch starts."
)
@click.option("--replace", is_flag=True, help="Train anew where another or a finished model is.")
@options.device
@options.allow_imports
def train(
    config: Path,
    output: Path,
    pictures: Path | None,
    distributed: bool,
    replace: bool,
    device: str,
    imports: bool,
) -> None:
    """Train the model that CONFIG, a TOML file, describes.

    The same command goes on with a run that was interrupted, and with a finished one if there are
    more steps in the file.
    """
    from scoresde.app import devices
    from scoresde.app.config import read
    from scoresde.training import checkpoint
    from scoresde.training.distributed import SINGLE_PROCESS

    checkpoint.check(output)
    settings, run = read(config), output / "training"
    processes = devices.processes(device) if distributed else SINGLE_PROCESS
    where = processes.device if distributed else devices.chosen_device(device)
    _prepare_run(output, run, replace, processes)
    options = {"device": where, "pictures": pictures, "imports": imports}
    try:
        model = _trained(settings, replace, run, processes, **options)
    except KeyboardInterrupt:
        if (run / "config.json").exists():
            click.echo(f"{run}: saved; the same command goes on from there", err=True)
        raise
    if processes.is_main_process and model.history is not None:
        model.save(output)
        seconds, best = model.history.seconds, model.history.best
        click.echo(f"{output}: trained in {seconds:.0f} s, best step {best}")


def _trained(
    settings: dict[str, Any], replace: bool, folder: Path, processes: Processes, **options: Any
) -> Model:
    """A model, in place of what another run has left if it may be replaced."""
    from scoresde.app.model import Model
    from scoresde.training.checkpoint import CheckpointError
    from scoresde.training.run_identity import RunMismatch

    def trained() -> Model:
        return Model.train(settings, folder=folder, processes=processes, **options)

    try:
        return trained()
    except (CheckpointError, RunMismatch) as error:
        if not replace:
            other = str(error).removeprefix("folder: ")
            raise click.ClickException(f"--output: {other}; --replace trains anew") from error
    _remove_run(folder, processes)
    return trained()


def _prepare_run(output: Path, run: Path, replace: bool, processes: Processes) -> None:
    """Forgets a finished run that is to be replaced; one that is not over goes on."""
    from scoresde.training import checkpoint

    finished, begun = ((folder / "config.json").exists() for folder in (output, run))
    if finished and not begun and not replace:
        raise FileExistsError(
            f"--output: {output} holds a finished model, and nothing of its training to go on "
            "from; --replace trains anew"
        )
    over = False
    if replace and finished and begun:
        with suppress(checkpoint.CheckpointError):  # a damaged one is not gone on with either
            over = checkpoint.load(run)[1].get("over", False)
    processes.wait_for_everyone()  # all have looked
    if over:
        _remove_run(run, processes)


def _remove_run(run: Path, processes: Processes) -> None:
    from scoresde.training import checkpoint

    if processes.is_main_process:
        checkpoint.remove(run)
    processes.wait_for_everyone()


@main.command()
@options.trained
@click.option(
    "--count",
    default=64,
    show_default=True,
    type=click.IntRange(1, 2**63 - 1),
    help="How many samples; of each event that is given.",
)
@options.given
@options.whole
@options.estimator
@click.option(
    "--output",
    default="samples.npy",
    show_default=True,
    help="A .npy, .npz, .csv or .png file, or a folder/ of PNG files.",
)
@click.option("--png", help="Also a picture, of images.")
@click.option("--solver", help="A solver's name, instead of the model's own.")
@click.option("--steps", type=int, help="Its steps.")
@click.option("--eta", type=float, help="Its noise.")
@click.option(
    "--order",
    metavar="BLOCK,... | SHAPE",
    help="Which blocks are drawn first, the others given them; what is not named is last. Or the "
    "shape of patches that are drawn one after the other, as 1x8x8 of 1x32x32.",
)
@click.option("--overlap", type=float, help="Share of its way that a block goes beside the next.")
@options.label
@options.condition
@options.guidance
@options.interval
@options.seed
@options.device
@options.allow_imports
def sample(
    folder: Path,
    count: int,
    output: str,
    png: str | None,
    solver: str | None,
    steps: int | None,
    eta: float | None,
    seed: int,
    device: str,
    imports: bool,
    **request: Any,
) -> None:
    """Sample from MODEL into a file or a folder, as the data were.

    MODEL is a folder that train has written, or a file of one that was trained elsewhere.
    """
    import torch

    from scoresde.app import devices
    from scoresde.app.model import loaded
    from scoresde.app.sampling_task import sampling_task

    where = devices.chosen_device(device)
    guiding = {n: request.pop(n) for n in ("guidance", "interval")}
    model = loaded(folder, device=where, imports=imports, options=guiding)
    task = sampling_task(model, count, seed, imports=imports, **request)
    writers = [task.export.writer(output, "--output")]
    if png is not None:
        expect(png.lower().endswith(".png"), "--png", "a name that ends in .png", png)
        expect(Path(png).resolve() != Path(output).resolve(), "--png", "another file", png)
        writers.append(task.export.writer(png, "--png"))
    chosen = _solver(model, solver, imports, steps=steps, eta=eta)
    x = _samples(task, chosen, torch.Generator(where).manual_seed(seed))
    for write in writers:
        write(x)
    if task.message:
        click.echo(task.message)
    click.echo(f"{output}: {tuple(x.shape)}")


def _samples(task: SamplingTask, solver: Solver, generator: Generator) -> Tensor:
    """Samples in chunks, so that networks have the memory they need."""
    import torch

    from scoresde.internals.limits import chunk_size

    basis, count = task.estimator.sde.basis, task.count
    options: dict[str, Any] = {"condition": task.condition, "generator": generator}
    size = chunk_size((basis.dim,))
    parts = solver.batches(task.estimator, (count,), size, **options, progress=True)
    x = torch.cat([part.cpu() for part in parts])
    wanted = (count, *basis.event_shape)
    expect(x.shape == wanted, "samples", f"a tensor of shape {wanted} from {solver!r}", x.shape)
    return x


@main.command()
@options.trained
@options.data
@click.option("--count", type=click.IntRange(min=2), help="Events to evaluate; all if omitted.")
@click.option(
    "--hutchinson", type=click.IntRange(min=1), help="Probes, instead of the exact trace."
)
@click.option("--frechet", is_flag=True, help="Compare samples with the events, by features.")
@click.option(
    "--features",
    metavar="NAME",
    help="efficientnet-lite0 (for images, by default), pixels, or package.module:function.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="How often to sample for that.")
@click.option("--solver", help="A solver's name, instead of the model's own.")
@click.option("--steps", type=int, help="Its steps.")
@options.guidance
@options.seed
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.device
@options.allow_imports
def evaluate(
    folder: Path,
    data: tuple[str, ...],
    count: int | None,
    hutchinson: int | None,
    frechet: bool,
    features: str | None,
    repeats: int | None,
    solver: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    as_json: bool,
    device: str,
    imports: bool,
) -> None:
    """Evaluate MODEL: the log-density of data under it, or its samples.

    MODEL is a folder that train has written, or a file of one that was trained elsewhere.
    """
    from scoresde.app import devices, reports
    from scoresde.app.conditions import guides
    from scoresde.app.model import loaded

    where = devices.chosen_device(device)
    model = loaded(folder, device=where, imports=imports, options={"guidance": guidance})
    if not frechet and guidance is None and guides(model.settings):
        # what guidance makes of a density is not that of the data
        model = loaded(folder, device=where, imports=imports, options={"guidance": 1.0})
    chosen = _solver(model, solver, imports, steps=steps)
    shared: dict[str, Any] = {"count": count, "seed": seed, "imports": imports}
    if frechet:
        expect(hutchinson is None, "--hutchinson", "none beside --frechet", hutchinson)
        shared |= {"features": features, "repeats": repeats}
        report = reports.sample_report(model, chosen, data or None, **shared)
    else:
        for name, value in (("--features", features), ("--repeats", repeats)):
            expect(value is None, name, "none without --frechet", value)
        shared["hutchinson"] = hutchinson
        report = reports.density_report(model, chosen, data or None, **shared)
    click.echo(reports.as_json(report) if as_json else reports.as_lines(report))


@main.command()
@options.trained
@options.allow_imports
def cite(folder: Path, imports: bool) -> None:
    """Print BibTeX of the works that MODEL stands on."""
    from scoresde.app.model import loaded
    from scoresde.references import citation

    click.echo(citation(loaded(folder, device="cpu", imports=imports)))


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


def _solver(model: Model, name: str | None, imports: bool, **overrides: Any) -> Solver:
    """The model's solver or another one, with options that were given."""
    options = {key: value for key, value in overrides.items() if value is not None}
    other = bool(options) or name is not None
    return model.solver_like(name, imports=imports, **options) if other else model.solver


if __name__ == "__main__":
    main(prog_name="scoresde")
