"""Simulation-based inference."""

from scoresde.inference.coordinates import Coordinates
from scoresde.inference.interop import SBIPosterior, guide, to_arviz
from scoresde.inference.parameter_estimators import PartEstimator, PosteriorEstimator
from scoresde.inference.posterior import Posterior, PosteriorDistribution
from scoresde.inference.prior import PriorEstimator
from scoresde.inference.product import ProductDistribution
from scoresde.inference.several import SeveralObservations
from scoresde.inference.simulations import predict, simulate

__all__ = [
    "Coordinates",
    "PartEstimator",
    "Posterior",
    "PosteriorDistribution",
    "PosteriorEstimator",
    "PriorEstimator",
    "ProductDistribution",
    "SBIPosterior",
    "SeveralObservations",
    "guide",
    "predict",
    "simulate",
    "to_arviz",
]
