"""How data are diffused: SDEs, and what follows from their schedules and clocks."""

from scoresde.sdes.cox_ingersoll_ross import CoxIngersollRoss
from scoresde.sdes.geometric_brownian import GeometricBrownian

__all__ = ["CoxIngersollRoss", "GeometricBrownian"]
