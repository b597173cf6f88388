"""The laws that scoresde asks of every SDE, schedule, estimator and solver, asked of ours."""

from scoresde_example_plugin import (
    ConstantRate,
    ExponentialMidpoint,
    IndependentGaussian,
    OrnsteinUhlenbeck,
)

from scoresde import Identity
from scoresde.testing import EstimatorLaws, ScheduleLaws, SDELaws, SolverLaws


class TestConstantRate(ScheduleLaws):
    def make(self):
        return ConstantRate([0.5, 2.0])


class TestOrnsteinUhlenbeck(SDELaws):
    def make(self):
        return OrnsteinUhlenbeck(Identity((2,)), rate=[0.5, 2.0])


class TestIndependentGaussian(EstimatorLaws):
    def make(self):
        return IndependentGaussian(OrnsteinUhlenbeck(Identity((2,))))


class TestExponentialMidpoint(SolverLaws):
    def make(self, steps, eta):
        return ExponentialMidpoint(steps, eta=eta)
