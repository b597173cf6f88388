"""Training: the loop, and what makes a run the same run when it goes on."""

from scoresde.training.history import History, OnMeasure
from scoresde.training.training import Training

__all__ = ["History", "OnMeasure", "Training"]
