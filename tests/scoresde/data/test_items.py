"""Data sets of other libraries, as they are: torch's, torchvision's, Hugging Face's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Identity, LogLinear
from scoresde.data import image_items, split
from scoresde.data.events import as_dataset
from scoresde.training import Training


class Columns:
    """What is used of ``datasets.Dataset``: rows as mappings, ``features``, ``select_columns``."""

    def __init__(self, features, rows):
        self.features, self.rows = features, rows

    @property
    def column_names(self):
        return list(self.features)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        assert type(key) is int
        return dict(self.rows[key])

    def select_columns(self, names):
        features = {name: self.features[name] for name in names}
        return Columns(features, [{name: row[name] for name in names} for row in self.rows])


class Rows(torch.utils.data.Dataset):
    """Map-style, of torch, with names of classes as torchvision has them."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


COUNT = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
LABELS = [0, 2, 1, 1, 2, 0]
NAMES = ["cat", "dog", "owl"]
KIND, LABEL = SimpleNamespace(), SimpleNamespace(names=NAMES)


def hugging_face(images=IMAGES, **columns):
    """With more columns, each a feature and its values."""
    features = {"image": KIND, "label": LABEL} | {name: kind for name, (kind, _) in columns.items()}
    more = [{name: values[i] for name, (_, values) in columns.items()} for i in range(COUNT)]
    rows = zip(images, LABELS, more, strict=True)
    return Columns(features, [{"image": image, "label": label} | row for image, label, row in rows])


SOURCES = {
    "hugging face": hugging_face,
    "torchvision": lambda: Rows([*zip(IMAGES, LABELS, strict=True)], NAMES),
    "a loader": lambda: torch.utils.data.DataLoader(SOURCES["torchvision"]()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_with_labels_as_they_are(name):
    """In 8 bits, which they have, where they are."""
    data = as_dataset("pets", SOURCES[name]())
    assert (data.name, data.bins, data.lazy, data.classes) == ("pets", 256, True, tuple(NAMES))
    pairs = split(data, 0.5)[0].pairs(slice(None))
    places = [
        np.abs(PIXELS.transpose(0, 3, 1, 2) - row.numpy()[None]).sum((1, 2, 3)).argmin()
        for row in pairs.values
    ]
    assert torch.equal(pairs.values, torch.from_numpy(PIXELS[places].transpose(0, 3, 1, 2)))
    assert pairs.condition.tolist() == [LABELS[place] for place in places]


@pytest.mark.parametrize("lazy", [False, True])
def test_options_of_images(lazy):
    """As of images in files; eager ones are in memory."""
    sizes = [(9, 4), (4, 9), (30, 30), (4, 4), (5, 8), (8, 5)]
    images = [image.resize(size) for image, size in zip(IMAGES, sizes, strict=True)]
    data = image_items(hugging_face(images), mode="L", size=4, resize="pad", lazy=lazy, flip=True)
    assert (data.values.shape, data.lazy, data.flip) == (torch.Size([COUNT, 1, 4, 4]), lazy, True)
    assert data.read(slice(1))[0, 0, :, 0].max() > 0
    assert data.read(slice(1, 2))[0, 0, :, 0].max() == 0, "a high image is padded at its sides"
    assert data.pairs(slice(None)).condition.tolist() == LABELS


def test_images_alone():
    assert as_dataset("mine", Rows(IMAGES)).condition is None
    chosen = hugging_face().select_columns(["image"])
    assert as_dataset("mine", chosen).condition is None
    assert as_dataset("mine", chosen).read(slice(None)).shape == (COUNT, 3, 4, 5)


def test_grey_images_have_one_channel():
    grey = [image.convert("L") for image in IMAGES]
    assert as_dataset("mine", Rows(grey)).values.shape == (COUNT, 1, 4, 5)
    assert image_items(Rows(grey), mode="RGB").values.shape == (COUNT, 3, 4, 5)
    mixed = Rows([*grey[:3], *IMAGES[3:]])
    with pytest.raises(ValueError, match=r"item 3: expected a grey image, as the first .* got RGB"):
        as_dataset("mine", mixed).read(slice(None))
    assert image_items(mixed, mode="L").values.shape == (COUNT, 1, 4, 5)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_columns_of_numbers(kind):
    """An array beside a number: whichever comes first."""
    rows = [{"label": label, "x": kind([0.5 * i, 1.0])} for i, label in enumerate(LABELS)]
    data = as_dataset("mine", Columns({"label": LABEL, "x": KIND}, rows))
    pairs = data.pairs(slice(None))
    assert pairs.values[:, 0].tolist() == [0.5 * i for i in range(COUNT)]
    assert (pairs.condition.tolist(), data.classes) == (LABELS, tuple(NAMES))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hugging_face(text=(KIND, "abcdef")), r"got columns image, label, text \(select_columns"),
        (hugging_face(mask=(KIND, IMAGES)), "one image or array, and at most one condition"),
        (Columns({"a": KIND}, [{"a": 1.0}] * 3), r"one image or array, .* got columns a"),
        (Columns({"a": KIND, "b": KIND}, [{"a": [1.0], "b": [2.0]}] * 3), "got columns a, b"),
        (Rows([(IMAGES[0], 1, 2)]), "items of 3 parts"),
        (Rows([]), "at least one event, got none"),
    ],
)
def test_what_is_not_clear_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        as_dataset("mine", data)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([*IMAGES[:5], IMAGES[5].resize((3, 3))], ValueError, r"size=64\) resizes.*of one shape"),
        ([*IMAGES[:5], IMAGES[5].convert("RGBA").resize((5, 4)).point(lambda v: v // 2)],
         ValueError, "item 5: expected no transparency, or background="),
        ([*IMAGES[:5], IMAGES[5].convert("CMYK")], ValueError, "item 5: expected grey or RGB"),
        ([*IMAGES[:5], IMAGES[5].convert("F")], ValueError, "item 5: expected 8 bits per channel"),
    ],
)  # fmt: skip
def test_images_that_are_refused_are_named(images, error, message):
    with pytest.raises(error, match=message):
        image_items(hugging_face(images))


def test_only_images_are_images():
    with pytest.raises(ValueError, match="images: expected images of Pillow, got Tensor"):
        image_items(Rows([torch.zeros(2)]))


class Labelled(ResidualMLP):
    def __init__(self):
        super().__init__((3, 4, 5), width=8, depth=1, condition_dim=3)

    def forward(self, x, noise_level, condition=None):
        return super().forward(x, noise_level, torch.eye(3).to(x)[condition])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_takes_them(dtype):
    """And learns what it learns from a tensor, bit for bit."""
    found = []
    for data in (hugging_face(), image_items(hugging_face())):
        torch.manual_seed(0)
        model = Denoising(DiagonalSDE(LogLinear(), Identity((3, 4, 5))), Labelled()).to(dtype)
        Training(steps=2, batch_size=4).fit(model, data, progress=False)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*found)
