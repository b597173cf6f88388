"""Mean and scale of data: every unit by its own magnitude."""

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde import DCT, PCA, Haar, Identity, Joint, Packed

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
UNIT = 2.0**-12
"""The scale of a constant, by its size."""


def normal(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def events(basis, scales, dtype, count=400):
    """With coefficients of given deviations, one per unit."""
    z = normal(count, basis.dim) * basis.groups.expand(torch.tensor(scales, dtype=torch.float64))
    return basis.inverse(z).to(dtype)


SEPARATE = {
    "columns": Identity((3,)),
    "blocks of columns": Identity((3,), {"a": 2, "b": 1}),
    "parts": Joint(a=(1,), b=(1,), c=(1,)),
    "parts of columns": Joint(a=(2,), b=(1,)),
    "parts in bases": Joint(a=DCT((4,)), b=(1, 2), c=Haar((2, 2), 0)),
}


@both
@pytest.mark.parametrize("basis", SEPARATE.values(), ids=SEPARATE)
@settings(max_examples=20, deadline=None)
@given(powers=st.lists(st.integers(-15, 15), min_size=3, max_size=3))
def test_no_unit_is_judged_by_its_neighbour(basis, dtype, powers):
    """Whatever their proportions: they are stored apart, and float32 has digits for each."""
    scales = [10.0**p for p in powers]
    _, found = basis.moments(events(basis, scales, dtype))
    _, one = basis.moments(events(basis, [1.0] * 3, torch.float64))
    wanted = one * torch.tensor(scales, dtype=torch.float64)
    torch.testing.assert_close(found / wanted, torch.ones_like(found), atol=1e-6, rtol=0)


BANDS = {
    "dct": DCT((16,), bands=2),
    "haar": Haar((1, 4, 4), 1),
    "packed": Packed(Haar((1, 4, 4), 1)),
    "pca": PCA(torch.linalg.qr(normal(6, 6)).Q, (2, 3), {"a": 2, "b": 4}),
    "part": Joint(x=DCT((16,), bands=2)),
}


@pytest.mark.parametrize("ratio", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("basis", BANDS.values(), ids=BANDS)
def test_no_band_is_judged_by_its_neighbour(basis, ratio):
    x = events(basis, [1.0, ratio], torch.float64)
    z = basis(x)
    wanted = basis.blocks.mean(((z - z.mean(0)) ** 2).mean(0)).sqrt()
    torch.testing.assert_close(basis.moments(x)[1], wanted, rtol=1e-6, atol=0)
    assert wanted[1] / wanted[0] == pytest.approx(ratio, rel=0.3)


@both
@pytest.mark.parametrize("value", [1.0, -0.1, 2020.1, 1e-12, 1e6])
@pytest.mark.parametrize("other", [1e-9, 1.0, 1e9])
def test_a_constant_is_so_by_its_own_size(value, other, dtype):
    """And its scale is a share of that, whatever is beside it."""
    x = torch.stack([torch.full((5000,), value, dtype=dtype), other * normal(5000)], 1).to(dtype)
    mean, std = Identity((2,)).moments(x)
    kept = float(torch.tensor(value, dtype=dtype))
    assert mean[0] == pytest.approx(kept, rel=1e-12)
    assert std[0] == pytest.approx(UNIT * abs(kept), rel=1e-12)
    assert std[1] == pytest.approx(other, rel=0.05)


@both
def test_zeros_are_a_constant(dtype):
    x = torch.stack([torch.zeros(100), 500 * torch.randn(100)], 1).to(dtype)
    assert Identity((2,)).moments(x)[1][0] == UNIT


def test_what_a_float64_can_tell_is_not_constant():
    """Times in seconds since 1970."""
    x = 1.7e9 + 1e-4 * normal(4000, 1)
    assert Identity((1,)).moments(x)[1] == pytest.approx(1e-4, rel=0.05)


def says(pattern, basis, x):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        basis.moments(x)
    assert any(re.search(pattern, str(one.message)) for one in found)


@both
@pytest.mark.parametrize("where", [0, 2500, 4999])
@pytest.mark.parametrize("outlier", [1e30, -1e30, 1e5])
def test_outliers_are_named_with_their_distance(dtype, where, outlier):
    x = normal(5000, 2).to(dtype)
    x[where, 1] = outlier
    far = re.escape(f"{abs(outlier):.3g}")
    says(rf"data: in 'all\[1\]': outliers {far} from the middle", Identity((2,)), x)


@both
def test_an_outlier_beside_a_constant_is_named(dtype):
    x = torch.ones(1000, 1, dtype=dtype)
    x[3] = 1e30
    says("in 'all': outliers", Identity((1,)), x)


@both
@pytest.mark.parametrize(
    ("basis", "name"),
    [
        (Joint(seen=(3,), theta=(1,)), "'seen[0]'"),
        (Joint(theta=(1,), seen=Haar((1, 4, 4), 1)), "'seen.d1'"),
        (Haar((1, 4, 4), 1), "'a1'"),
        (Identity((1, 4, 4)), "'all'"),
    ],
    ids=["column", "band of a part", "band", "image"],
)
def test_an_outlier_is_named_by_part_and_block(basis, name, dtype):
    x = normal(3000, *basis.event_shape).to(dtype)
    x[7].flatten()[0 if basis.event_shape[0] != 17 else 1] = 1e20
    says(rf"data: in [^:]*{re.escape(name)}[^:]*: outliers", basis, x)


@pytest.mark.parametrize(
    "column",
    [
        normal(5000),
        normal(5000).exp(),
        (1.5 * normal(5000)).exp(),
        torch.arange(5000.0),
        (torch.arange(5000) % 1000 == 0).double(),
        (torch.arange(5000) % 1000 == 0).double() + 1,
        (torch.arange(5000) == 7).double(),
        1e10 * (torch.arange(5000) == 7).double(),
        normal(5000) / normal(5000, seed=1).abs().clamp(min=0.05),
        torch.cat([normal(2500), normal(2500) + 1000]),
    ],
    ids=[
        "normal",
        "lognormal",
        "skewed",
        "sorted",
        "rare",
        "rare+1",
        "single",
        "large",
        "tails",
        "modes",
    ],
)
@both
def test_ordinary_columns_are_no_outliers(column, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Identity((1,)).moments(column.unsqueeze(1).to(dtype))


@pytest.mark.parametrize("std", [1.0, 30.0, 1e3])
def test_columns_far_from_zero_are_named(std):
    """float32 numbers at 1e9 are 64 apart: of a deviation of 1 there is nothing left."""
    x = torch.stack([normal(3000), 1e9 + std * normal(3000)], 1)
    said = r"'all\[1\]': .* too far from 0 for float32, whose numbers are 119 apart"
    says(said, Identity((2,)), x.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Identity((2,)).moments(x)


@pytest.mark.parametrize("std", [1e-25, 1e25])
def test_squares_that_a_dtype_has_no_number_for_are_named(std):
    said = r"'all': a standard deviation of .* no number of float32"
    says(said, Identity((1,)), (std * normal(3000, 1)).float())


def test_outliers_among_what_is_known_are_named():
    x = normal(3000, 2)
    x[::3, 1], x[4, 1] = torch.nan, 1e20
    with pytest.warns(UserWarning, match=r"in 'all\[1\]': outliers 1e\+20"):
        Identity((2,)).moments(x, missing=True)


def test_all_units_of_a_kind_are_in_one_warning():
    x = normal(3000, 5)
    x[0] = 1e12
    with pytest.warns(
        UserWarning, match=r"in 'all\[0\]', 'all\[1\]', 'all\[2\]' and 2 more"
    ) as found:
        Identity((5,)).moments(x)
    assert len(found) == 1


def test_squares_that_are_infinite_are_refused():
    with pytest.raises(ValueError, match=r"data: expected .*squares are finite in 'b\[1\]'"):
        Joint(a=(1,), b=(2,)).moments(
            normal(9, 3) * torch.tensor([1.0, 1.0, 1e200], dtype=torch.float64)
        )


@both
@pytest.mark.parametrize("basis", [Identity((3,)), Haar((4,), 1), Joint(a=(1,), b=DCT((3,)))])
def test_pieces_are_measured_as_the_whole(basis, dtype):
    x = (5 + normal(300, *basis.event_shape)).to(dtype)
    parts = iter([x[:1], x[1:1], x[1:130], x[130:]])
    for a, b in zip(basis.moments(x), basis.moments(parts), strict=True):
        torch.testing.assert_close(a, b)


def test_there_must_be_events():
    with pytest.raises(ValueError, match="data: expected events, got none"):
        Identity((2,)).moments(torch.empty(0, 2))
