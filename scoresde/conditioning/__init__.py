"""Conditional diffusion: what is observed, and estimators of the rest."""

from scoresde.conditioning.conditional import (
    ConditionalEstimator,
    ConditionalSDE,
    ConditionNoiseAnnealing,
    ResampleObserved,
    condition,
)
from scoresde.conditioning.masks import OBSERVED, Observed, blocks, components, observed
from scoresde.conditioning.observation import ConditionedBasis, Observation, observing

__all__ = [
    "OBSERVED",
    "ConditionNoiseAnnealing",
    "ConditionalEstimator",
    "ConditionalSDE",
    "ConditionedBasis",
    "Observation",
    "Observed",
    "ResampleObserved",
    "blocks",
    "components",
    "condition",
    "observed",
    "observing",
]
