"""Images are mirrored and cut in training and nowhere else, and what belongs to them with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app.facts import facts_of
from scoresde.data import Dataset, LazyArray, Mask, degraded, image_items, joined, load, split
from scoresde.data.augmentation import cropped, flipped, mirrored
from scoresde.data.events import Batches, events
from scoresde.data.pairs import Pairs

IMAGES = torch.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_left_is_right():
    """Of images and volumes: the last axis is turned, others and the order are not."""
    assert torch.equal(mirrored(IMAGES, [(3, 2, 5)]), IMAGES.flip(-1))
    volumes = IMAGES.reshape(1, 2, 3, 2, 5)
    assert torch.equal(mirrored(volumes, [(2, 3, 2, 5)]), volumes.flip(-1))


def test_parts_are_mirrored_each_by_itself():
    """Those that are images."""
    small, vector = IMAGES[:, :1, :1, :3], torch.tensor([[100, 101, 102], [103, 104, 105]])
    joint = torch.cat([small.flatten(1), vector, IMAGES.flatten(1)], 1)
    found = mirrored(joint, [(1, 1, 3), (3,), (3, 2, 5)]).split([3, 3, 30], 1)
    assert torch.equal(found[0].reshape(small.shape), small.flip(-1))
    assert torch.equal(found[1], vector)
    assert torch.equal(found[2].reshape(IMAGES.shape), IMAGES.flip(-1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_every_other_event_at_random(dtype):
    """As a whole, and each by itself."""
    images = IMAGES[:1].to(dtype).expand(1000, -1, -1, -1)
    found = flipped(Pairs(images), [(3, 2, 5)], generator()).values
    assert found.dtype == dtype
    turned = (found == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(turned, ~(found == images).flatten(1).all(1))
    assert 0.45 < turned.float().mean() < 0.55
    again, other = (flipped(Pairs(images), [(3, 2, 5)], generator(i)).values for i in (0, 1))
    assert torch.equal(found, again)
    assert not torch.equal(found, other)


def test_events_with_generators_of_their_own_do_not_depend_on_their_company():
    images = IMAGES[:1].expand(20, -1, -1, -1)
    found = flipped(Pairs(images), [(3, 2, 5)], [generator(i) for i in range(20)]).values
    alone = flipped(Pairs(images[:1]), [(3, 2, 5)], [generator(7)]).values
    assert torch.equal(found[7:8], alone)


@pytest.mark.parametrize(
    "condition",
    [torch.arange(50), torch.arange(200.0).reshape(50, 4), torch.rand(50, 1, 2, 3)],
)
def test_a_map_is_mirrored_with_its_event(condition):
    """Labels and vectors are not."""
    images = IMAGES[:1].expand(50, -1, -1, -1)
    found = flipped(Pairs(images, condition), [(3, 2, 5)], generator())
    turned = (found.values != images).flatten(1).any(1)
    wanted = condition.clone()
    if condition.ndim == 4:
        wanted[turned] = condition[turned].flip(-1)
    assert 0 < turned.sum() < 50
    assert torch.equal(found.condition, wanted)


@pytest.mark.parametrize(
    ("values", "condition", "message"),
    [
        (torch.zeros(4, 8), None, r"flip: expected images .*, got events \(8,\)"),
        (torch.zeros(4, 8, 8), None, r"flip: expected images .*, got events \(8, 8\)"),
        (
            torch.zeros(4, 1, 8, 8),
            torch.zeros(4, 8, 8),
            r"flip: expected conditions that are .*, got",
        ),
    ],
)
def test_what_has_no_mirror_image(values, condition, message):
    with pytest.raises(ValueError, match=message):
        Dataset("mine", values, condition=condition, flip=True)
    with pytest.raises(ValueError, match="flip: expected one of False, True, got 1"):
        Dataset("mine", values, flip=1)


def test_what_is_held_out_is_left_alone():
    train, held_out = split(Dataset("mine", torch.randn(10, 1, 4, 4), flip=True), 0.5)
    assert train.flip
    assert not held_out.flip
    assert train.subset("part", torch.arange(3)).flip


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_measured_is_the_distribution_that_is_learned(lazy):
    """Mirror images count as much as the events: means are even, and so are moments."""
    images = torch.randint(4, (30, 1, 2, 6))
    stored = LazyArray(30, lambda rows: images[rows]) if lazy else images
    plain, flip = (Dataset("mine", stored, bins=4, flip=flip) for flip in (False, True))
    assert torch.equal(torch.cat([*Batches(plain)]), events(plain, generator()))
    x = torch.cat([*Batches(flip)])
    torch.testing.assert_close(x.mean(0).flip(-1), x.mean(0))
    assert torch.equal(x[:30], events(plain, generator()))
    assert torch.equal(x[30:], x[:30].flip(-1))


def test_every_reader_of_images_takes_it(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8, 8), np.uint8))
    for source, options in ((tmp_path / "x.npy", {}), (tmp_path, {}), ("patches", {"size": 64})):
        assert load(source, flip=True, **options).flip
        assert load(source, crop=4, **options).event_shape[-2:] == (4, 4)
        assert not load(source, **options).flip
    assert image_items([Image.new("L", (8, 9))], crop=4).event_shape == (1, 4, 4)
    np.save(tmp_path / "x.npy", np.zeros((4, 8), "f4") + 0.5)
    with pytest.raises(ValueError, match="flip: expected images"):
        load(tmp_path / "x.npy", flip=True)


LARGE = torch.arange(35).reshape(1, 1, 5, 7)  # of which every window has another first number
SIZE = (4, 3)


def places(windows):
    """Where windows of `LARGE` are; they are nothing else."""
    top, left = windows[:, 0, 0, 0] // 7, windows[:, 0, 0, 0] % 7
    rows, columns = torch.arange(4)[:, None], torch.arange(3)
    numbers = 7 * (top[:, None, None] + rows) + left[:, None, None] + columns
    assert torch.equal(windows[:, 0], numbers.to(windows.dtype))
    return 5 * top + left


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_every_window_is_as_likely_as_others(dtype):
    images = LARGE.to(dtype).expand(2000, -1, -1, -1)
    found = cropped(Pairs(images), SIZE, generator()).values
    assert found.dtype == dtype
    assert found.shape == (2000, 1, *SIZE)
    counts = places(found).long().bincount(minlength=10)
    assert len(counts) == 10
    assert ((counts - 200).abs() < 5 * 180**0.5).all()
    again, other = (cropped(Pairs(images), SIZE, generator(i)).values for i in (0, 1))
    assert torch.equal(found, again)
    assert not torch.equal(found, other)


@pytest.mark.parametrize("channels", [None, 4, (2, 5, 7)])
def test_a_map_is_cut_as_its_event_is(channels):
    """Labels and vectors are not."""
    condition = torch.arange(50)
    if channels == 4:
        condition = torch.rand(50, 4)
    elif channels:
        condition = LARGE.expand(50, 2, -1, -1) + torch.tensor([100, 200])[:, None, None]
    data = Dataset("mine", LARGE.expand(50, -1, -1, -1), 35, condition=condition, crop=SIZE)
    assert data.event_shape == (1, *SIZE)
    for found in (cropped(data.stored(slice(None)), SIZE, generator()), data.pairs(slice(None))):
        values, told = found
        if channels == (2, 5, 7):
            assert facts_of(data)["condition_shape"] == [2, *SIZE]
            assert torch.equal(told, values + torch.tensor([100, 200])[:, None, None])
        else:
            assert torch.equal(told, condition)
    assert places(found.values).tolist() == [2] * 50, "the middle"


@pytest.mark.parametrize("lazy", [False, True])
def test_windows_are_for_training_alone(lazy):
    """And moments are of those, mirrored or not."""
    images = LARGE.expand(300, -1, -1, -1)
    stored = LazyArray(300, lambda rows: images[rows]) if lazy else images
    data = Dataset("mine", stored, 35, crop=SIZE, flip=True)
    train, held_out = split(data, 0.5)
    assert train.crop == held_out.crop == SIZE
    assert places(held_out.read(slice(9))).tolist() == [2] * 9
    x = torch.cat([*Batches(data)])
    assert torch.equal(x, torch.cat([*Batches(data)]))
    assert torch.equal(x[300:], x[:300].flip(-1))
    shades = ((x[:300] + 1) / 2 * 35).floor()
    assert len(places(shades).unique()) == 10


@pytest.mark.parametrize(
    ("values", "size", "condition", "message"),
    [
        (torch.zeros(4, 1, 8, 8), 9, None, r"crop: expected images .*of \(9, 9\) or more, got"),
        (torch.zeros(4, 1, 8, 6), (6, 7), None, r"crop: expected images .*events \(1, 8, 6\)"),
        (torch.zeros(4, 8, 8), 4, None, r"crop: expected images .*, got events \(8, 8\)"),
        (torch.zeros(4, 1, 8, 8), (4, 4, 4), None, "crop: expected a side, or height and width"),
        (torch.zeros(4, 1, 8, 8), 4.0, None, "crop: expected a whole number"),
        (torch.zeros(4, 1, 8, 8), 4, torch.zeros(4, 1, 4, 4), r"crop: .*maps \(channels, 8, 8\)"),
    ],
)
def test_what_has_no_windows(values, size, condition, message):
    with pytest.raises(ValueError, match=message):
        Dataset("mine", values, condition=condition, crop=size)


def test_parts_are_of_whole_images():
    data = Dataset("mine", torch.zeros(4, 1, 8, 8), crop=4)
    for make in (lambda: degraded(data, Mask()), lambda: joined("both", {"y": data, "x": data})):
        with pytest.raises(ValueError, match=r"crop: expected none of events with parts"):
            make()
