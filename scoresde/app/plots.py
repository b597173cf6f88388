"""Pictures: samples, schedules, and what happens on the way. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.estimator import ScoreEstimator
from scoresde.internals.atomic import atomic_write
from scoresde.internals.modes import evaluation_mode
from scoresde.noise import Generators, Noise
from scoresde.precision import device_of
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.solver import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scoresde.training.history import History


_DOTS, _LEAST_WIDTH = 150, 48
"""Dots of an inch of a figure, and of a small image in a grid: eight are as wide as a column."""

_TITLE, _LETTER = 9, 0.085
"""Size of a grid's title in points, and inches that a letter of it takes, of wide ones too."""

_LONGEST, _WIDEST = 20, 0.125
"""Letters of a row's name that are shown, and inches that the widest of them takes."""


def new_figure(width: float, height: float) -> Figure:
    """A figure, in inches, which notebooks show without pyplot.

    Raises:
        ImportError: If Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'scoresde[plots]'") from error

    class Shown(Figure):
        """Notebooks show it without pyplot, which would keep every figure alive."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return Shown(figsize=(width, height), layout="constrained", dpi=_DOTS)


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, whole or not at all.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from scoresde.app import plots
        >>> path = Path(tempfile.mkdtemp(), "x.png")
        >>> plots.save(plots.image_grid({"noise": torch.randn(4, 1, 8, 8)}), path)
        >>> path.exists()
        True
    """
    with atomic_write(path) as file:
        figure.savefig(file, format="png", facecolor="white")


def _pixels(x: Tensor) -> Any:
    """An image ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` in [-1, 1] for matplotlib."""
    x = x.squeeze(0) if x.ndim == 3 and x.shape[0] == 1 else x
    x = x.movedim(0, -1) if x.ndim == 3 else x
    expect(x.ndim == 2 or x.shape[-1] == 3, "x", "an image with 1 or 3 channels", tuple(x.shape))
    return ((x.detach().float().cpu() + 1) / 2).clamp(0, 1).numpy()


def _show(axes: Any, x: Tensor) -> None:
    axes.imshow(_pixels(x), cmap="gray", vmin=0, vmax=1, interpolation="auto")
    axes.set_axis_off()


def image_grid(panels: Mapping[str, Tensor], columns: int = 8, names: Sequence[str] = ()) -> Figure:
    """Grids of images side by side, each under its title.

    Args:
        panels: Images ``(N, C, H, W)`` in [-1, 1] by title.
        columns: Images per row of a grid.
        names: Of the rows, beside those of the first grid; none if empty.

    Raises:
        ValueError: If they are of another shape.

    Example:
        >>> import torch
        >>> from scoresde.app import plots
        >>> grey, colour = torch.zeros(4, 1, 8, 8), torch.zeros(4, 3, 8, 8)
        >>> figure = plots.image_grid({"grey": grey, "colour": colour})
        >>> [axes.get_title() for axes in figure.axes]
        ['grey', 'colour']
    """
    for title, images in panels.items():
        grey_or_colour = images.ndim == 4 and images.shape[1] in (1, 3)
        expect(grey_or_colour, title, "images (N, 1 | 3, height, width)", tuple(images.shape))
    rows = max(-(-len(images) // columns) for images in panels.values())
    height, width = (max(images.shape[i] for images in panels.values()) for i in (2, 3))
    # whole dots of the figure for a pixel, and a third of an inch for an image, or all its pixels:
    # what is left out, or drawn twice here and there, would look like grain
    scale = max(1, round(_LEAST_WIDTH / width)) / _DOTS
    wide = max(scale * width * columns, _LETTER * max(map(len, panels)))
    beside = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names]
    space = _WIDEST * max(map(len, beside), default=0) + 0.3
    figure = new_figure(wide * len(panels) + space, scale * height * rows + 0.5)
    cells = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, images) in zip(cells, panels.items(), strict=True):
        _show(axes, _mosaic(images, columns))
        axes.set_title(title, fontsize=_TITLE)
    _name_rows(cells[0], beside, height)
    return figure


def _name_rows(axes: Any, names: Sequence[str], height: int) -> None:
    """Names beside the rows of a mosaic, between which there are lines of a pixel."""
    if names:
        axes.set_axis_on()
        axes.set_anchor("E")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks([])
        middles = [(height + 1) * i + (height - 1) / 2 for i in range(len(names))]
        axes.set_yticks(middles, names, fontsize=_TITLE, parse_math=False)


def _mosaic(images: Tensor, columns: int) -> Tensor:
    """Images ``(N, C, H, W)`` as one, in rows, with white lines between them."""
    framed = torch.nn.functional.pad(images.detach().float().cpu(), (1, 0, 1, 0), value=1.0)
    rows = -(-len(framed) // columns)
    blank = framed.new_ones(rows * columns - len(framed), *framed.shape[1:])
    tiles = torch.cat([framed, blank]).unflatten(0, (rows, columns))
    mosaic: Tensor = tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return mosaic[:, 1:, 1:]


def comparison(given: Mapping[str, Tensor], x: Tensor, count: int, most: int = 15) -> Figure:
    """Samples of images beside what they are given, in rows.

    Args:
        given: Parts of events by name, ``(N, *part_shape)``; those that are images are drawn.
        x: Samples, ``count`` of each, one after the other: ``(N count, C, H, W)``.
        count: How many.
        most: How many are drawn in a row, which is then as wide as two columns of text.

    Example:
        >>> import torch
        >>> from scoresde.app.plots import comparison
        >>> figure = comparison({"y": torch.zeros(2, 1, 4, 4)}, torch.zeros(6, 3, 8, 8), 3)
        >>> figure.axes[0].get_title()
        'y given, and samples'
    """
    shown = [value for value in given.values() if value.ndim == 4 and value.shape[1] in (1, 3)]
    columns = [_as_image(value, x).unsqueeze(1) for value in shown]
    rows = torch.cat([*columns, x.unflatten(0, (-1, count))[:, :most]], 1)
    title = f"{', '.join(given)} given, and samples" if shown else "samples"
    return image_grid({title: rows.flatten(0, 1)}, columns=rows.shape[1])


def _as_image(value: Tensor, like: Tensor) -> Tensor:
    """Images of the size and in the colours of others."""
    value = value.expand(-1, like.shape[1], -1, -1) if value.shape[1] == 1 else value
    grey = like.shape[1] == 1 and value.shape[1] == 3
    value = value.mean(1, keepdim=True) if grey else value
    return torch.nn.functional.interpolate(value, like.shape[2:], mode="nearest-exact").to(like)


def schedules(sde: DiagonalSDE, title: str = "") -> Figure:
    """Signal, noise and log-SNR of every block over time.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Haar
        >>> from scoresde.app import plots
        >>> figure = plots.schedules(DiagonalSDE(VP(), Haar((1, 4, 4), 1), [1.0, 2.0]))
        >>> len(figure.axes[0].lines)
        2
    """
    t = torch.linspace(sde.eps, sde.T, 400, dtype=torch.float64)
    at = sde.at(t.unsqueeze(-1))
    alpha, sigma, log_snr = (
        sde.blocks.expand(v).expand(len(t), sde.basis.dim) for v in (at.alpha, at.sigma, at.log_snr)
    )
    figure = new_figure(9, 2.8)
    figure.suptitle(title or "Schedules", fontsize=10)
    panels = (
        (alpha, r"signal $\alpha_i(t)$"),
        (sigma, r"noise $\sigma_i(t)$"),
        (log_snr, r"log-SNR $\lambda_i(t)$"),
    )
    for axes, (values, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for i, (name, block) in enumerate(sde.blocks.slices.items()):
            mean = sde.blocks.mean(values)[:, i]
            color = f"C{i}"
            axes.plot(t, mean, color=color, label=f"{name} ({block.stop - block.start})", lw=1.8)
        axes.set_xlabel("time $t$", fontsize=8)
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.5)
    axes.legend(title="block (size)", fontsize=7, title_fontsize=7, frameon=False)
    return figure


def trajectory(
    estimator: ScoreEstimator,
    solver: Solver,
    count: int = 4,
    columns: int = 9,
    generator: Generators = None,
) -> Figure:
    """States and denoised means on a solver's way from noise to data.

    Args:
        estimator: Of images ``(C, H, W)``; bands that have not entered yet are left out.
        solver: Walks.
        count: How many paths.
        columns: How many times are shown, equally spaced in steps.
        generator: Of the noise.

    Raises:
        ValueError: If events are no images.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.app import plots
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VP(), Identity((1, 4, 4)))
        >>> model = Gaussian(sde, torch.zeros(1, 4, 4), torch.eye(16))
        >>> len(plots.trajectory(model, DDIM(8), count=2, columns=3).axes)
        12
    """
    # at the time at which blocks are appended, the state that has them
    states = list(dict(solver.trajectory(estimator, (count,), generator=generator)).items())
    places = torch.linspace(0, len(states) - 1, columns, device="cpu").round().int().tolist()
    sde = estimator.sde

    def denoised(t: float, z: Tensor) -> Tensor:
        at = sde.at(torch.full((1, 1), t, dtype=torch.float64, device="cpu"), z)
        return next(at.denoisers(estimator, None))(z)

    def event(z: Tensor) -> Tensor:
        """With what has not entered left out."""
        return sde.events(torch.nn.functional.pad(z, (0, sde.dim - z.shape[-1])))

    with evaluation_mode(estimator), torch.no_grad():
        frames = [(*states[i], denoised(*states[i])) for i in places]

    figure = new_figure(0.75 * columns + 0.6, 1.5 * count + 0.5)
    figure.suptitle("From noise to data: state (above), its denoised mean (below)", fontsize=9)
    cells = figure.subplots(
        2 * count, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}
    )
    for column, (t, z, mean) in enumerate(frames):
        x, clean = event(z), event(mean)
        for i in range(count):
            scale = x[i].abs().amax().clamp(min=1)
            _show(cells[2 * i, column], x[i] / scale)
            _show(cells[2 * i + 1, column], clean[i])
        cells[0, column].set_title(f"t = {t:.2g}", fontsize=7)
    return figure


def forward_noising(
    sdes: Mapping[str, DiagonalSDE],
    x: Tensor,
    times: Sequence[float] = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
    generator: Generators = None,
) -> Figure:
    """One event, diffused by several SDEs with the same noise.

    Args:
        sdes: By title; all with events like ``x``.
        x: ``(C, H, W)`` in [-1, 1].
        times: In units of each SDE's ``T``.
        generator: Of the noise.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.app import plots
        >>> sde = DiagonalSDE(VP(), Identity((1, 8, 8)))
        >>> x = torch.zeros(1, 8, 8)
        >>> len(plots.forward_noising({"uniform": sde}, x, times=(0.0, 0.5)).axes)
        2
    """
    noise = Noise.of(generator)(torch.empty(x.shape.numel(), device=x.device))
    figure = new_figure(0.95 * len(times) + 1.2, 0.95 * len(sdes) + 0.6)
    figure.suptitle("Forward noising", fontsize=10)
    cells = figure.subplots(
        len(sdes), len(times), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.08}
    )
    for row, (title, sde) in zip(cells, sdes.items(), strict=True):
        # the same noise in pixels, whatever the basis
        xi = sde.basis(noise.reshape(x.shape))
        for axes, time in zip(row, times, strict=True):
            _show(axes, sde.basis.inverse(sde.diffuse(sde.basis(x), time * sde.T, xi)))
            axes.set_title(f"t = {time * sde.T:.3g}", fontsize=7)
        row[0].text(
            -0.12, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure


@attrs.frozen
class Pictures:
    """Samples during training, one PNG file at every measurement, from the same noise every time.

    To be given to `scoresde.training.Training.fit` as ``on_measure``.

    Args:
        folder: Created if missing; files are named by the step, ``00000200.png``.
        solver: Samples images ``(C, H, W)``.
        count: Of samples.
        seed: Of their noise.
        draws: Whether this process draws, of several that train together.
        condition: Of the samples, if there is any.
        sampled: From the trained estimator to the one that is sampled, given parts of events for
            instance; the same if None.
        figure: Of the samples; a grid of them if None.
        names: Of the rows of that grid, which have as many samples each; none if empty.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.app.plots import Pictures
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VP(), Identity((1, 4, 4)))
        >>> draw = Pictures(Path(tempfile.mkdtemp()), DDIM(4), count=4)
        >>> model = Gaussian(sde, torch.zeros(1, 4, 4), torch.eye(16))
        >>> draw(100, model, None)
        >>> [path.name for path in draw.folder.iterdir()]
        ['00000100.png']
    """

    folder: Path = attrs.field(converter=Path)
    solver: Solver
    count: int = 64
    seed: int = 0
    draws: bool = True
    condition: Any = None
    sampled: Callable[[ScoreEstimator], ScoreEstimator] = lambda estimator: estimator
    figure: Callable[[Tensor], Figure] | None = None
    names: Sequence[str] = ()

    def __call__(self, step: int, estimator: ScoreEstimator, history: History) -> None:
        """Draws one."""
        if not self.draws:
            return
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():  # unchecked: a model that diverges is worth a look
            conditions = None if self.condition is None else self.condition.to(device_of(estimator))
            shape = (self.count,)
            estimator = self.sampled(estimator)
            x = self.solver.rsample(estimator, shape, condition=conditions, generator=generator)
        self.folder.mkdir(parents=True, exist_ok=True)
        save((self.figure or partial(self._grid, step))(x), self.folder / f"{step:08}.png")

    def _grid(self, step: int, x: Tensor) -> Figure:
        columns = len(x) // len(self.names) if self.names else 8
        return image_grid({f"after {step} updates": x}, columns, self.names)
