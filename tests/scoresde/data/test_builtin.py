"""Built-in sets."""

import sys

import pytest
import torch

from scoresde.data import load, patches


def test_digits():
    data = load("digits")
    assert (data.values.shape, data.bins, int(data.values.max())) == ((1797, 1, 8, 8), 17, 16)


def test_patches_are_seeded_and_disjoint():
    data = load("patches", size=16, seed=3)
    assert data.values.shape[1:] == (1, 16, 16)
    assert len(data.values) > 1900
    assert torch.equal(data.values, patches(16, seed=3).values)
    assert not torch.equal(data.values[:9], patches(16, seed=4).values[:9])
    assert len(patches(16, stride=8).values) > 3.5 * len(data.values)
    assert patches(427).values.shape[1:] == (1, 427, 427)
    pixels = 2 * 427 * 640
    assert data.values.numel() <= pixels
    for options in ({"size": 0}, {"size": 428}, {"stride": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            patches(**options)


@pytest.mark.parametrize("name", ["digits", "patches"])
def test_without_scikit_learn(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[data\]'"):
        load(name)
