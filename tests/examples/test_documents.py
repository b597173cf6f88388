"""What documents show runs, and what they point to is there."""

import re
import sys
from pathlib import Path

import attrs
import pytest

from estimators import posterior_fit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "examples" / "plugin")
    for page in sorted(folder.glob("*.md"))
]
CODE = {
    str(page.relative_to(ROOT)): "".join(
        re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    )
    for page in PAGES
    if page != ROOT / "README.md"
}


@pytest.fixture
def plugin_by_name(monkeypatch):
    """The example plugin's names, without installing it."""
    from scoresde import plugins

    folder = ROOT / "examples" / "plugin"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    own = {
        (group.removeprefix("scoresde."), name): value
        for group, entries in project["entry-points"].items()
        for name, value in entries.items()
    }
    get = plugins.get
    monkeypatch.setattr(
        plugins, "get", lambda g, n, imports=False: get(g, own.get((g, n), n), imports=True)
    )
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@pytest.mark.usefixtures("plugin_by_name")
@pytest.mark.parametrize("page", [page for page, code in CODE.items() if code])
def test_code_runs(page, monkeypatch):
    """A page from top to bottom, where training is short and simulations are few."""
    default = posterior_fit.default_training
    monkeypatch.setattr(
        posterior_fit, "default_training", lambda n: attrs.evolve(default(n), steps=20)
    )
    code = re.sub(r"Training\(steps=\d+", "Training(steps=2", CODE[page])
    code = code.replace("10_000", "200")
    exec(compile(code, page, "exec"), {})


def test_the_readme_shows_the_ten_lines():
    _, _, code = (ROOT / "examples" / "ten_lines.py").read_text().partition('"""\n\n')
    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_files_that_the_walks_name_are_there():
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    named = re.findall(r"`((?:scoresde|estimators|solvers)/[\w/]*(?:\.py)?)`", page)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
