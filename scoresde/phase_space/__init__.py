"""Diffusion in phase space: a position, a velocity and perhaps more for every component."""

from scoresde.phase_space.diffusion import PhaseSDE
from scoresde.phase_space.dynamics import Dynamics
from scoresde.phase_space.langevin import CLD, HOLD, PSLD

__all__ = ["CLD", "HOLD", "PSLD", "Dynamics", "PhaseSDE"]
