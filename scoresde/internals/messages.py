"""The words of errors and warnings."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known names are closest to an unknown one, for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"{hint} Available: {', '.join(known) if known else '(none)'}"


def join_names(names: Iterable[str], most: int = 10) -> str:
    """Names for a message, the first few if there are many."""
    first, rest = (names := list(names))[:most], len(names) - most
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def describe_error(error: BaseException, *, kind: bool = False) -> str:
    """An error's message, in one line.

    Args:
        error: Whose ``__str__`` may itself fail.
        kind: Whether to name its type even if the message was written for users.
    """
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    name = type(error).__name__
    written = isinstance(error, _WRITTEN) and not isinstance(error, RecursionError)
    written = written or type(error).__module__.startswith("scoresde.")
    return text if text and written and not kind else f"{name}: {text}" if text else name


_WRITTEN = (ValueError, TypeError, ImportError, OSError, RuntimeError, FloatingPointError)
"""Errors whose messages are sentences, of this package and of its libraries."""


def warn(message: str) -> None:
    """A warning at the line of a user: the first that is in none of this project's packages."""
    stacklevel, frame = 1, sys._getframe()
    while frame.f_back is not None and _own(frame.f_globals.get("__name__", "")):
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(message, stacklevel=stacklevel)


def _own(module: str) -> bool:
    return module.partition(".")[0] in ("scoresde", "estimators", "solvers")
