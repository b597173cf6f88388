"""Imported first by the process that others are forked from, which is started by ``python -c``: its
first place to look for packages is where the tests run, and what is installed stands behind it."""

import sys

if sys.path[:1] == [""]:
    del sys.path[0]
