import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import Blocks
from scoresde.blocks import folded

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(
    lambda sizes: {f"b{i}": n for i, n in enumerate(sizes)}
)


@given(sizes)
def test_slices_partition_the_state_in_order(sizes):
    blocks = Blocks(sizes)
    state = list(range(blocks.dim))
    assert [i for s in blocks.slices.values() for i in state[s]] == state
    assert [len(state[s]) for s in blocks.slices.values()] == list(sizes.values())
    assert list(blocks.slices) == list(sizes)


@given(sizes, st.integers(0, 3))
def test_expanding_puts_a_blocks_value_on_its_components(sizes, batch):
    blocks = Blocks(sizes)
    values = torch.randn(batch, len(blocks))
    expanded = blocks.expand(values)
    if len(blocks) > 1:
        assert expanded.shape == (batch, blocks.dim)
        for i, s in enumerate(blocks.slices.values()):
            assert (expanded[:, s] == values[:, i : i + 1]).all()
    else:
        assert torch.equal(expanded, values)


@given(sizes)
def test_averaging_undoes_expanding(sizes):
    blocks = Blocks(sizes)
    values = torch.randn(2, len(blocks))
    full = blocks.expand(values).expand(2, blocks.dim)
    torch.testing.assert_close(blocks.mean(full), values)


@given(sizes)
def test_shared_and_full_values_stay_as_they_are(sizes):
    blocks = Blocks(sizes)
    for value in (torch.tensor(2.0), torch.randn(3, 1), torch.randn(3, blocks.dim)):
        assert blocks.expand(value) is value


def test_another_width_is_refused_by_name():
    with pytest.raises(ValueError, match=r"speeds: .*got 4"):
        Blocks({"a": 2, "b": 3}).check("speeds", torch.ones(4))
    with pytest.raises(ValueError, match="value"):
        Blocks({"a": 2, "b": 3}).expand(torch.ones(4))


def test_equality_is_of_names_sizes_and_order():
    a = Blocks({"a": 1, "b": 2})
    assert a == Blocks({"a": 1, "b": 2})
    assert hash(a) == hash(Blocks({"a": 1, "b": 2}))
    assert a != Blocks({"b": 2, "a": 1})
    assert a != Blocks({"a": 2, "b": 1})


@pytest.mark.parametrize("bad", [{}, {"a": 0}, {"a": 2, "b": -1}])
def test_no_block_and_empty_blocks_are_refused(bad):
    with pytest.raises(ValueError, match="sizes"):
        Blocks(bad)


@given(sizes, st.data())
def test_a_prefix_has_the_first_components_and_their_blocks(sizes, data):
    blocks = Blocks(sizes)
    dim = data.draw(st.integers(1, blocks.dim))
    prefix = blocks.prefix(dim)
    assert prefix.dim == dim
    owners = [name for name, size in sizes.items() for _ in range(size)]
    assert [name for name, size in prefix.sizes.items() for _ in range(size)] == owners[:dim]
    assert blocks.prefix(blocks.dim) is blocks
    shared, each, full = (torch.randn(2, width) for width in (1, len(blocks), blocks.dim))
    assert torch.equal(blocks.restrict(shared, prefix), shared)
    assert torch.equal(blocks.restrict(full, prefix), full[:, : dim if blocks.dim > 1 else 1])
    cut = prefix.expand(blocks.restrict(each, prefix))
    wanted = blocks.expand(each).expand(2, blocks.dim)[:, :dim]
    torch.testing.assert_close(cut.expand(2, dim), wanted, rtol=0, atol=0)


@given(sizes, st.integers(1, 3))
def test_copies_and_single_components_have_names_of_their_own(sizes, count):
    blocks = Blocks(sizes)
    copies, singles = blocks.repeated(count), blocks.singles()
    assert list(copies.sizes.values()) == count * list(sizes.values())
    assert list(copies.sizes)[-1] == f"{list(sizes)[-1]}.{count - 1}"
    assert list(singles.sizes.values()) == [1] * blocks.dim
    for (name, size), part in zip(sizes.items(), blocks.slices.values(), strict=True):
        wanted = [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
        assert list(singles.sizes)[part] == wanted


@given(sizes, st.data())
def test_values_of_different_widths_meet_on_components(sizes, data):
    blocks = Blocks(sizes)
    widths = st.sampled_from([1, len(blocks), blocks.dim])
    values = [torch.randn(2, data.draw(widths)) for _ in range(3)]
    for value, found in zip(values, blocks.broadcastable(*values), strict=True):
        assert torch.equal(blocks.expand(found), blocks.expand(value))
        if len({v.shape[-1] for v in values} - {1}) < 2:
            assert found is value
        else:
            assert found.shape[-1] in (1, blocks.dim)


every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@every_precision
def test_averages_are_of_blocks_whatever_their_size_and_of_what_is_known(dtype):
    blocks, nan = Blocks({"a": 1, "b": 3}), torch.nan
    for value, wanted in (
        ([[2.0]], 2.0),
        ([[1.0, 4.0]], 2.5),
        ([[nan, 4.0]], 4.0),
        ([[1.0, 2.0, 3.0, 7.0]], 2.5),
        ([[1.0, 2.0, nan, 7.0]], 2.75),
        ([[nan, 2.0, 3.0, 7.0]], 4.0),
        ([[5.0, nan, nan, nan]], 5.0),
    ):
        found = blocks.average(torch.tensor(value, dtype=dtype))
        torch.testing.assert_close(found, torch.tensor([wanted], dtype=dtype))


@every_precision
def test_averages_of_small_numbers_keep_their_digits_behind_large_ones(dtype):
    value = torch.tensor([1e8, 1.0, 1.0, -1e8], dtype=dtype)
    assert Blocks({"a": 1, "b": 2, "c": 1}).average(value) == torch.tensor(1 / 3, dtype=dtype)


@every_precision
@given(size=st.integers(1, 40))
def test_a_sum_is_that_of_a_row_alone(dtype, size):
    rows = torch.randn(7, size, dtype=dtype)
    torch.testing.assert_close(folded(rows), rows.sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(folded(rows)[3:4], folded(rows[3:4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_blocks_are_looked_up_with_the_same_values_and_gradients(dtype):
    sizes = [1 + i % 3 for i in range(50)]
    blocks = Blocks({str(i): size for i, size in enumerate(sizes)})
    values = torch.randn(3, 50, dtype=dtype)
    values[0, 7] = -torch.inf
    expected = torch.cat([values[:, [i]].expand(-1, size) for i, size in enumerate(sizes)], -1)
    learned = values.clone().requires_grad_()
    for found in (blocks.expand(values), blocks.expand(learned), blocks.expand(values[0])[None]):
        assert torch.equal(found, expected[: len(found)])
    slope = torch.autograd.grad(blocks.expand(learned).sum(), learned)[0]
    assert torch.equal(slope, torch.tensor(sizes, dtype=dtype).expand(3, -1))
