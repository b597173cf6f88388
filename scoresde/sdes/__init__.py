"""Equations that are no `scoresde.DiagonalSDE`: their noise depends on the state."""

from scoresde.sdes.cox_ingersoll_ross import CoxIngersollRoss
from scoresde.sdes.geometric_brownian import GeometricBrownian

__all__ = ["CoxIngersollRoss", "GeometricBrownian"]
