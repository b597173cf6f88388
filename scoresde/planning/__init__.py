"""Multi-scale plans: when to drop what, and where to put the steps."""

from scoresde.planning.plan import OptimisedGrid, Plan, Spectra, equal, plan, spectra

__all__ = ["OptimisedGrid", "Plan", "Spectra", "equal", "plan", "spectra"]
