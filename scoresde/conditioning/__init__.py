"""Conditional diffusion: what is observed, and estimators of the rest."""

from scoresde.conditioning.composition import Composition
from scoresde.conditioning.conditional import (
    ConditionalEstimator,
    ConditionalSDE,
    ResampleObserved,
    condition,
    split_events,
)
from scoresde.conditioning.masks import OBSERVED, Observed, blocks, components, observed
from scoresde.conditioning.observation import ConditionedBasis, Observation, observing
from scoresde.conditioning.particles import Particles
from scoresde.conditioning.rollout import rollout
from scoresde.conditioning.speeds import AnnealedClock, SlowedClock, factor_of_noise, slowed

__all__ = [
    "OBSERVED",
    "AnnealedClock",
    "Composition",
    "ConditionalEstimator",
    "ConditionalSDE",
    "ConditionedBasis",
    "Observation",
    "Observed",
    "Particles",
    "ResampleObserved",
    "SlowedClock",
    "blocks",
    "components",
    "condition",
    "factor_of_noise",
    "observed",
    "observing",
    "rollout",
    "slowed",
    "split_events",
]
