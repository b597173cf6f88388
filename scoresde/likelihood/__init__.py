"""Log-densities: exact ones by the probability flow, and the variational bound."""

from scoresde.likelihood.density import DensityFlow
from scoresde.likelihood.exact import LogProb, Method, log_prob
from scoresde.likelihood.quadrature import Quadrature
from scoresde.likelihood.traces import ExactTrace, Hutchinson, HutchPlusPlus, Trace
from scoresde.likelihood.variational import bound, importance

__all__ = [
    "DensityFlow",
    "ExactTrace",
    "HutchPlusPlus",
    "Hutchinson",
    "LogProb",
    "Method",
    "Quadrature",
    "Trace",
    "bound",
    "importance",
    "log_prob",
]
