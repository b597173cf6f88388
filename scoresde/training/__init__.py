"""Training: the loop, and the identity of a run that is resumed."""

from scoresde.training.history import History, OnMeasure
from scoresde.training.training import Training

__all__ = ["History", "OnMeasure", "Training"]
