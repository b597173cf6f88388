"""Sources: what reads them, and their options."""

import pytest

from scoresde.data import load


def test_missing_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean 'digits'.*patches"):
        load("digit")
    for name in ("a.npy", "folder", "folder/a.npz"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            load(tmp_path / name)


def test_options_of_another_source_are_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        load("digits", size=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        load(tmp_path, key="x")
