"""Distances of distributions whose distance is known."""

import itertools

import pytest
import torch
from scipy.linalg import sqrtm

from scoresde.metrics import distances, frechet_distance, kernel_distance

DTYPES = (torch.float32, torch.float64)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(mean, root, n, seed):
    """Events whose sample mean is ``mean`` and sample covariance ``root^T root``."""
    x = noise(n, len(root), seed=seed)
    x = torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5
    return x @ root + mean


def known(a, b, roots):
    """The Frechet distance of two Gaussians by the root of a product of covariances."""
    first, second = (root.mT @ root for root in roots)
    cross = torch.from_numpy(sqrtm((first @ second).numpy()).real)
    return float((a - b).square().sum() + (first + second - 2 * cross).trace())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(200, 30), (6, 300), (40, 40)])
def test_the_frechet_distance_of_two_gaussians(n, m, dtype):
    """More events than features, and about as many."""
    means, roots = noise(2, 5), noise(2, 5, 5, seed=1)
    a, b = (exactly(*of, k, seed=k) for *of, k in zip(means, roots, (n, m), strict=True))
    found = frechet_distance(a.to(dtype), b.to(dtype))
    assert found == pytest.approx(known(*means, roots), rel=1e-10 if dtype == DTYPES[1] else 1e-5)


def test_fewer_events_than_features():
    """Covariances of three directions in twelve, in the first case the same ones."""
    frame = torch.linalg.qr(noise(12, 6)).Q.mT
    deviations = torch.tensor([[1.0, 2.0, 3.0], [2.0, 0.5, 3.0]], dtype=torch.float64)
    a, b = (exactly(0, torch.diag(s), 7, seed=i) for i, s in enumerate(deviations))
    same, other = frame[:3], frame[3:]
    apart = (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(a @ same, b @ same) == pytest.approx(float(apart))
    assert frechet_distance(a @ same, b @ other) == pytest.approx(float(deviations.square().sum()))


@pytest.mark.parametrize("distance", [frechet_distance, lambda a, b: kernel_distance(a, b).value])
def test_distances_are_of_distributions_not_of_coordinates(distance):
    """A rotation changes nothing, nor does the order of events or of sets."""
    a, b, turn = noise(9, 4), 1 + noise(11, 4, seed=1), torch.linalg.qr(noise(4, 4, seed=2)).Q
    found = distance(a, b)
    assert distance(a @ turn, b @ turn) == pytest.approx(found, rel=1e-10)
    assert distance(b, a) == pytest.approx(found, rel=1e-10)
    assert distance(a.flip(0), b) == pytest.approx(found, rel=1e-10)


def test_a_set_is_no_way_from_itself():
    a = noise(30, 8)
    assert frechet_distance(a, a.clone()) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * 8)


def test_the_kernel_distance_is_unbiased():
    """Its mean over all draws of three events from two-point distributions is their distance."""
    points = torch.tensor([[0.5, -1.0], [2.0, 1.0], [-0.3, 0.4]], dtype=torch.float64)
    kernel = (points @ points.mT / 2 + 1) ** 3
    p, q = (torch.tensor(v, dtype=torch.float64) for v in ([0.25, 0.75, 0.0], [0.5, 0.0, 0.5]))
    draws = [torch.tensor(rows) for rows in itertools.product(range(3), repeat=3)]
    of_a = [(rows, float(p[rows].prod())) for rows in draws if p[rows].prod() > 0]
    of_b = [(rows, float(q[rows].prod())) for rows in draws if q[rows].prod() > 0]
    mean = sum(
        chance * other * kernel_distance(points[a], points[b]).value
        for (a, chance), (b, other) in itertools.product(of_a, of_b)
    )
    assert mean == pytest.approx(float((p - q) @ kernel @ (p - q)), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_distance_is_what_its_formula_says(dtype):
    a, b = noise(4, 3).to(dtype), noise(5, 3, seed=1).to(dtype)

    def mean(x, y, other):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if other or i != j]
        return sum(float(x[i].double() @ y[j].double() / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(a, a, False) + mean(b, b, False) - 2 * mean(a, b, True)
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-12)


def test_the_standard_error_is_the_jackknife():
    """Of both sets, each without one event after the other."""
    a, b = noise(6, 2), 1 + noise(9, 2, seed=1)

    def variance(values):
        values = torch.tensor(values, dtype=torch.float64)
        return float((values - values.mean()).square().sum() * (len(values) - 1) / len(values))

    def without(x, i):
        return torch.cat([x[:i], x[i + 1 :]])

    first = variance([kernel_distance(without(a, i), b).value for i in range(len(a))])
    second = variance([kernel_distance(a, without(b, i)).value for i in range(len(b))])
    assert kernel_distance(a, b).standard_error == pytest.approx((first + second) ** 0.5)


def test_the_standard_error_is_how_much_draws_differ():
    pairs = noise(400, 2, 40, 2)
    found = [kernel_distance(a, 0.5 + b) for a, b in pairs]
    spread = torch.tensor([one.value for one in found]).std()
    said = torch.tensor([one.standard_error for one in found]).square().mean().sqrt()
    assert said == pytest.approx(float(spread), rel=0.15)


def test_pairs_are_taken_in_parts(monkeypatch):
    a, b = noise(10, 3), noise(12, 3, seed=1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(distances, "_ROWS", 4)
    parts = kernel_distance(a, b)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), "b: expected 2 features of an event, as of the"),
        (torch.zeros(9), torch.zeros(9), r"a: expected features of shape \(N, d\), got \(9,\)"),
        (torch.zeros(9, 0), torch.zeros(9, 0), r"a: expected features of shape .*, got \(9, 0\)"),
        (torch.zeros(1, 2), torch.zeros(9, 2), r"a: expected at least \d events, got 1"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), "b: expected finite"),
    ],
)
def test_what_has_no_distance(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)
