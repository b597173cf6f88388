"""Figures of the site: drawn as they should be, or the build fails.

A cell promises a figure by an alt text, and keeps its promise or not; a figure without one is no
better. Kernels draw inline whatever backend the environment asks for, in colours for any ground.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.execute import direct
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def described(cell: nodes.Element) -> bool:
    """Whether a cell says what its figure shows."""
    options = cell["cell_metadata"].get("mystnb", {})
    return bool(options.get("image", {}).get("alt", "").strip())


TAKEN: list[tuple[float, str]] = []
"""Seconds that cells took, and how these begin."""


def timed(run: Callable[..., Any], notebook: Any, **options: Any) -> Any:
    """Runs a notebook, and notes how long its cells take."""
    result = run(notebook, record_timing=True, **options)
    for cell in notebook.cells:
        times = cell.metadata.get("execution", {})
        ends = [times.get(f"iopub.{name}") for name in ("status.busy", "status.idle")]
        if None not in ends:
            start, end = (datetime.fromisoformat(v.replace("Z", "+00:00")) for v in ends)
            TAKEN.append(((end - start).total_seconds(), cell.source.strip()[:60]))
    return result


def check(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Warns, which fails the build, of promises not kept."""
    if app.config.nb_execution_mode == "off":
        return
    cells = doctree.findall(lambda n: isinstance(n, nodes.container) and "cell_metadata" in n)
    for cell in cells:
        count, alt = len([*cell.findall(nodes.image)]), described(cell)
        app.env.figures[page] += count
        app.env.promised[page] += alt
        if alt and not count:
            logger.warning("the figure that an alt text describes is not drawn", location=cell)
        if count and not alt:
            logger.warning("a figure has no alt text (mystnb: image: alt)", location=cell)


def begin(app: Sphinx) -> None:
    """Kernels inherit what the environment says of matplotlib; cells say how long they took."""
    direct.single_nb_execution = partial(timed, direct.single_nb_execution)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["MATPLOTLIBRC"] = str(Path(app.srcdir, "matplotlibrc"))
    app.env.figures, app.env.promised = Counter(), Counter()


def end(app: Sphinx, error: Exception | None) -> None:
    """Counts what is in the pages themselves; warns of cells close to their limit."""
    if error or app.config.nb_execution_mode == "off" or app.builder.format != "html":
        return
    for page, promised in app.env.promised.items():
        shown = Path(app.outdir, f"{page}.html").read_text().count("<img ")
        if shown != promised:
            logger.warning("%s shows %d figures, of %d described", page, shown, promised)
    limit = app.config.nb_execution_timeout
    for elapsed, source in TAKEN:
        if elapsed > limit / 3:
            logger.warning("a cell took %.0f s, of %d at most: %s", elapsed, limit, source)
    logger.info("%d figures", sum(app.env.figures.values()))
    if TAKEN:
        logger.info("the slowest cell took %.0f s: %s", *max(TAKEN))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the above."""
    app.connect("builder-inited", begin)
    app.connect("doctree-resolved", check)
    app.connect("build-finished", end)
    return {"parallel_read_safe": False}
