"""Every class names the works it stands on, and a model those of its parts."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

import estimators
import scoresde
import solvers
from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import (
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Hutchinson,
    Identity,
    ScoreDistribution,
    citation,
)
from scoresde.app.model import Model
from scoresde.references import _bibliography
from solvers import DDIM, ExponentialMultistep, Heun, Langevin

ENTRIES = _bibliography("scoresde")


def keys(*parts):
    return re.findall(r"^@\w+\{(.*),$", citation(*parts), re.M)


def classes():
    for package in (scoresde, estimators, solvers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for cls in vars(importlib.import_module(found.name)).values():
                if isinstance(cls, type) and cls.__module__ == found.name:
                    yield cls


CLASSES = sorted(classes(), key=lambda cls: cls.__qualname__)
DIFFUSION = {"anderson1982", "song2021", "batzolis2022"}


def test_what_a_docstring_credits_is_a_source():
    """By surname and year: Song et al. 2021 is ``song2021``."""
    others = r"(?:, [A-Z][a-z]+)*(?: and [A-Z][A-Za-z]+| et al\.)?"
    for cls in CLASSES:
        text = re.sub(r"^Args:.*?\n\n", "", f"{inspect.getdoc(cls)}\n\n", flags=re.DOTALL | re.M)
        found = re.findall(rf"\b([A-Z][a-z]+){others} ((?:19|20)\d\d\w?)", " ".join(text.split()))
        credited = {f"{name.lower()}{year}" for name, year in found}
        named = {key for owner in cls.__mro__ for key in vars(owner).get("references", "").split()}
        assert credited <= named, cls
        assert named <= ENTRIES.keys(), cls


def test_every_entry_is_whole_and_used():
    used = {key for cls in CLASSES for key in vars(cls).get("references", "").split()}
    assert used == ENTRIES.keys()
    for key, entry in ENTRIES.items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.M))
        assert {"title", "author", "year"} <= fields.keys(), key
        assert key.rstrip("ab").endswith(fields["year"]), key
        assert entry.count("{") == entry.count("}"), key
        published = {"journal", "booktitle", "eprint"} & fields.keys()
        assert published, key
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]), key


def test_a_model_cites_its_parts_once():
    sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), levels=1))
    model = Denoising(sde, ResidualMLP((1, 4, 4), 8, 1))
    cited = keys(model, DDIM(4, corrector=Langevin()))
    assert len(cited) == len(set(cited))
    assert set(cited) == DIFFUSION | {
        "vincent2011", "karras2022", "kingma2021", "nichol2021", "mallat1989", "daubechies1988",
        "song2020", "lu2022",
        "he2016", "perez2018",
    }  # fmt: skip


def test_whatever_holds_a_part():
    sde = DiagonalSDE(VP(), Identity((2,)))
    gaussian = estimators.Gaussian(sde, torch.zeros(2), torch.eye(2))
    only = DIFFUSION | {"ho2020"}
    assert set(keys(gaussian)) == only
    assert set(keys({"a": [(gaussian,)]})) == only
    distribution = ScoreDistribution(gaussian, Heun(), trace=Hutchinson())
    assert set(keys(distribution)) == only | {"chen2018", "karras2022", "hutchinson1990"}
    model = Model(gaussian, ExponentialMultistep(), {}, {})
    assert set(keys(model)) == only | {"lu2022b", "zhao2023"}
    assert keys() == keys(3, "a", nn.Linear(1, 1), None) == []


def test_stages_of_a_multi_scale_model():
    sde = DiagonalSDE(VP(), Haar((2,), levels=1), drop=[1.0, 0.5])
    cited = keys(MultiScale(sde, [ResidualMLP((1,), 4, 1), ResidualMLP((2,), 4, 1)]))
    assert {"vincent2011", "mallat1989", "ho2020"} < set(cited)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package with a solver and a bibliography of its own."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from solvers import Heun\nclass Mine(Heun):\n    references = 'me2026 chen2018'\n"
        "class Wrong(Heun):\n    references = 'mee2026'\n"
    )
    (folder / "citations.bib").write_text("@misc{me2026,\n  title = {Mine},\n}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("stranger")
    del sys.modules["stranger"]
    _bibliography.cache_clear()


def test_a_stranger_names_references_in_the_same_way(stranger):
    assert keys(stranger.Mine()) == ["me2026", "chen2018", "karras2022"]
    assert "title = {Mine}" in citation(stranger.Mine())
    with pytest.raises(LookupError, match=r"Wrong.references: no entry 'mee2026'.*'me2026'"):
        citation(stranger.Wrong())


def test_what_has_no_package_may_cite_ours():
    @attrs.frozen
    class Own(Heun):
        references = "song2023"

    Own.__module__ = "__main__"
    assert keys(Own()) == ["song2023", "karras2022"]


def test_the_citation_file_is_of_this_version_and_agrees():
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.M)[1] == scoresde.__version__
    references = text.split("- type: article")[1:]
    assert references
    for reference in references:
        title = re.search(r"title: (.*)", reference)[1]
        year = re.search(r"year: (\d+)", reference)[1]
        number = re.search(r"arXiv:(\S+)", reference)[1]
        (entry,) = (entry for entry in ENTRIES.values() if f"eprint = {{{number}}}" in entry)
        assert f"title = {{{title}}}" in entry
        assert f"year = {{{year}}}" in entry
