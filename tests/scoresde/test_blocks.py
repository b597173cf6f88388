import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import Blocks

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
