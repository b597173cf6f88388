"""What is drawn from the global generator comes from another one, and nobody else notices."""

import threading

import pytest
import torch
from torch import distributions, nn

from scoresde.internals.default_generator import DefaultGenerator

HALF, ONES = torch.full((30,), 0.5), torch.ones(30)
DRAWS = {
    "linear": lambda: nn.Linear(3, 3).weight,
    "convolution": lambda: nn.Conv2d(2, 2, 3).weight,
    "rand": lambda: torch.rand(3),
    "rand_like": lambda: torch.rand_like(ONES),
    "randn": lambda: torch.randn(3),
    "randn_like": lambda: torch.randn_like(ONES, dtype=torch.float64),
    "randint": lambda: torch.randint(10**6, (3,)),
    "randint, low": lambda: torch.randint(5, 10**6, (3,)),
    "randint_like": lambda: torch.randint_like(ONES, 10**6),
    "randint_like, low": lambda: torch.randint_like(ONES, 5, 10**6),
    "randperm": lambda: torch.randperm(30),
    "normal": lambda: torch.normal(HALF, ONES),
    "bernoulli": lambda: torch.bernoulli(HALF),
    "multinomial": lambda: torch.multinomial(ONES, 20),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(3)),
    "dropout": lambda: nn.functional.dropout(ONES),
    "Normal": lambda: distributions.Normal(0.0, 1.0).sample((3,)),
    "MultivariateNormal": lambda: distributions.MultivariateNormal(ONES, torch.eye(30)).sample(),
    "Gamma": lambda: distributions.Gamma(ONES, 1.0).sample(),
    "Dirichlet": lambda: distributions.Dirichlet(ONES).sample(),
    "StudentT": lambda: distributions.StudentT(3 * ONES).sample(),
    "Binomial": lambda: distributions.Binomial(99, HALF).sample(),
    "Poisson": lambda: distributions.Poisson(99 * ONES).sample(),
    "Exponential": lambda: distributions.Exponential(ONES).sample(),
    "Cauchy": lambda: distributions.Cauchy(HALF, ONES).sample(),
    "Geometric": lambda: distributions.Geometric(HALF / 9).sample(),
    "VonMises": lambda: distributions.VonMises(HALF, ONES).sample(),
    "Categorical": lambda: distributions.Categorical(ONES).sample((9,)),
}


def drawn(draw, seed):
    with DefaultGenerator(torch.Generator().manual_seed(seed)):
        return draw().detach()


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_follow_the_generator_alone(name):
    draw, before = DRAWS[name], torch.get_rng_state()
    first, same, other = drawn(draw, 1), drawn(draw, 1), drawn(draw, 2)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_those_of_a_global_generator_with_that_seed(name):
    """So that a law of one is a law of the other."""
    torch.manual_seed(7)
    wanted = DRAWS[name]().detach()
    assert torch.equal(drawn(DRAWS[name], 7), wanted)


def test_successive_numbers_are_new():
    with DefaultGenerator(torch.Generator().manual_seed(0)):
        assert torch.rand(()) != torch.rand(())


def test_an_own_generator_is_used():
    own = torch.Generator().manual_seed(3)
    wanted = torch.rand(4, generator=torch.Generator().manual_seed(3))
    with DefaultGenerator(torch.Generator().manual_seed(0)):
        assert torch.equal(torch.rand(4, generator=own), wanted)


def test_other_threads_notice_nothing():
    inside, done, found = threading.Event(), threading.Event(), []

    def other():
        inside.wait()
        found.append(torch.rand(3))
        done.set()

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    thread = threading.Thread(target=other)
    thread.start()
    with DefaultGenerator(torch.Generator().manual_seed(0)):
        torch.rand(10)
        inside.set()
        done.wait()
    thread.join()
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("in_place", [False, True])
def test_numbers_for_another_device_are_moved_there(in_place):
    """Of the meta device, which every machine has, only the shape can be seen."""
    with DefaultGenerator(torch.Generator().manual_seed(0)):
        like = torch.empty(3, device="meta")
        found = like.normal_() if in_place else torch.rand(3, device="meta")
        assert found.device.type == "meta"
        assert found.shape == (3,)
