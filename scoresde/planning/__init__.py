"""Multi-scale plans: when to drop what, and where to put the steps."""

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
