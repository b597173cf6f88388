"""Images are mirrored in training and nowhere else, and what belongs to them with them."""

import numpy as np
import pytest
import torch

from scoresde.data import Dataset, LazyArray, load, split
from scoresde.data.augmentation import flipped, mirrored
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
        assert not load(source, **options).flip
    np.save(tmp_path / "x.npy", np.zeros((4, 8), "f4") + 0.5)
    with pytest.raises(ValueError, match="flip: expected images"):
        load(tmp_path / "x.npy", flip=True)
