"""Noise schedules: how much signal and how much noise there is at a time."""

from scoresde.schedules.cosine import Cosine
from scoresde.schedules.edm import EDM
from scoresde.schedules.learned import Learned
from scoresde.schedules.log_linear import LogLinear
from scoresde.schedules.rectified_flow import RectifiedFlow
from scoresde.schedules.schedule import Schedule, Signal
from scoresde.schedules.tabulated import Tabulated
from scoresde.schedules.ve import VE
from scoresde.schedules.vp import VP, SubVP

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "Learned",
    "LogLinear",
    "RectifiedFlow",
    "Schedule",
    "Signal",
    "SubVP",
    "Tabulated",
]
