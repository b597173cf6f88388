"""Multi-scale plans: when to drop what, and where to put the steps."""

from scoresde.planning.gaussian_bed import Spectra
from scoresde.planning.optimised_grid import OptimisedGrid
from scoresde.planning.plan import Plan, equal, plan, spectra

__all__ = ["OptimisedGrid", "Plan", "Spectra", "equal", "plan", "spectra"]
