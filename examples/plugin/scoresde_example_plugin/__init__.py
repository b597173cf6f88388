"""An SDE, an estimator and a solver of one's own, found by scoresde through entry points."""

from scoresde_example_plugin.estimator import IndependentGaussian
from scoresde_example_plugin.sde import ConstantRate, OrnsteinUhlenbeck
from scoresde_example_plugin.solver import ExponentialMidpoint

__all__ = ["ConstantRate", "ExponentialMidpoint", "IndependentGaussian", "OrnsteinUhlenbeck"]
