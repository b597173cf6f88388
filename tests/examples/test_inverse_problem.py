"""The Pyro example's posterior is that of the closed form."""

import inverse_problem
import torch


def test_draws_are_those_of_the_closed_form():
    x, mean, deviations = inverse_problem.main(samples=16, warmup=3)
    assert x.shape == (16, inverse_problem.SIZE)
    assert ((x.mean(0) - mean).abs() < 0.8 * deviations).all()
    assert 0.6 < float((x.std(0) / deviations).mean()) < 1.4
    # seen through noise, the signal is known better than beforehand
    assert float(deviations.max()) < 0.7
    assert torch.isfinite(x).all()


def test_what_is_not_blurred_keeps_its_mean():
    assert torch.allclose(inverse_problem.blur().sum(1), torch.ones(inverse_problem.SIZE // 2))
