import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ScoreOnly
from strategies import gaussian, mixtures, sdes, states, times

from scoresde import VP, DiagonalSDE, Identity
from scoresde.objectives import parametrization as forms

pytestmark = pytest.mark.usefixtures("float64")

positive = st.floats(0.02, 3)
every_form = pytest.mark.parametrize("name", forms.PARAMETRIZATIONS)


@every_form
@given(positive, positive, positive)
def test_predictions_and_denoised_means_convert_back_and_forth(name, alpha, sigma, std):  # inv. 27
    form = forms.parametrization(name)(*map(torch.tensor, (alpha, sigma, std)))
    z, mean = torch.randn(2, 50)
    back = forms.denoise(form, z, forms.predict(form, z, mean))
    torch.testing.assert_close(back, mean, rtol=1e-9, atol=1e-9)


@given(positive, positive)
def test_predictions_are_what_their_names_say(alpha, sigma):  # invariant 27
    """For a known noise: the network that sees through it predicts it."""
    mean, noise = torch.randn(2, 50)
    z = alpha * mean + sigma * noise
    truth = {
        "denoised": mean,
        "noise": noise,
        "score": -noise / sigma,
        "velocity": alpha * noise - sigma * mean,
    }
    for name, value in truth.items():
        form = forms.parametrization(name)(*map(torch.tensor, (alpha, sigma, 1.0)))
        torch.testing.assert_close(forms.predict(form, z, mean), value, rtol=1e-8, atol=1e-8)


@given(positive, positive, positive)
def test_preconditioning_gives_the_network_a_target_of_unit_variance(alpha, sigma, std):
    skip, out = forms.preconditioned(*map(torch.tensor, (alpha, sigma, std)))
    residual = (1 - skip * alpha) ** 2 * std**2 + (skip * sigma) ** 2
    torch.testing.assert_close(residual / out**2, torch.ones(()))


@given(positive, positive, positive, st.floats(-0.5, 0.5))
def test_preconditioning_asks_the_least_of_the_network(alpha, sigma, std, shift):
    skip, out = forms.preconditioned(*map(torch.tensor, (alpha, sigma, std)))
    other = (1 - (skip + shift) * alpha) ** 2 * std**2 + ((skip + shift) * sigma) ** 2
    assert other >= out**2 * (1 - 1e-9)


@given(data=st.data())
def test_an_estimators_answers_are_one_answer(data):  # invariant 27
    sde = data.draw(sdes())
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    (t,) = data.draw(times(sde))
    t = t[0]
    alpha, sigma = sde.kernel(t.reshape(1))
    mean, score = model.denoise(z, t), model.score(z, t)
    noise, velocity = model.noise(z, t), model.velocity(z, t)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(sigma * score, (alpha * mean - z) / sigma, **close)
    torch.testing.assert_close(noise, -sigma * score, **close)
    torch.testing.assert_close(velocity, alpha * noise - sigma * mean, **close)
    torch.testing.assert_close(alpha * mean + sigma * noise, z, **close)


@given(data=st.data())
def test_a_score_is_enough(data):  # invariant 27
    """Tweedie's formula: an estimator that knows its score denoises."""
    sde = data.draw(sdes())
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    (t,) = data.draw(times(sde))
    told = ScoreOnly(sde, model.score)
    for question in ("denoise", "noise", "velocity"):
        torch.testing.assert_close(
            getattr(told, question)(z, t[0]),
            getattr(model, question)(z, t[0]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'velocity'"):
        forms.parametrization("velocty")


def test_a_function_of_ones_own_passes_through():
    assert forms.parametrization(forms.noise) is forms.noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_form
def test_a_clean_component_is_what_it_is_beside_noisy_ones(name, dtype):
    alpha, sigma = torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=dtype)
    found = forms.affine(forms.parametrization(name), alpha, sigma, 2.0)
    noisy = forms.parametrization(name)(alpha[1], sigma[1], torch.tensor(2.0, dtype=dtype))
    assert (float(found.skip[0]), float(found.out[0])) == (1.0, 0.0)
    torch.testing.assert_close((found.skip[1], found.out[1]), tuple(noisy))


@pytest.mark.parametrize("times", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_answers_have_the_dtype_of_the_state_whatever_that_of_the_times(state, times):
    model = gaussian(DiagonalSDE(VP(), Identity((2,)), [1.0, 0.6]), 2)
    z, t = torch.randn(3, 2, dtype=state), torch.tensor([0.2, 0.5, 0.9], dtype=times)
    by_score = ScoreOnly(model.sde, model.score)
    for question in (model.denoise, model.score, model.noise, model.velocity, by_score.denoise):
        found = question(z, t)
        assert found.dtype == state
        alone = torch.cat([question(z[i : i + 1], float(t[i])) for i in range(3)])
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
