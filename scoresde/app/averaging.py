"""``scoresde average``: how wide the average of a model's weights is, chosen after training."""

from __future__ import annotations

from pathlib import Path

import click

from scoresde.app import options
from scoresde.app.options import NamedPath


@click.command("average")
@click.argument("folder", type=NamedPath(path_type=Path))
@click.option("--output", type=NamedPath(path_type=Path), required=True, help="A new model folder.")
@click.option(
    "--width",
    "widths",
    type=float,
    multiple=True,
    help="Share of the run that is averaged over; of several, and if none is named, the best.",
)
@options.device
@options.allow_imports
def average(
    folder: Path, output: Path, widths: tuple[float, ...], device: str, imports: bool
) -> None:
    """Give the model in FOLDER an average of other width of the weights of its training.

    Its file has said snapshots = N in [training]. The best width is that of the lowest held-out
    loss, which is printed beside that of the weights as they were.
    """
    from scoresde.app import devices
    from scoresde.app.model import Model
    from scoresde.app.parts import data_of
    from scoresde.app.sections import training_of
    from scoresde.training.post_hoc import WIDTHS, PostHocAverages

    if (output / "config.json").exists():
        raise FileExistsError(f"--output: expected a new folder, {output} holds a model")
    model = Model.load(folder, device=devices.chosen_device(device), imports=imports)
    averages = PostHocAverages.load(folder / "training")
    training, of_fit = training_of(model.settings)
    _, held_out = data_of(model.settings, imports=imports)
    tried = [None, *(widths or WIDTHS)]
    losses = averages.losses(
        model.estimator, held_out, tried, training=training, seed=of_fit["seed"]
    )
    for width, loss in losses.items():
        click.echo(f"{'as it was' if width is None else f'width {width:g}'}: loss {loss:.6g}")
    best = min(widths or WIDTHS, key=losses.__getitem__)
    averages.load_into(model.estimator, best)
    model.save(output)
    worse = ", though as it was its loss is lower" if losses[None] < losses[best] else ""
    click.echo(f"{output}: width {best:g}{worse}")
