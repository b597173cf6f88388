"""Pictures are made and show what they are given."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from estimators import Denoising, Gaussian, MultiScale, ResidualMLP
from scoresde import Cosine, DiagonalSDE, Haar, Identity
from scoresde.app import plots
from solvers import DDIM, Adaptive

SHAPE = (1, 8, 8)
SDES = {
    "uniform": DiagonalSDE(Cosine(), Identity(SHAPE)),
    "Haar": DiagonalSDE(Cosine(), Haar(SHAPE, 2), [1.0, 1.5, 2.0]),
}


def pixels(figure, path):
    plots.save(figure, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_grid_shows_every_image(tmp_path):
    dark, light = torch.full((4, *SHAPE), -1.0), torch.full((4, 3, 8, 8), 1.0)
    picture = pixels(plots.image_grid({"dark": dark, "light": light}, 2), tmp_path / "x.png")
    half = picture.shape[1] // 2
    assert (picture[:, :half] < 20).mean() > 0.3
    assert (picture[:, half:] > 235).mean() > 0.9


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_title_is_within_the_picture(count):
    """Of few small images, too."""
    given = {"condition_W": torch.zeros(1, *SHAPE)}
    figure = plots.comparison(given, torch.zeros(count, *SHAPE), count)
    figure.canvas.draw()
    (axes,) = figure.axes
    title = axes.title.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width


@pytest.mark.parametrize("width", [4, 64])
def test_names_of_rows_are_within_the_picture_beside_their_rows(width):
    names = ["cat", "a class with a long name, $and$ more", "WWWWWWWWWWWWWWWWWWWWWWWW"]
    figure = plots.image_grid({"": torch.zeros(6, 1, width, width)}, 2, names)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    image = axes.images[0].get_window_extent()
    labels = axes.get_yticklabels()
    assert [label.get_text()[:9] for label in labels] == [name[:9] for name in names]
    for i, label in enumerate(labels):
        box = label.get_window_extent()
        assert 0 <= box.x0 < box.x1 < image.x0
        row = (image.y1 - (box.y0 + box.y1) / 2) / image.height * 3
        assert row == pytest.approx(i + 0.5, abs=0.2)


@pytest.mark.parametrize("name", SDES)
def test_schedules(name, tmp_path):
    assert pixels(plots.schedules(SDES[name]), tmp_path / "x.png").std() > 5


@pytest.mark.parametrize("name", SDES)
def test_trajectory(name, tmp_path):
    model = Gaussian(SDES[name], torch.zeros(SHAPE), torch.eye(64))
    figure = plots.trajectory(model, DDIM(6), count=2, columns=4)
    assert pixels(figure, tmp_path / "x.png").std() > 5


def test_forward_noising(tmp_path):
    figure = plots.forward_noising(SDES, torch.zeros(SHAPE))
    assert pixels(figure, tmp_path / "x.png").std() > 5


def test_nothing_is_left_of_a_picture_that_fails(tmp_path):
    with pytest.raises(ValueError, match=r"two channels: expected images \(N, 1 \| 3,"):
        plots.save(plots.image_grid({"two channels": torch.zeros(1, 2, 8, 8)}), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_pictures_on_the_way(tmp_path):
    """The same noise every time, and no harm if a model diverges."""
    look = plots.Pictures(tmp_path / "pictures", DDIM(2), count=3)
    for step, mean in ((7, -1.0), (12, 1.0), (13, torch.nan)):
        model = Gaussian(SDES["uniform"], torch.zeros(SHAPE), 1e-4 * torch.eye(64))
        model.means = torch.full_like(model.means, mean)
        look(step, model, None)
    look = plots.Pictures(tmp_path / "none", DDIM(2), draws=False)
    look(7, model, None)
    found = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in found] == ["00000007.png", "00000012.png", "00000013.png"]
    dark, light = (np.asarray(Image.open(path).convert("L")).mean() for path in found[:2])
    assert dark < light
    assert not (tmp_path / "none").exists()


def test_notebooks_show_figures():
    picture = plots.image_grid({"faces": torch.zeros(3, 1, 4, 4)})
    assert picture._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drop", [None, [1.0, 0.7, 0.4]])
def test_trajectories_of_networks(drop, dtype, tmp_path):
    """In either precision, also where bands enter on the way."""
    sde = DiagonalSDE(Cosine(), Haar(SHAPE, 2), drop=drop)
    networks = [ResidualMLP((stage.dim,), 8, 1) for stage in sde.stages()]
    model = MultiScale(sde, networks) if drop else Denoising(sde, ResidualMLP(SHAPE, 8, 1))
    figure = plots.trajectory(model.to(dtype), DDIM(6), count=2, columns=4)
    assert [a.get_title()[:4] for a in figure.axes if a.get_title()] == ["t = "] * 4
    assert pixels(figure, tmp_path / "x.png").std() > 5


@pytest.mark.parametrize("solver", [DDIM(6), DDIM(6, eta=1.0, churn=0.3), Adaptive(6)], ids=repr)
def test_trajectories_end_where_samples_do(solver):
    sde = DiagonalSDE(Cosine(), Haar(SHAPE, 2), drop=[1.0, 0.7, 0.4])
    model = Gaussian(sde, torch.zeros(SHAPE), torch.eye(64))

    def seed():
        return torch.Generator().manual_seed(0)

    *_, (t, z) = walk = list(solver.trajectory(model, (3,), generator=seed()))
    assert [t for t, _ in walk] == sorted((t for t, _ in walk), reverse=True)
    assert {z.shape[-1] for _, z in walk} == {4, 16, 64}
    assert t == sde.eps
    x = solver.sample(model, (3,), generator=seed())
    torch.testing.assert_close(sde.basis.inverse(z), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [8, 32, 48, 100, 128])
def test_no_pixel_is_left_out_of_a_grid(tmp_path, width):
    """Of columns of pixels in two shades, alternately, both are seen all over."""
    stripes = (torch.arange(width) % 2 * 2.0 - 1).expand(4, 1, 4, width)
    plots.save(plots.image_grid({"": stripes}, columns=4), tmp_path / "x.png")
    row = np.asarray(Image.open(tmp_path / "x.png").convert("L")).astype(int)
    assert row.shape[1] >= 4 * width
    changes = max(int((np.diff(np.sign(line - 128)) != 0).sum()) for line in row)
    assert changes > 0.9 * 4 * width
