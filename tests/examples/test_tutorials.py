"""Tutorials run as a reader pastes them: cell by cell, of what is shown, and from anywhere."""

import ast
import re
import textwrap

import matplotlib as mpl
import pytest
from test_documents import ROOT, tomllib

DOCS = ROOT / "docs"
PLUGIN = ROOT / "examples" / "plugin"
CELL = re.compile(
    r"^```\{code-cell\} python\n(?P<options>---\n.*?^---\n|(?::[^\n]*\n)*)(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PAGES = {
    str(page.relative_to(DOCS)): [*CELL.finditer(page.read_text())]
    for page in sorted(DOCS.rglob("*.md"))
    if "{code-cell}" in page.read_text()
}
SHORT = ["tutorials/data.md", "tutorials/extending.md"]
"""What takes seconds where training is short. All run while the site is built."""
each_page = pytest.mark.parametrize("page", PAGES)


def code(page):
    return "\n".join(cell["code"] for cell in PAGES[page])


@pytest.mark.parametrize("page", SHORT)
def test_a_page_runs_as_it_is_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pasted = re.sub(r"\bsteps ?= ?[3-9]\d\d\b", "steps = 2", code(page))
    pasted = re.sub(r"\brange\(3000\)", "range(300)", pasted).replace("count=8", "count=1")
    # all laws are asked where the plugin is installed
    pasted = pasted.replace('name.startswith("test_")', 'name.startswith("test_the_")')
    with mpl.rc_context():
        exec(compile(pasted, page, "exec"), {"__name__": "__main__"})
        import matplotlib.pyplot as plt

        plt.close("all")


@each_page
def test_nothing_is_hidden(page):
    """Neither what a reader would have to paste, nor what is only in this project's folder."""
    for cell in PAGES[page]:
        assert "remove" not in cell["options"]
        assert "../" not in cell["code"]
    assert len(PAGES[page]) == (DOCS / page).read_text().count("{code-cell}")


DRAWS = re.compile(
    r"\bplt\.(?!rcParams|subplots\(len)|\bplots\.\w+\(|\bpanels\(|\bshow\("
    r"|\b(?:rank_histograms|coverage_curves|corner)\("
)


def draws(source):
    """Whether a cell draws, rather than says how."""
    tree = ast.parse(source)
    tree.body = [v for v in tree.body if not isinstance(v, ast.FunctionDef | ast.ImportFrom)]
    return bool(DRAWS.search(ast.unparse(tree)))


@each_page
def test_every_figure_is_described(page):
    """The build compares these promises with what is drawn."""
    for cell in PAGES[page]:
        assert draws(cell["code"]) == ("alt: " in cell["options"]), cell["code"]


def parts(source):
    """Classes and functions of a module, by name."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {v.name: ast.dump(v) for v in ast.parse(source).body if isinstance(v, kinds)}


def test_the_plugin_is_the_tutorials():
    shown = parts(code("tutorials/extending.md"))
    files = [*(PLUGIN / "scoresde_example_plugin").glob("*.py"), PLUGIN / "tests" / "test_laws.py"]
    own = {name: body for file in files for name, body in parts(file.read_text()).items()}
    assert shown == own


def test_the_table_is_the_tutorials():
    (shown,) = re.findall(r'write_text\("""(.*?)"""\)', code("tutorials/data.md"), re.DOTALL)
    own = (ROOT / "examples" / "table.toml").read_text()
    assert tomllib.loads(shown) == tomllib.loads(own)


def test_cells_are_found_and_taken_apart():
    (cell,) = CELL.finditer(
        textwrap.dedent("""\
            ```{code-cell} python
            ---
            tags: [hide-input]
            ---
            x = 1
            ```
            """)
    )
    assert (cell["options"], cell["code"]) == ("---\ntags: [hide-input]\n---\n", "x = 1\n")
    assert draws("figure = plots.image_grid(x)")
    assert not draws("def show(x):\n    plt.plot(x)")
