import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import every_schedule, sdes, states, times

from scoresde.objectives import parametrization as forms
from scoresde.objectives import weighting as weightings
from scoresde.objectives.weighting import WeightingInputs

pytestmark = pytest.mark.usefixtures("float64")


def levels(sde, t, form="denoised", density=1.0):
    alpha, sigma = sde.kernel(t)
    out = forms.parametrization(form)(alpha, sigma, torch.ones_like(sigma)).out
    return WeightingInputs(sde.at(t), alpha, sigma, out, torch.tensor([density]))


@every_schedule
@given(data=st.data(), density=st.floats(0.1, 10))
def test_likelihood_weighting_is_the_fall_of_the_snr(kind, data, density):
    sde = data.draw(sdes(kind))
    (t,) = data.draw(times(sde))
    slope = torch.func.jvp(lambda t: readings.log_snr(sde, t).exp(), (t,), (torch.ones(1),))[1]
    weight = sde.blocks.expand(weightings.likelihood(levels(sde, t, density=density)))
    torch.testing.assert_close(weight, -slope / 2 / density, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["noise", "score", "denoised"])
@given(data=st.data())
def test_a_weighting_is_the_squared_error_it_is_named_after(name, data):
    sde = data.draw(sdes())
    (t,) = data.draw(times(sde))
    z, truth, guess = (data.draw(states(sde)) for _ in range(3))
    at = levels(sde, t)
    form = forms.parametrization(name)(at.alpha, at.sigma, torch.ones_like(at.sigma))
    plain = (forms.predict(form, z, truth) - forms.predict(form, z, guess)) ** 2
    weighted = weightings.weighting(name)(at) * (truth - guess) ** 2
    torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", forms.PARAMETRIZATIONS)
@given(data=st.data())
def test_prediction_weighting_is_the_squared_error_of_the_network(form, data):
    sde = data.draw(sdes())
    (t,) = data.draw(times(sde))
    z, truth, guess = (data.draw(states(sde)) for _ in range(3))
    at = levels(sde, t, form)
    affine = forms.parametrization(form)(at.alpha, at.sigma, torch.ones_like(at.sigma))
    plain = (forms.predict(affine, z, truth) - forms.predict(affine, z, guess)) ** 2
    weighted = weightings.prediction(at) * (truth - guess) ** 2
    torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=1e-9)


@given(data=st.data())
def test_balanced_is_between_errors_of_the_network_and_of_what_is_denoised(data):
    sde = data.draw(sdes())
    (t,) = data.draw(times(sde))
    at = levels(sde, t, "preconditioned")
    n = sde.basis.dim
    out = sde.blocks.expand(at.out).expand(*at.out.shape[:-1], n)
    predicted, denoised = out**-2, out.mean(-1, keepdim=True).expand_as(out) ** -2
    weight = sde.blocks.expand(weightings.balanced(at)).expand_as(out)
    torch.testing.assert_close(weight, (predicted * denoised).sqrt(), rtol=1e-6, atol=1e-9)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'likelihood'"):
        weightings.weighting("likelyhood")
