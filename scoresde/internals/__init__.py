"""Helpers that do not depend on diffusion: files, memory, imports."""
