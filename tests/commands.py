"""The command line, as a user types it, and files to give to it."""

from click.testing import CliRunner

from scoresde.app.cli import main
from scoresde.training import checkpoint

CONFIG = """
[data]
source = "{source}"
{options}
[sde]
name = "diagonal"
schedule = "log-linear"
[sde.basis]
name = "haar"
levels = 2
[estimator]
name = "denoising"
[estimator.network]
name = "residual-mlp"
width = 16
depth = 1
[solver]
name = "exponential-multistep"
steps = 4
[training]
steps = 3
batch_size = 8
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def config(folder, source="digits", options=""):
    path = folder / "config.toml"
    path.write_text(CONFIG.format(source=source, options=options))
    return path


def edited(path, *edits):
    """A configuration with something replaced by something else."""
    text = path.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def state(folder):
    return checkpoint.load(folder)[1]
