"""Solvers for any SDE and any estimator."""

from typing import TYPE_CHECKING

from scoresde.internals.lazy_imports import lazy_imports
from solvers.adaptive import Adaptive, Outcome, StepLimit
from solvers.euler import EulerMaruyama
from solvers.exponential import DDIM, ExponentialMultistep
from solvers.heun import Heun
from solvers.langevin import Langevin
from solvers.rungekutta import ExponentialRungeKutta
from solvers.sra import SRA

if TYPE_CHECKING:
    from solvers.torchdiffeq import TorchDiffEq
    from solvers.torchsde import TorchSDE
else:  # their libraries import scipy
    __getattr__ = lazy_imports(
        __name__, {"TorchDiffEq": "solvers.torchdiffeq", "TorchSDE": "solvers.torchsde"}
    )

__all__ = [
    "DDIM",
    "SRA",
    "Adaptive",
    "EulerMaruyama",
    "ExponentialMultistep",
    "ExponentialRungeKutta",
    "Heun",
    "Langevin",
    "Outcome",
    "StepLimit",
    "TorchDiffEq",
    "TorchSDE",
]
