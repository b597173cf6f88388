"""Principal components: what the covariance says, and what is saved."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.bases import PCA


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def covariance(rows):
    return torch.cov(rows.mT, correction=0).reshape(rows.shape[1], rows.shape[1])


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 30),
    shape=st.sampled_from([(1,), (5,), (2, 3), (3, 2, 2)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_diagonalises_the_covariance(count, shape, seed):
    mixing = normal(torch.Size(shape).numel(), torch.Size(shape).numel(), seed=seed + 1)
    data = (normal(count, len(mixing), seed=seed) @ mixing + 3).reshape(count, *shape)
    pca = PCA.fit(data)
    size = max(1.0, pca.variances[0].item())
    observed = covariance(pca(data))
    torch.testing.assert_close(observed, pca.variances.diag(), atol=1e-12 * size, rtol=0)
    assert (pca.variances.diff() <= 0).all()
    assert (pca.variances >= 0).all()
    # fewer samples than components: at most count - 1 directions vary
    assert (pca.variances[count - 1 :] <= 1e-12 * size).all() or count > len(mixing)


def test_finds_known_directions():
    directions = torch.linalg.qr(normal(4, 4)).Q
    std = torch.tensor([3.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    pca = PCA.fit(normal(100_000, 4) * std @ directions.mT + 5)
    torch.testing.assert_close(pca.variances.sqrt(), std, rtol=0.02, atol=0)
    overlap = (pca.components @ directions).abs()
    torch.testing.assert_close(overlap, torch.eye(4, dtype=torch.float64), atol=0.01, rtol=0)


def test_does_not_centre():
    data = normal(20, 3) + 10
    pca = PCA.fit(data)
    assert torch.equal(pca(torch.zeros(3)), torch.zeros(3))
    torch.testing.assert_close(pca(data).mean(0), pca.components @ data.mean(0))


def test_a_fit_can_be_repeated():
    data = normal(5000, 6)
    first, second = PCA.fit(data), PCA.fit(data.flip(0))
    torch.testing.assert_close(first.components, second.components)
    largest = first.components.gather(1, first.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_data_of_any_precision_are_fitted_in_double(dtype):
    data = (10 * normal(300, 4) + 1000).to(dtype)
    pca = PCA.fit(data)
    assert pca.components.dtype == pca.variances.dtype == torch.float64
    torch.testing.assert_close(pca.variances, PCA.fit(data.double()).variances)


def test_blocks():
    pca = PCA.fit(normal(10, 8, 8), blocks={"subspace": 10, "rest": 54})
    assert list(pca.blocks.sizes.items()) == [("subspace", 10), ("rest", 54)]
    assert list(PCA(torch.eye(3)).blocks.sizes.items()) == [("all", 3)]
    with pytest.raises(ValueError, match="blocks: expected 64 components"):
        PCA.fit(normal(10, 8, 8), blocks={"subspace": 10, "rest": 5})


def test_saved_and_loaded(tmp_path):
    fitted = PCA.fit(normal(9, 2, 3))
    torch.save(fitted.float().state_dict(), tmp_path / "pca.pt")
    loaded = PCA(torch.eye(6), event_shape=(2, 3))
    assert loaded.variances.isnan().all()
    loaded.load_state_dict(torch.load(tmp_path / "pca.pt"))
    assert torch.equal(loaded.components, fitted.components)
    assert torch.equal(loaded.variances, fitted.variances)


def test_the_matrix_is_a_copy():
    matrix = torch.eye(3, dtype=torch.float64)
    pca = PCA(matrix)
    matrix.zero_()
    assert torch.equal(pca.components, torch.eye(3, dtype=torch.float64))


def test_no_gradient_reaches_the_fit():
    pca = PCA.fit(normal(5, 3).requires_grad_())
    assert not pca.components.requires_grad
    assert not pca.variances.requires_grad


@pytest.mark.parametrize(
    ("components", "shape", "match"),
    [
        (torch.ones(2, 3), None, r"components: expected a square matrix .* got shape \(2, 3\)"),
        (torch.tensor(1.0), None, "components: expected a square matrix"),
        (torch.zeros(0, 0), None, "components: expected a square matrix"),
        (torch.eye(3) * (1 + 1e-4), None, "components: expected orthonormal rows, to 1e-5"),
        (torch.full((2, 2), torch.nan), None, "components: expected orthonormal rows"),
        (torch.eye(4), (3,), "event_shape: expected the 4 numbers of the components"),
    ],
)
def test_wrong_components(components, shape, match):
    with pytest.raises(ValueError, match=match):
        PCA(components, shape)


def test_nearly_orthonormal_will_do():
    PCA(torch.eye(3) * (1 + 1e-6))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (torch.ones(3), r"data: expected shape \(N, \*event_shape\)"),
        (torch.ones(0, 3), r"data: expected shape \(N, \*event_shape\)"),
        (torch.tensor([[1.0, torch.inf]]), "data: expected finite numbers"),
    ],
)
def test_wrong_data(data, match):
    with pytest.raises(ValueError, match=match):
        PCA.fit(data)


def test_integers_are_no_data():
    with pytest.raises(TypeError, match="floating-point"):
        PCA.fit(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"components: .*floating-point"):
        PCA(torch.eye(3, dtype=torch.int64))


def test_one_number_is_an_event_and_none_is_not():
    assert PCA.fit(torch.ones(1, 1)).dim == 1
    with pytest.raises(ValueError, match=r"data: .*not empty, got \(0,\)"):
        PCA.fit(iter([]))
