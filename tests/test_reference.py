"""What is exported is shown in use, by an example that can be copied."""

import doctest

import pytest
import torch

import estimators
import scoresde
import solvers

EXPORTED = [
    (package, name) for package in (scoresde, estimators, solvers) for name in package.__all__
]


@pytest.mark.parametrize(
    ("package", "name"), EXPORTED, ids=[f"{package.__name__}.{name}" for package, name in EXPORTED]
)
def test_an_example_runs_by_itself(package, name):
    """In an empty namespace: it imports all that it uses."""
    found = doctest.DocTestFinder().find(getattr(package, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert examples
    for example in examples:
        said = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            result = doctest.DocTestRunner(verbose=False).run(
                example, out=said.append, clear_globs=False
            )
        assert result.failed == 0, "".join(said)
