"""Names of a package that are imported when they are first used.

For classes that need a library which takes long to import (PEP 562):

    if TYPE_CHECKING:
        from package.module import Name
    else:
        __getattr__ = lazy_imports(__name__, {"Name": "package.module"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_imports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``.

    Args:
        package: Its ``__name__``.
        homes: The module of each name.
    """

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return getattribute
