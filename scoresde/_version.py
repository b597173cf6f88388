"""The version, as installed."""

from importlib import metadata

__version__ = metadata.version("scoresde")
