"""SDEs that diffuse data, their clocks and coefficients."""

from scoresde.sdes.cox_ingersoll_ross import CoxIngersollRoss
from scoresde.sdes.geometric_brownian import GeometricBrownian

__all__ = ["CoxIngersollRoss", "GeometricBrownian"]
