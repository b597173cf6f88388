"""Pages of the reference that list the modules of a package by themselves.

A block of modules and packages becomes their documentation, each under a heading of its own; of a
package all modules that the block does not name, so that a new one needs no line:

    ```{modules}
    scoresde.solver
    solvers
    ```
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from sphinx.application import Sphinx

PART = """\
## `{name}`

```{{eval-rst}}
.. automodule:: {name}
```
"""


def modules(names: list[str]) -> Iterator[str]:
    """Modules by their names, and those of packages."""
    for name in names:
        path = getattr(importlib.import_module(name), "__path__", None)
        if path is None:
            yield name
        else:
            inner = [module.name for module in pkgutil.iter_modules(path, f"{name}.")]
            yield from (one for one in inner if one not in names)


def expanded(text: str) -> str:
    """A page with the documentation of its modules for their blocks."""
    return re.sub(
        r"```\{modules\}\n(.*?)```\n",
        lambda block: "\n".join(PART.format(name=name) for name in modules(block[1].split())),
        text,
        flags=re.DOTALL,
    )


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Expands a page as it is read."""
    source[0] = expanded(source[0])


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.connect("source-read", read)
