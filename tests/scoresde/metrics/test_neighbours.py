"""Precision and recall of sets whose supports are known."""

import pytest
import torch

from scoresde.metrics import neighbours, precision_and_recall

DTYPES = (torch.float32, torch.float64)


def line(start, stop, n=200):
    """Events evenly on a line, in the plane."""
    return torch.stack([torch.linspace(start, stop, n), torch.zeros(n)], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("real", "generated", "precision", "recall"),
    [
        (line(0, 2), line(1, 3), 0.5, 0.5),
        (line(0, 2), line(0.5, 1.5), 1.0, 0.5),  # modes are lost
        (line(0, 1), line(-1, 3), 0.25, 1.0),  # strange samples
        (line(0, 1), line(5, 6), 0.0, 0.0),
        (line(0, 1), line(0, 1), 1.0, 1.0),
    ],
)
def test_shares_of_lines(real, generated, precision, recall, dtype):
    """Up to the neighbours at the ends."""
    found = precision_and_recall(1000 + real.to(dtype), 1000 + generated.to(dtype))
    assert found.precision == pytest.approx(precision, abs=0.03)
    assert found.recall == pytest.approx(recall, abs=0.03)


def test_a_ball_reaches_the_neighbour_that_is_said():
    """Real events at 0, 1, 3, 6: the balls' radii are 1, 1, 2, 3, and 3, 2, 3, 5 to the second."""
    real = torch.tensor([[0.0], [1.0], [3.0], [6.0]])
    generated = torch.tensor([[-1.0], [-2.0], [-4.0], [9.0], [10.0], [12.0]])
    assert precision_and_recall(real, generated, neighbours=1).precision == pytest.approx(2 / 6)
    assert precision_and_recall(real, generated, neighbours=2).precision == pytest.approx(4 / 6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_in_each_other(dtype):
    """Balls of no radius around a point far from 0."""
    x = torch.tensor([[100.1, -7.3, 0.2]], dtype=dtype).expand(10, -1)
    found = precision_and_recall(torch.cat([x, x + 1]), x)
    assert (found.precision, found.recall) == (1.0, 0.5)


def test_pairs_are_taken_in_parts(monkeypatch):
    real, generated = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    whole = precision_and_recall(real, generated + 1)
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    assert precision_and_recall(real, generated + 1) == whole
    assert 0 < whole.precision < 1


@pytest.mark.parametrize(
    ("real", "generated", "k", "message"),
    [
        (line(0, 1, 3), line(0, 1), 3, "real: expected at least 4 events, got 3"),
        (line(0, 1), line(0, 1, 2), 2, "generated: expected at least 3 events, got 2"),
        (line(0, 1), line(0, 1), 0, "neighbours: expected a whole number of at least 1, got 0"),
    ],
)
def test_what_has_no_neighbours(real, generated, k, message):
    with pytest.raises(ValueError, match=message):
        precision_and_recall(real, generated, k)
