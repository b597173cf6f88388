"""Distributions of plugins, made up for a test."""

from pathlib import Path


def write(root, name, group, entries, source):
    """A distribution as it is installed into a folder: its metadata, and its one module."""
    root, plain = Path(root), name.replace("-", "_")
    info = root / f"{plain}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    (root / f"{plain}_plugin.py").write_text(source)
