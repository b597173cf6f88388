"""Simulation-based inference."""

from scoresde.inference.coordinates import Coordinates
from scoresde.inference.posterior import Posterior, PosteriorDistribution, simulate

__all__ = ["Coordinates", "Posterior", "PosteriorDistribution", "simulate"]
