"""What a condition is made of."""

import pytest
import torch
from attrs import evolve
from scipy.ndimage import gaussian_filter

from scoresde.data import (
    Blur,
    Crop,
    Dataset,
    Downsample,
    Edges,
    LazyArray,
    Mask,
    Whole,
    degraded,
    joined,
    select_columns,
)
from scoresde.data.augmentation import mirrored
from scoresde.data.parts import part_slices

IMAGES = torch.randint(256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
MADE = {"downsample": Downsample(4), "crop": Crop(columns=[0, 4]), "mask": Mask(), "edges": Edges(),
        "whole": Whole(), "blur": Blur(2.0)}  # fmt: skip
SHAPES = {"downsample": (3, 2, 2), "crop": (3, 8, 4), "mask": (3, 8, 8), "edges": (1, 8, 8),
          "whole": (3, 8, 8), "blur": (3, 8, 8)}  # fmt: skip
every = pytest.mark.parametrize("name", MADE)


def images(lazy=False, bins=256):
    values = IMAGES if bins == 256 else IMAGES.long() * 257
    if lazy:
        return Dataset("mine", LazyArray(len(values), values.__getitem__), bins=bins)
    return Dataset("mine", values, bins=bins)


@every
def test_events_are_degraded_one_by_one_and_stay_in_range(name):
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64) * 2 - 1
    found = MADE[name](x)
    assert found.shape == (5, *SHAPES[name])
    assert found.dtype == x.dtype
    assert found.abs().max() <= 1
    torch.testing.assert_close(found[2:3], MADE[name](x[2:3]))
    before = x.clone()
    MADE[name](x)
    assert torch.equal(x, before)


@every
@pytest.mark.parametrize("bins", [256, 65536])
def test_integers_stay_integers_of_their_bins(name, bins):
    data = images(bins=bins)
    found = degraded(data, MADE[name])
    assert found.bins == bins
    assert found.values.dtype == data.values.dtype
    assert tuple(found.values.shape) == (7, *SHAPES[name])


@every
def test_stored_events_are_degraded_as_they_are_read(name):
    lazy = degraded(images(lazy=True), MADE[name])
    assert lazy.lazy
    rows = torch.tensor([5, 1, 1])
    assert torch.equal(lazy.read(rows), degraded(images(), MADE[name]).read(rows))


@pytest.mark.parametrize("bins", [256, 65536])
def test_what_is_whole_is_what_it_was(bins):
    assert torch.equal(degraded(images(bins=bins), Whole()).values, images(bins=bins).values)


def test_means_are_rounded_to_the_nearest_integer():
    values = torch.tensor([0, 1, 255, 255]).byte().reshape(1, 1, 2, 2)
    found = degraded(Dataset("mine", values, bins=256), Downsample(2))
    assert found.values.flatten().tolist() == [128]  # of 127.75


def test_a_mask_hides_the_quarter_in_the_middle():
    x = torch.ones(1, 1, 8, 8)
    assert (Mask()(x) == 0).sum() == 16
    assert (Mask(columns=[4, 8], rows=[0, 8])(x)[..., 4:] == 0).all()
    assert (Mask(columns=[4, 8], rows=[0, 8])(x)[..., :4] == 1).all()


@pytest.mark.parametrize("width", [0.3, 1.0, 3.7])
def test_a_blur_is_scipys(width):
    """Of every channel by itself, where it reaches beyond the image, too."""
    x = torch.rand(2, 3, 5, 9, dtype=torch.float64) * 2 - 1
    wanted = gaussian_filter(x.numpy(), (0, 0, width, width), mode="nearest")
    torch.testing.assert_close(Blur(width)(x), torch.from_numpy(wanted), rtol=0, atol=1e-12)


def test_edges_are_where_shades_change():
    x = torch.full((1, 1, 8, 8), -0.5)
    assert (Edges()(x) == -1).all()
    x[..., 4:] = 0.5
    found = Edges()(x)[0, 0]
    assert torch.equal(found, found[:1].expand(8, 8))
    assert found[0].argmax() in (3, 4)
    assert found[0, 0] < -0.9
    torch.testing.assert_close(Edges()(x.mT)[0, 0], found.mT)
    grey = x.expand(-1, 3, -1, -1)
    torch.testing.assert_close(Edges()(grey)[0, 0], found)


