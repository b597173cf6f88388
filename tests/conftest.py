"""Settings of the property tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "scoresde",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("scoresde")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def float64():
    """Formulas are checked in double precision; what is less precise says so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
