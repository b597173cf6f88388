import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from scoresde import Noise
from scoresde.noise import NoiseShard

DISTRIBUTION = Independent(Normal(torch.tensor([3.0, -1.0]), torch.tensor([0.1, 2.0])), 1)


def seeded(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def numbers(noise, rows):
    """A draw of each kind, twice."""
    like = torch.empty(rows, 2)
    return torch.stack(
        [noise(like), noise.draw(DISTRIBUTION, like), noise(like), noise.draw(DISTRIBUTION, like)]
    )


@given(st.integers(0, 2**31))
def test_same_seed_same_numbers(seed):  # invariant 42
    first, second = (numbers(Noise(seeded(seed)[0]), 3) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, numbers(Noise(seeded(seed + 1)[0]), 3))


@given(st.lists(st.integers(0, 999), min_size=2, max_size=5, unique=True), st.data())
def test_a_sample_with_a_generator_of_its_own_has_no_neighbours(seeds, data):  # invariant 42
    together = numbers(Noise(seeded(*seeds)), len(seeds))
    i = data.draw(st.integers(0, len(seeds) - 1))
    assert torch.equal(together[:, i : i + 1], numbers(Noise(seeded(seeds[i])), 1))


def test_successive_numbers_are_new():
    drawn = numbers(Noise(seeded(0)[0]), 2)
    assert len(set(drawn.flatten().tolist())) == drawn.numel()


@pytest.mark.parametrize("source", [None, "one", "many"])
def test_numbers_are_standard_normal(source):
    count = 1500
    generator = {"one": seeded(1)[0], "many": seeded(*range(count))}.get(source)
    noise = Noise(generator)
    drawn, other = noise(torch.empty(count, 2)), noise.draw(DISTRIBUTION, torch.empty(count, 2))
    for values, mean, std in ((drawn, 0.0, 1.0), (other, DISTRIBUTION.mean, DISTRIBUTION.stddev)):
        standard = (values - mean) / std
        assert standard.mean(0).abs().max() < 5 / count**0.5
        assert (standard.var(0) - 1).abs().max() < 5 * (2 / count) ** 0.5
        assert (standard[:, 0] * standard[:, 1]).mean().abs() < 5 / count**0.5


def test_none_is_the_global_generator():
    torch.manual_seed(3)
    first = numbers(Noise(), 2)
    torch.manual_seed(3)
    assert torch.equal(first, numbers(Noise(), 2))


@pytest.mark.parametrize("many", [False, True])
def test_a_generator_leaves_the_global_one_alone(many):
    before = torch.random.get_rng_state()
    numbers(Noise(seeded(1, 2) if many else seeded(1)[0]), 2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("many", [False, True])
def test_nobody_seeds_the_global_one(many, monkeypatch):
    """Not even for a moment, in which another thread may draw."""

    def forbidden(*_):
        raise AssertionError("another thread would see it")

    monkeypatch.setattr(torch, "manual_seed", forbidden)
    monkeypatch.setattr(torch, "set_rng_state", forbidden)
    monkeypatch.setattr(torch.random, "fork_rng", forbidden)
    numbers(Noise([torch.Generator(), torch.Generator()] if many else torch.Generator()), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 2), (4,)])
def test_shape_and_dtype_are_those_asked_for(shape, dtype):
    like = torch.empty(shape, dtype=dtype)
    rows = like[..., 0].numel()
    for generator in (None, seeded(0)[0], seeded(*range(rows))):
        drawn = Noise(generator)(like)
        assert drawn.shape == shape
        assert drawn.dtype == dtype


def test_the_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match=r"generator: expected one generator, or 3: .*got 2"):
        Noise(seeded(0, 1))(torch.empty(3, 2))


@given(count=st.integers(1, 4), rows=st.integers(1, 5), draws=st.integers(1, 3), data=st.data())
def test_shares_are_the_whole(count, rows, draws, data):
    """Of every kind of number, drawn one after the other."""
    distribution = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(3), 2.0), 1
    )

    def numbers(noise, rows):
        like = torch.empty(rows, 3)
        return [
            noise(like),
            noise.uniform(like),
            noise.stratified(like, draws).T,
            noise.draw(distribution, like),
            noise(like.unsqueeze(-1)),
        ]

    def source():
        return torch.Generator().manual_seed(7)

    whole = numbers(Noise(source()), count * rows)
    parts = [numbers(NoiseShard(source(), i, count), rows) for i in range(count)]
    for i, part in enumerate(parts):
        for found, wanted in zip(part, whole, strict=True):
            assert torch.equal(found, wanted[i::count])


@given(rows=st.integers(1, 50), draws=st.integers(1, 3))
def test_strata_are_even(rows, draws):
    u = Noise(torch.Generator().manual_seed(rows)).stratified(torch.empty(rows, 2), draws)
    assert u.shape == (draws, rows)
    assert ((u >= 0) & (u < 1)).all()
    cells = (u.flatten() * rows * draws - u[0, 0] * rows * draws).round()
    assert cells.remainder(rows * draws).unique().numel() == rows * draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strata_of_every_sample_are_even_by_themselves(dtype):
    """With a generator for each they are those it has alone."""

    def drawn(*seeds):
        noise = Noise([torch.Generator().manual_seed(seed) for seed in seeds])
        return noise.stratified(torch.empty(len(seeds), 2, dtype=dtype), 4)

    both = drawn(0, 1)
    assert both.dtype == dtype
    gaps = both.sort(0).values.diff(dim=0)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.25))
    assert torch.equal(both[:, 1:], drawn(1))
    assert not torch.equal(both[:, 0], both[:, 1])
