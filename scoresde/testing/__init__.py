"""Laws that every schedule, basis, SDE, estimator, network, solver and degradation obeys.

    from scoresde.testing import SolverLaws

    class TestMine(SolverLaws):
        def make(self, steps, eta):
            return MySolver(steps, eta=eta)

Inherit the laws of a kind, define ``make``, and pytest runs them all. They need nothing else,
compute in float64 on the CPU, take seconds, and name the law that is broken. What a class does not
claim (a kernel, a loss, an order for equations with noise) is not tested. All that a distribution
offers is tested at once by `conformance`.
"""

from scoresde.testing.bases import BasisLaws
from scoresde.testing.conformance import conformance
from scoresde.testing.degradations import DegradationLaws
from scoresde.testing.device_calls import DeviceCalls
from scoresde.testing.estimators import EstimatorLaws
from scoresde.testing.measures import (
    Brownian,
    Impulses,
    assert_holds,
    assert_same,
    assert_saved,
    convergence_order,
    has_kernel,
    moments,
    standard_normal,
)
from scoresde.testing.networks import NetworkLaws
from scoresde.testing.schedules import ScheduleLaws
from scoresde.testing.sdes import SDELaws
from scoresde.testing.solvers import SolverLaws

__all__ = [
    "BasisLaws",
    "Brownian",
    "DegradationLaws",
    "DeviceCalls",
    "EstimatorLaws",
    "Impulses",
    "NetworkLaws",
    "SDELaws",
    "ScheduleLaws",
    "SolverLaws",
    "assert_holds",
    "assert_same",
    "assert_saved",
    "conformance",
    "convergence_order",
    "has_kernel",
    "moments",
    "standard_normal",
]
