"""Figures of the site: drawn as they should be, or the build fails.

A cell promises a figure by an alt text, and keeps its promise or not; a figure without one is no
better. Kernels draw inline whatever backend the environment asks for, in colours for any ground.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def described(cell: nodes.Element) -> bool:
    """Whether a cell says what its figure shows."""
    options = cell["cell_metadata"].get("mystnb", {})
    return bool(options.get("image", {}).get("alt", "").strip())


def seconds(cell: nodes.Element) -> float:
    """How long a cell took; 0 if it was not run."""
    times = cell["cell_metadata"].get("execution", {})
    ends = [times.get(f"iopub.{name}") for name in ("status.busy", "status.idle")]
    if None in ends:
        return 0.0
    start, end = (datetime.fromisoformat(str(v).replace("Z", "+00:00")) for v in ends)
    return (end - start).total_seconds()


def check(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Warns, which fails the build, of promises not kept, and of cells close to their limit."""
    if app.config.nb_execution_mode == "off":
        return
    most = app.config.nb_execution_timeout / 3
    cells = doctree.findall(lambda n: isinstance(n, nodes.container) and "cell_metadata" in n)
    for cell in cells:
        count, alt = len([*cell.findall(nodes.image)]), described(cell)
        app.env.figures[page] += count
        app.env.promised[page] += alt
        if alt and not count:
            logger.warning("the figure that an alt text describes is not drawn", location=cell)
        if count and not alt:
            logger.warning("a figure has no alt text (mystnb: image: alt)", location=cell)
        if (taken := seconds(cell)) > most:
            logger.warning("a cell took %.0f s of %.0f", taken, most, location=cell)
        app.env.slowest = max(app.env.slowest, (taken, page))


def begin(app: Sphinx) -> None:
    """Kernels inherit what the environment says of matplotlib."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["MATPLOTLIBRC"] = str(Path(app.srcdir, "matplotlibrc"))
    app.env.figures, app.env.promised, app.env.slowest = Counter(), Counter(), (0.0, "")


def end(app: Sphinx, error: Exception | None) -> None:
    """Counts what is in the pages themselves."""
    if error or app.config.nb_execution_mode == "off" or app.builder.format != "html":
        return
    for page, promised in app.env.promised.items():
        shown = Path(app.outdir, f"{page}.html").read_text().count("<img ")
        if shown != promised:
            logger.warning("%s shows %d figures, of %d described", page, shown, promised)
    taken, page = app.env.slowest
    total = sum(app.env.figures.values())
    logger.info("%d figures; the slowest cell took %.0f s (%s)", total, taken, page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the above."""
    app.connect("builder-inited", begin)
    app.connect("doctree-resolved", check)
    app.connect("build-finished", end)
    return {"parallel_read_safe": False}
