"""What every basis promises: exactness, and that it behaves as a module and a function."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scoresde.bases import DCT, PCA, Basis, Haar, Identity, Wavelet
from scoresde.blocks import Blocks
from scoresde.testing import DeviceCalls


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def rotation(n):
    return torch.linalg.qr(normal(n, n)).Q


BASES = {
    "Identity": lambda: Identity((3, 4)),
    "Identity-joint": lambda: Identity((5,), {"x": 3, "y": 2}),
    "Identity-scalar": lambda: Identity((1,)),
    "Haar-signal": lambda: Haar((8,), levels=3),
    "Haar-channels": lambda: Haar((2, 12), levels=2, spatial=1),
    "Haar-image": lambda: Haar((4, 8), levels=2),
    "Haar-colour": lambda: Haar((3, 4, 6), levels=1),
    "Haar-no-levels": lambda: Haar((2, 3), levels=0),
    "Haar-volume": lambda: Haar((2, 4, 2, 6), levels=1, spatial=3),
    "Wavelet-signal": lambda: Wavelet((12,), 2, "db3"),
    "Wavelet-colour": lambda: Wavelet((3, 8, 4), 2, "db4"),
    "Wavelet-turned": lambda: Wavelet((3, 8, 4), 1, "db2", colour=True),
    "Wavelet-volume": lambda: Wavelet((4, 2, 6), 1, "sym4", spatial=3),
    "DCT-volume": lambda: DCT((2, 4, 3, 2), spatial=3, bands=2),
    "DCT-signal": lambda: DCT((7,)),
    "DCT-channels": lambda: DCT((2, 5), spatial=1),
    "DCT-image": lambda: DCT((4, 6), bands=3),
    "DCT-colour": lambda: DCT((3, 4, 4), bands=2),
    "PCA": lambda: PCA(rotation(6), (2, 3)),
    "PCA-fit": lambda: PCA.fit(normal(50, 2, 4), {"subspace": 3, "rest": 5}),
    "PCA-few-samples": lambda: PCA.fit(normal(3, 9)),
}
every_basis = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
few = settings(max_examples=15, deadline=None)

BATCHES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)
# tolerances are a few hundred roundings
DTYPES = st.sampled_from(
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 0.15)]
)


def matrix(basis):
    """``U``, ``(n, n)``: the coefficients of unit events are its columns."""
    unit = torch.eye(basis.dim, dtype=torch.float64)
    return basis(unit.reshape(basis.dim, *basis.event_shape)).mT


@every_basis
def test_orthonormal(make):  # invariant 21
    u = matrix(make())
    unit = torch.eye(len(u), dtype=torch.float64)
    torch.testing.assert_close(u @ u.mT, unit, atol=1e-12, rtol=0)


@every_basis
def test_exact_in_mixed_precision(make):
    """`torch.autocast` is for networks."""
    basis = make()
    x = normal(4, *basis.event_shape, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = basis(x)
        again = basis.inverse(z)
    assert torch.equal(z, basis(x))
    assert torch.equal(again, basis.inverse(z))


@every_basis
def test_inverse_is_the_transpose(make):  # invariant 21
    basis = make()
    unit = torch.eye(basis.dim, dtype=torch.float64)
    rows = basis.inverse(unit).reshape(basis.dim, basis.dim)
    torch.testing.assert_close(rows, matrix(basis), atol=1e-12, rtol=0)


@every_basis
@few
@given(batch=BATCHES, seed=SEEDS, precision=DTYPES)
def test_round_trip_and_parseval(make, batch, seed, precision):  # invariant 21
    basis, (dtype, atol) = make(), precision
    x = normal(*batch, *basis.event_shape, seed=seed, dtype=dtype)
    z = basis(x)
    assert (z.shape, z.dtype) == ((*batch, basis.dim), dtype)
    back = basis.inverse(z)
    assert (back.shape, back.dtype) == (x.shape, dtype)
    torch.testing.assert_close(back, x, atol=atol, rtol=0)
    energy = basis.flatten(x).double().norm(dim=-1)
    torch.testing.assert_close(z.double().norm(dim=-1), energy, atol=atol * 4, rtol=0)


@every_basis
@few
@given(seed=SEEDS, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear(make, seed, a, b):
    basis = make()
    x, y = normal(2, *basis.event_shape, seed=seed)
    torch.testing.assert_close(basis(a * x + b * y), a * basis(x) + b * basis(y))


@every_basis
def test_rows_do_not_depend_on_their_batch(make):
    basis = make()
    x = normal(2, 3, *basis.event_shape)
    z = basis(x)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(z[i, j], basis(x[i, j]))
            torch.testing.assert_close(basis.inverse(z)[i, j], basis.inverse(z[i, j]))


@every_basis
def test_any_memory_layout(make):
    basis = make()
    flipped = normal(*reversed(basis.event_shape), 3)
    x = flipped.permute(*reversed(range(flipped.ndim)))
    z = normal(basis.dim, 3).mT
    torch.testing.assert_close(basis(x), basis(x.contiguous()))
    torch.testing.assert_close(basis.inverse(z), basis.inverse(z.contiguous()))


@every_basis
def test_gradients(make):
    basis = make()
    x = normal(1, *basis.event_shape).requires_grad_()
    z = normal(1, basis.dim).requires_grad_()
    assert torch.autograd.gradcheck(basis, x)
    assert torch.autograd.gradgradcheck(basis, x)
    assert torch.autograd.gradcheck(basis.inverse, z)


@every_basis
def test_vmap_and_jvp(make):
    basis = make()
    x, v = normal(2, 3, *basis.event_shape)
    torch.testing.assert_close(torch.func.vmap(basis)(x), basis(x))
    z = basis(x)
    torch.testing.assert_close(torch.func.vmap(basis.inverse)(z), x)
    value, tangent = torch.func.jvp(basis, (x,), (v,))
    torch.testing.assert_close((value, tangent), (z, basis(v)))
    _, tangent = torch.func.jvp(basis.inverse, (z,), (basis(v),))
    torch.testing.assert_close(tangent, v)
    jacobian = torch.func.vmap(torch.func.jacrev(basis))(x)
    torch.testing.assert_close(jacobian[0].reshape(basis.dim, -1), matrix(basis))


@every_basis
@pytest.mark.parametrize("cast", [nn.Module.float, nn.Module.bfloat16, nn.Module.double])
def test_casting_a_module_does_not_round_its_basis(make, cast):
    basis = make()
    expected = matrix(basis)
    parent = cast(nn.ModuleList([basis, nn.Linear(2, 2)]))
    torch.testing.assert_close(matrix(parent[0]), expected, atol=0, rtol=0)
    x = torch.ones(basis.event_shape)
    assert basis(x).dtype == torch.float32


@every_basis
def test_buffers_move_with_the_module(make):
    basis = make().to("meta")
    assert all(buffer.is_meta for buffer in basis.buffers())
    assert basis(torch.empty(2, *basis.event_shape, device="meta")).device.type == "meta"
    assert not any(buffer.is_meta for buffer in basis.to_empty(device="cpu").buffers())


@every_basis
def test_what_a_basis_holds_is_cast_once(make):
    basis = make().to("meta")
    x = torch.empty(2, *basis.event_shape, device="meta")
    basis.synthesise(basis(x))
    with DeviceCalls() as calls:
        basis.synthesise(basis(x))
    assert not calls.operations["_to_copy"]


def test_what_was_cast_goes_with_what_it_was_cast_of():
    first, second = PCA(rotation(4)), PCA(rotation(4).flip(0))
    x = normal(3, 4, dtype=torch.float32)
    assert not torch.equal(first(x), second(x))
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


@every_basis
def test_state_dict_and_copies(make):
    basis = make()
    state = basis.state_dict()
    assert set(state) == ({"components", "variances"} if isinstance(basis, PCA) else set())
    other = make()
    other.load_state_dict(state)
    for twin in (other, copy.deepcopy(basis)):
        torch.testing.assert_close(matrix(twin), matrix(basis), atol=0, rtol=0)
        assert twin.blocks == basis.blocks


@every_basis
def test_layout(make):
    basis = make()
    assert isinstance(basis, Basis)
    assert basis.dim == math.prod(basis.event_shape) == sum(basis.blocks.sizes.values())
    assert f"event_shape={tuple(basis.event_shape)}" in repr(basis)


@every_basis
def test_wrong_arguments(make):
    basis = make()
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch"):
        basis(torch.zeros(*basis.event_shape, basis.event_shape[-1] + 1))
    with pytest.raises(ValueError, match=r"z: expected shape \(\*batch, " + str(basis.dim)):
        basis.inverse(torch.zeros(2, basis.dim + 1))
    with pytest.raises(TypeError, match=r"x: .*floating-point"):
        basis(torch.zeros(basis.event_shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"z: .*floating-point"):
        basis.inverse(torch.zeros(basis.dim, dtype=torch.bool))


def test_blocks_must_cover_the_event():
    with pytest.raises(ValueError, match=r"blocks: expected 5 components"):
        Identity((5,), {"x": 3, "y": 3})
    with pytest.raises(ValueError, match="event_shape: expected one or more positive"):
        Identity((), {"x": 1})


def test_identity_is_row_major():
    x = torch.arange(6.0).reshape(2, 3)
    basis = Identity((2, 3), {"x": 4, "y": 2})
    assert basis(x).tolist() == [0, 1, 2, 3, 4, 5]
    assert basis.blocks == Blocks({"x": 4, "y": 2})
    assert Identity((2, 3)).blocks == Blocks({"all": 6})


def test_a_learned_basis_is_cast_as_any_module():
    class Householder(Basis):
        def __init__(self, n):
            super().__init__((n,), Blocks({"all": n}))
            self.v = nn.Parameter(torch.ones(n, dtype=torch.float64))
            self.register_buffer("table", torch.ones(n, dtype=torch.float64))

        def analyse(self, x):
            return x - 2 * self.v * (x @ self.v)[..., None] / (self.v @ self.v)

        synthesise = analyse

    basis = Householder(3).float()
    assert (basis.v.dtype, basis.table.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(basis.inverse(basis(torch.ones(2, 3))), torch.ones(2, 3))
