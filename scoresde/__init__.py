"""Probabilistic modelling with score-based diffusion.

Data ``x`` are transformed to coefficients ``z`` by a `Basis`; a `Schedule` gives the signal and
noise of each component at its own time; a `ScoreEstimator` maps ``(z_t, t)`` to a denoised mean; a
`Solver` integrates the reverse equation; the basis transforms back. Likelihoods come from the
probability flow and its divergence.
"""

from typing import TYPE_CHECKING

from scoresde.bases import DCT, PCA, Basis, Haar, Identity, Joint, Packed, Wavelet
from scoresde.blocks import Blocks
from scoresde.conditioning import (
    condition,
)
from scoresde.endpoint_solver import EndpointSolver
from scoresde.estimator import DirectScoreEstimator, ScoreEstimator
from scoresde.fixed_step import FixedStep
from scoresde.internals.lazy_imports import lazy_imports
from scoresde.likelihood import (
    ExactTrace,
    Hutchinson,
    log_prob,
)
from scoresde.likelihood.quadrature import Quadrature
from scoresde.likelihood.variational import bound
from scoresde.noise import Noise
from scoresde.phase_space import CLD, HOLD, PSLD, Dynamics, PhaseSDE
from scoresde.references import citation
from scoresde.reverse import ProbabilityFlow, ReverseSDE
from scoresde.schedules import (
    EDM,
    VE,
    VP,
    Cosine,
    Learned,
    LogLinear,
    RectifiedFlow,
    Schedule,
    SubVP,
    Tabulated,
)
from scoresde.sdes import CoxIngersollRoss, GeometricBrownian
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver

if TYPE_CHECKING:
    from scoresde._version import __version__ as __version__
    from scoresde.likelihood.distribution import ScoreDistribution
else:  # Pyro takes longer to import than all of this
    _HOMES = {
        "ScoreDistribution": "scoresde.likelihood.distribution",
        "__version__": "scoresde._version",
    }
    __getattr__ = lazy_imports(__name__, _HOMES)

__all__ = [
    "CLD",
    "DCT",
    "EDM",
    "HOLD",
    "PCA",
    "PSLD",
    "SDE",
    "VE",
    "VP",
    "Basis",
    "Blocks",
    "Clock",
    "Cosine",
    "CoxIngersollRoss",
    "DiagonalSDE",
    "DirectScoreEstimator",
    "Dynamics",
    "EndpointSolver",
    "ExactTrace",
    "FixedStep",
    "GeometricBrownian",
    "Haar",
    "Hutchinson",
    "Identity",
    "Joint",
    "Learned",
    "LogLinear",
    "Noise",
    "Packed",
    "PhaseSDE",
    "ProbabilityFlow",
    "Quadrature",
    "RectifiedFlow",
    "ReverseSDE",
    "Schedule",
    "ScoreDistribution",
    "ScoreEstimator",
    "Solver",
    "SubVP",
    "Tabulated",
    "Wavelet",
    "bound",
    "citation",
    "condition",
    "log_prob",
]
