"""What integrates: solvers for any SDE and any estimator."""

from solvers.euler import EulerMaruyama
from solvers.exponential import DDIM, ExponentialMultistep
from solvers.heun import Heun
from solvers.torchdiffeq import TorchDiffEq
from solvers.torchsde import TorchSDE

__all__ = [
    "DDIM",
    "EulerMaruyama",
    "ExponentialMultistep",
    "Heun",
    "TorchDiffEq",
    "TorchSDE",
]
