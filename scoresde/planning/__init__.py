"""Multi-scale plans: when blocks are dropped, and where steps are."""

from scoresde.planning.bands import Spectra, kurtosis, spectra
from scoresde.planning.denoising_errors import DenoisingErrors
from scoresde.planning.optimised_grid import OptimisedGrid
from scoresde.planning.plan import Plan, equal, plan, replan

__all__ = [
    "DenoisingErrors",
    "OptimisedGrid",
    "Plan",
    "Spectra",
    "equal",
    "kurtosis",
    "plan",
    "replan",
    "spectra",
]
