"""BibTeX of the works that a composed model is based on.

A class names its references in one attribute, by the keys of entries in a file ``citations.bib``:

    class MySchedule(Schedule):
        references = "me2026"

The file is that of the package of the class, or else scoresde's. Sources of parent classes count
as well.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

import attrs
from torch import nn

from scoresde.internals.messages import nearest


def citation(*parts: object) -> str:
    r"""BibTeX of the sources that objects, and all that they are made of, name.

    Args:
        parts: Estimators, solvers, SDEs, bases, distributions, a `scoresde.app.model.Model`; lists
            of them.

    Returns:
        Every entry once, in the order in which they are met.

    Raises:
        LookupError: If a class names a source that has no entry.

    Example:
        >>> import re
        >>> from scoresde import VE, DiagonalSDE, Identity, citation
        >>> from solvers import Heun
        >>> entries = citation(DiagonalSDE(VE(), Identity((2,))), Heun())
        >>> re.findall(r"@\w+{(\w+)", entries)
        ['batzolis2022', 'anderson1982', 'song2021', 'karras2022']
    """
    return "\n\n".join(dict.fromkeys(_entry(*named) for named in _references_of(parts, {})))


def _references_of(part: Any, seen: dict[int, Any]) -> Iterator[tuple[type, str]]:
    """Classes and the keys they name, of an object and of what it holds."""
    if id(part) in seen:
        return
    seen[id(part)] = part  # kept, so that nobody else gets its id
    cls = type(part)
    for owner in cls.__mro__:
        for key in vars(owner).get("references", "").split():
            yield owner, key
    parts: Iterable[Any] = ()
    if isinstance(part, Mapping):
        parts = part.values()
    elif isinstance(part, (list, tuple)):
        parts = part
    elif attrs.has(cls):
        parts = (getattr(part, field.name) for field in attrs.fields(cls))
    elif isinstance(part, nn.Module) or hasattr(cls, "references"):
        parts = list(vars(part).values())
    for child in parts:
        yield from _references_of(child, seen)


def _entry(owner: type, key: str) -> str:
    known = {**_bibliography("scoresde"), **_bibliography(owner.__module__.partition(".")[0])}
    if key not in known:
        raise LookupError(f"{owner.__qualname__}.references: no entry {key!r}{nearest(key, known)}")
    return known[key]


@functools.cache
def _bibliography(package: str) -> dict[str, str]:
    """Entries by key: those of a package's ``citations.bib``, if it has one."""
    try:
        text = (resources.files(package) / "citations.bib").read_text(encoding="utf-8")
    except (AttributeError, ImportError, OSError, TypeError):  # no package, or no such file
        return {}
    return {m[1]: m[0] for m in re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.DOTALL | re.M)}
