"""Measurements: ``tox run -e benchmarks -- NAME [--quick] [--json FILE]``."""
