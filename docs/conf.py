"""How the site is built: ``tox run -e docs``. Needs no network, neither to build nor to read."""

from __future__ import annotations

import collections
import importlib
import inspect
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext import intersphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))  # for what is written for this site

from modules import expanded

PACKAGES = ("scoresde", "estimators", "solvers")

project = "scoresde"
author = "The scoresde developers"
copyright = author
release = metadata.version("scoresde")

extensions = [
    "figures",
    "modules",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

# names that lead nowhere stop the build; those of other projects are in lists of our own, as the
# build asks no network
nitpicky = True
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "numpy.ndarray",
        "numpy.dtype",
        "torch.utils._python_dispatch.TorchDispatchMode",
        "PIL.Image.Image",
        "numpy.random._generator.Generator",
        "Array",
        "Figure",
    )
]
nitpick_ignore_regex = [("py:class", r".*\.(_\w+|[A-Z])")]  # private names, type variables
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.inv"),
    "pyro": ("https://docs.pyro.ai/en/stable", "inventories/pyro.inv"),
}
# where something is documented under another name than that of the module it is in
PUBLIC = {
    "pathlib._local.Path": "pathlib.Path",
    "pathlib._local.PurePath": "pathlib.PurePath",
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.modules.sparse.Embedding": "torch.nn.Embedding",
    "torch.nn.parameter.Parameter": "torch.nn.Parameter",
    "torch.optim.adamw.AdamW": "torch.optim.AdamW",
}

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"

# everything is shown where it is defined
viewcode_follow_imported_members = False

napoleon_numpy_docstring = False
# annotated attributes are members already: a second entry would be a duplicate
napoleon_use_ivar = True
napoleon_use_rtype = False
# what precedes a colon in the first line of a variable's is no type
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end
napoleon_custom_sections = [("Source", "References")]

# tutorials run while the site is built, and stop it where they fail
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True  # as a reader does, without the files of this project beside it
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_code_prompt_show = "Code"
nb_code_prompt_hide = "Code"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "scoresde"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def literal_formulas(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Indented paragraphs of a docstring are formulas, to be shown as they are."""
    out: list[str] = []
    for line in lines:
        last = next((old for old in reversed(out) if old.strip()), "")
        opens = line.startswith("    ") and out and not out[-1].strip()
        if opens and last and not last[0].isspace() and not last.rstrip().endswith("::"):
            out += [".. code-block:: text", ""]
        out.append(line)
    lines[:] = out


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out fields of named tuples, and overrides that only refer to their class."""
    text = getattr(obj, "__doc__", None)
    text = text if isinstance(text, str) else ""  # of slots it is a descriptor
    field = isinstance(obj, type(collections.namedtuple("_", "a").a))
    return True if field or re.match(r"See (the (class|module)|`[\w.]+`)\b", text) else None


def spellings(node: pending_xref) -> list[str]:
    """Full names of what is meant, as Python finds it where it is named; best first."""
    target = node["reftarget"]
    names = [target]
    module = node.get("py:module") or "builtins"
    for scope in (f"{module}.{node.get('py:class')}.", f"{module}.", ""):
        *above, name = f"{scope}{target}".split(".")
        try:
            owner = pkgutil.resolve_name(".".join(above))
        except (AttributeError, ImportError, ValueError):
            continue
        if isinstance(owner, type):
            names += [f"{cls.__module__}.{cls.__qualname__}.{name}" for cls in owner.__mro__]
            arguments = getattr(owner.__init__, "__annotations__", {})
            if name in {*arguments, *getattr(owner, "__annotations__", {})}:  # no entry of its own
                names.append(f"{owner.__module__}.{owner.__qualname__}")
        thing = getattr(owner, name, None)
        # an alias of types has the names of what it is an alias of
        if issubclass(type(thing), type) or inspect.isroutine(thing):
            names.append(f"{thing.__module__}.{thing.__qualname__}")
    return [PUBLIC.get(name, name) for name in names]


def resolve(app: Sphinx, env: Any, node: pending_xref, contents: nodes.Node) -> nodes.Node | None:
    """Finds what is named without its module, as one writes it after an import."""
    if node.get("refdomain") != "py":
        return None
    domain, target, names = env.get_domain("py"), node["reftarget"], spellings(node)
    last = target.split(".")[1:] if target.split(".")[0] in PACKAGES else target.split(".")
    alike = [name for name in domain.objects if name.split(".")[-len(last) :] == last]
    for name in [*names, *(alike if len(alike) == 1 else [])]:
        if name in domain.objects:
            page = domain.objects[name]
            uri = app.builder.get_relative_uri(node["refdoc"], page.docname)
            link = nodes.reference("", "", contents, internal=True, refuri=f"{uri}#{page.node_id}")
            link["reftitle"] = name
            return link
    for node["reftarget"] in names:
        if link := intersphinx.missing_reference(app, env, node, contents):
            return link
    node["reftarget"] = target
    return None


def read(app: Sphinx) -> None:
    """Warns of public modules that no page of the reference shows; mends types of arguments."""
    pages = "\n".join(expanded(p.read_text()) for p in Path(app.srcdir, "reference").glob("*.md"))
    # the command line and its options are no modules to import: they have a page of their own
    shown = {"scoresde.app.cli", "scoresde.app.options", *re.findall(r"automodule:: (\S+)", pages)}
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            private = any(part.startswith("_") for part in module.name.split("."))
            if not (private or module.ispkg or module.name in shown):
                logging.getLogger(__name__).warning("%s is in no page of reference/", module.name)
            for cls in vars(importlib.import_module(module.name)).values():
                # autodoc gives an argument the type of the attribute of the same name
                if isinstance(cls, type) and cls.__module__ == module.name:
                    for name in getattr(vars(cls).get("__init__"), "__annotations__", ()):
                        vars(cls).get("__annotations__", {}).pop(name, None)


def no_return_type(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """What returns is said in words: its type would come last and say less."""
    for field in list(content.findall(nodes.field)):
        if field[0].astext() == "rtype":
            field.parent.remove(field)


def visit_inline(self: Any, node: nodes.math) -> None:
    """Formulas as MathML, which browsers draw by themselves."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """As `visit_inline`, on lines of their own."""
    rows = (convert(row, display="block") for row in re.split(r"\\\\", node.astext()))
    self.body.append(f'<div class="math">{"".join(rows)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    # before napoleon, which makes sections of what is left
    app.connect("autodoc-process-docstring", literal_formulas, priority=400)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", resolve, priority=400)  # before intersphinx
    app.connect("builder-inited", read)
    app.connect("object-description-transform", no_return_type, priority=900)