def test_parts_lie_one_after_the_other():
    parts = {name: degraded(images(), MADE[name]) for name in ("edges", "whole", "downsample")}
    data = joined("mine", parts)
    assert data.parts == {name: SHAPES[name] for name in parts}
    assert data.bins == 256
    for name, place in part_slices(data.parts).items():
        assert torch.equal(data.values[:, place], parts[name].values.flatten(1))
    stored = joined("mine", {**parts, "whole": images(lazy=True)})
    assert stored.lazy
    assert torch.equal(stored.read(slice(2, 4)), data.read(slice(2, 4)))
    assert data.subset("some", torch.tensor([3])).parts == data.parts


def test_columns_of_a_table():
    values = torch.arange(6.0).reshape(2, 3)
    table = Dataset("mine", values, columns=("a", "b", "c"))
    data = joined(
        "mine", {"y": select_columns(table, ["c"]), "x": select_columns(table, ["a", "b"])}
    )
    assert data.columns == ("c", "a", "b")
    assert torch.equal(data.values, values[:, [2, 0, 1]])
    lazy = Dataset("mine", LazyArray(2, values.__getitem__), columns=("a", "b", "c"))
    assert torch.equal(select_columns(lazy, ["c", "a"]).read(slice(2)), values[:, [2, 0]])


@pytest.mark.parametrize("lazy", [False, True])
def test_labels_stay_with_their_events(lazy):
    labels = torch.arange(7)
    plain = images(lazy)
    data = Dataset("mine", plain.values, bins=256, condition=labels, classes=tuple("abcdefg"))
    pairs = joined("mine", {"y": degraded(data, Downsample(2)), "x": data})
    assert pairs.classes == data.classes
    some = pairs.subset("some", torch.tensor([4, 2]))
    assert some.condition.tolist() == [4, 2]


@every
def test_what_is_mirrored(name):
    """Parts whose mirror image is that of the mirrored image; others are refused."""
    data = Dataset("mine", IMAGES, bins=256, flip=True)
    if name == "crop":
        with pytest.raises(ValueError, match="flip: expected False of parts"):
            degraded(data, MADE[name])
        return
    pairs = joined("mine", {"y": degraded(data, MADE[name]), "x": data})
    assert pairs.flip
    assert pairs.shapes == [SHAPES[name], (3, 8, 8)]
    turned = joined("mine", {"y": degraded(evolve(data, values=IMAGES.flip(-1)), MADE[name]),
                             "x": evolve(data, values=IMAGES.flip(-1))})  # fmt: skip
    found = mirrored(pairs.values, pairs.shapes)
    assert (found.int() - turned.values.int()).abs().max() <= 1  # rounded sums
    with pytest.raises(ValueError, match=r"parts\.x\.flip: expected True"):
        joined("mine", {"y": data, "x": images()})


TABLE = Dataset("mine", torch.zeros(7, 2), columns=("a", "b"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Downsample(1), "factor: expected a whole number of at least 2"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 8, 8)), r"factor: .*divides .*\(8, 8\), got 3"),
        (lambda: Downsample(2)(torch.zeros(1, 8)), r"event_shape: .*images.*got \(8,\)"),
        (lambda: Crop(rows=[4, 2]), r"rows: expected two whole numbers.*got \[4, 2\]"),
        (lambda: Crop(rows=[0]), "rows: expected two whole numbers"),
        (lambda: Crop(rows=3), "rows: expected two whole numbers"),
        (lambda: Crop(columns=[0, 9])(torch.zeros(1, 1, 8, 8)), "columns: expected at most 8"),
        (lambda: Mask(columns=[0, 9])(torch.zeros(1, 1, 8, 8)), "columns: expected at most 8"),
        (lambda: Edges(width=0.0), "width: expected a positive"),
        (lambda: Blur(width=-1.0), "width: expected a positive"),
        (lambda: Edges(strong=-1), "strong: expected a positive"),
        (lambda: degraded(images(), lambda x: x.sum()), r"parts: expected 7 events of a part"),
        (lambda: degraded(images(), lambda x: x[:2]), "parts: expected 7 events of a part"),
        (lambda: select_columns(images(), ["a"]), r"parts: expected a table.*\(3, 8, 8\)"),
        (lambda: select_columns(TABLE, ["d"]), "parts: no column 'd'"),
        (lambda: joined("mine", {"x": TABLE}), "parts: expected two or more"),
        (lambda: joined("mine", {"x": TABLE, "y": images()}), r"parts\.y: expected 7 events of to"),
        (
            lambda: joined("m", {"x": TABLE, "y": TABLE.subset("s", torch.arange(2))}),
            r"parts\.y: expected 7 .*got 2",
        ),
        (lambda: Dataset("mine", torch.zeros(1, 5), parts={"x": (2,), "y": (2,)}), "parts: .*4"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
