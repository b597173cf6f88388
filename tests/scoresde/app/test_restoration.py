"""Images, given what an operator has left of them: a model of images, and a table beside it."""

import pytest
import torch
from commands import config, run
from PIL import Image

from estimators import Guidance
from scoresde.app.model import Model
from scoresde.app.restoration import Restoration
from scoresde.data import Dataset, Downsample, degraded, quantize, read_images
from scoresde.data.quantization import bin_centres

SIZE = 8
TABLE = '{ name = "guided", operator = "whole", noise = 0.1, method = "isotropic" }'


def written(folder, values):
    folder.mkdir(parents=True)
    for i, image in enumerate(values):
        Image.fromarray(image.movedim(0, -1).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of windows of images, and their labels: nothing of what may happen to them."""
    folder = tmp_path_factory.mktemp("restoration")
    shades = torch.randint(256, (12, 3, SIZE + 1, SIZE)).byte()
    for name, part in zip(("cat", "dog"), shades.split(6), strict=True):
        written(folder / "images" / name, part)
    options = f"crop = {SIZE}\nlabels = true"
    path = config(folder, folder / "images", options)
    result = run("train", path, "--output", folder / "model")
    assert result.exit_code == 0, result.output
    return folder


def windows(folder):
    """The events."""
    return read_images(folder / "images", crop=SIZE, subfolders=True).read(slice(None))


def restored(folder, tmp_path, *flags):
    result = run("sample", folder / "model", "--label", "dog", *flags,
                 "--output", f"{tmp_path}/out/")  # fmt: skip
    assert result.exit_code == 0, result.output
    return read_images(tmp_path / "out").values


def test_samples_are_those_of_python(folder, tmp_path):
    """From a folder of images to a folder of images, one after the other."""
    images = Dataset("windows", windows(folder), bins=256)
    given = written(tmp_path / "y", degraded(images, Downsample(2)).values[:3])
    (tmp_path / "guided.toml").write_text(
        'name = "guided"\nnoise = 0.2\nmethod = "isotropic"\n'
        '[operator]\nname = "downsample"\nfactor = 2'
    )
    flags = ("--given", given, "--estimator", tmp_path / "guided.toml", "--count", 2, "--seed", 5)
    found = restored(folder, tmp_path, *flags, "--png", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 100
    model, y = Model.load(folder / "model"), bin_centres(read_images(given).values, 256)
    moments = {k: torch.tensor(model.facts[k]) for k in ("data_mean", "data_std")}
    guided = Guidance(model.estimator, Downsample(2), y.repeat_interleave(2, 0), 0.2,
                      method="isotropic", **moments)  # fmt: skip
    dogs, noise = torch.ones(6, dtype=torch.int64), torch.Generator().manual_seed(5)
    x = model.solver.sample(guided, (6,), condition=dogs, generator=noise)
    assert torch.equal(found, quantize(x, 256).byte())


def test_what_is_seen_of_all_without_noise_comes_back(folder, tmp_path):
    """To three shades, of images that are given and of photographs alike."""
    table = TABLE.replace("0.1", "1e-4")
    images = windows(folder)[:4]
    given = written(tmp_path / "y", images)
    found = restored(folder, tmp_path, "--given", given, "--estimator", table, "--count", 1)
    assert (found.int() - images.int()).abs().max() <= 3
    (tmp_path / "again").mkdir()
    flags = ("--data", folder / "images" / "cat", "--estimator", table, "--count", 1)
    found = restored(folder, tmp_path / "again", *flags)
    assert (found[:4].int() - images.int()).abs().max() <= 3


def test_photographs_are_damaged_first(folder):
    """By the operator, and with its noise."""
    model, generator = Model.load(folder / "model"), torch.Generator().manual_seed(0)
    table = '{ name = "guided", operator = { name = "downsample", factor = 2 }, noise = 0.3 }'
    found = Restoration.read(model, table, [], [str(folder / "images")], generator).y
    x = bin_centres(windows(folder), 256)
    noise = (found - Downsample(2)(x)) / 0.3
    assert noise.shape == (12, 3, 4, 4)
    assert abs(noise.mean()) < 4 / 576**0.5
    assert abs(noise.std() - 1) < 4 / (2 * 576) ** 0.5


GIVEN = ("--given", "{y}")


@pytest.mark.parametrize(
    ("flags", "table", "message"),
    [
        ((), TABLE, "--estimator: expected one --given, or --data, beside it, got none"),
        (GIVEN, "mask", "--estimator: expected a table, { name = \"...\" }, or a .toml file"),
        (GIVEN, '"mask"', "--estimator: expected a table with a name, got 'mask'"),
        (GIVEN, '{ name = "guided" }', "--estimator: expected a table with an operator"),
        (GIVEN, TABLE.replace('"whole"', '"hole"'), "no plugin 'hole'; did you mean 'whole'?"),
        (GIVEN, TABLE.replace("noise", "nose"), "estimator.nose: unknown; did you mean 'noise'?"),
        (GIVEN, TABLE.replace("guided", "denoising"), "estimator.operator: unknown"),
        (GIVEN, TABLE.replace("whole", "edges"), "operator: expected a function of events"),
        (GIVEN, TABLE.replace('"whole"', '{ name = "downsample", factor = 2 }'),
         "--given: expected events (3, 4, 4), as the operator leaves, got (3, 8, 8) in"),
        (GIVEN, TABLE.replace("whole", "scoresde.data:Whole"), "is an import path"),
        (("--given", "{y}", "--data", "{y}"), TABLE, "--data: expected none beside --given"),
        (GIVEN, None, "--given: expected a model of events with parts ([data.parts]), or an --est"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(flags, table, message, folder, tmp_path):
    given = written(tmp_path / "y", torch.zeros(1, 3, SIZE, SIZE).byte())
    around = () if table is None else ("--estimator", table)
    result = run("sample", folder / "model", *(f.format(y=given) for f in flags), *around,
                 "--output", tmp_path / "x.npy")  # fmt: skip
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1], result.output
    assert "Traceback" not in result.output
