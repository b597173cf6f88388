"""Sampling: grids of times, prepared steps, batches."""
