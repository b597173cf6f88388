import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import GeometricBrownianMotion, OrnsteinUhlenbeck, ScoreOnly, SquareRoot
from strategies import every_schedule, mixtures, sdes, states, times
from torch.distributions import Independent, Normal

from scoresde import VP, DiagonalSDE, Identity, Noise, ScoreEstimator
from scoresde.equation import align
from scoresde.estimator import DirectScoreEstimator
from scoresde.reverse import ProbabilityFlow, ReverseSDE
from scoresde.sdes.sde import Stage

pytestmark = pytest.mark.usefixtures("float64")

etas = st.sampled_from([0.0, 0.5, 1.0, 1.7])


def gradient(function, z):
    return torch.func.grad(lambda z: function(z).sum())(z)


def divergence(field, z):
    """Sum of the Jacobian's diagonal at one state ``(n,)``."""
    return torch.func.jacrev(field)(z).diagonal().sum()


def residual(f, g2, log_p, t, z):
    """Of ``dp/dt = -div(f p) + 1/2 sum_i d_i^2 (g_i^2 p)`` at one state, over ``p``."""
    score = gradient(lambda z: log_p(t, z), z)

    def flux(z):  # of probability, over p
        spread = torch.func.jvp(g2, (z,), (torch.ones_like(z),))[1]
        return f(z) - (spread + g2(z) * gradient(lambda z: log_p(t, z), z)) / 2

    change = torch.func.jvp(lambda t: log_p(t, z), (t,), (torch.ones_like(t),))[1]
    return change + divergence(flux, z) + (flux(z) * score).sum()


def log_marginal(model):
    return lambda t, z: model.marginal(t.reshape(1)).log_prob(z)


def check(sde, log_p, t, z, tolerance=1e-6):
    for row in z:
        change = torch.func.jvp(lambda t, r=row: log_p(t, r), (t,), (torch.ones_like(t),))[1]
        left = residual(
            lambda y: sde.f(t, y.unsqueeze(0))[0],
            lambda y: sde.g(t, y.unsqueeze(0))[0] ** 2,
            log_p,
            t,
            row,
        )
        assert left.abs() < tolerance * (1 + change.abs())


@every_schedule
@given(data=st.data())
def test_fokker_planck(kind, data):  # invariant 29
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    (t,) = data.draw(times(sde))
    check(sde, log_marginal(model), t[0], data.draw(states(sde, 1)))


@every_schedule
@given(data=st.data(), eta=etas)
def test_the_reverse_equation_has_the_same_marginals(kind, data, eta):  # invariants 14, 15, 29
    """Fokker-Planck again, in the reversed time: for every amount of noise."""
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    (t,) = data.draw(times(sde))
    forward = log_marginal(model)
    check(ReverseSDE(model, eta), lambda r, z: forward(-r, z), -t[0], data.draw(states(sde, 1)))


@every_schedule
@given(data=st.data())
def test_the_probability_flow_has_the_same_marginals(kind, data):  # invariants 15, 29
    sde = data.draw(sdes(kind))
    model = data.draw(mixtures(sde))
    (t,) = data.draw(times(sde))
    check(ProbabilityFlow(model), log_marginal(model), t[0], data.draw(states(sde, 1)))


NONLINEAR = {
    "geometric": GeometricBrownianMotion((2,)),
    "square root": SquareRoot((2,)),
}
every_nonlinear = pytest.mark.parametrize("name", NONLINEAR)
positions = st.lists(st.floats(0.3, 3), min_size=2, max_size=2).map(lambda v: torch.tensor([v]))


@every_nonlinear
@given(y=positions, t=st.floats(0.05, 1), eta=etas)
def test_marginals_are_kept_where_noise_depends_on_the_state(name, y, t, eta):  # inv. 15, 29
    """Needs the divergence of ``g^2``."""
    sde, t = NONLINEAR[name], torch.tensor(t)
    model = ScoreOnly(sde, sde.true_score)
    check(sde, lambda t, y: sde.log_density(y, t), t, y)
    check(ReverseSDE(model, eta), lambda r, y: sde.log_density(y, -r), -t, y)
    check(ProbabilityFlow(model), lambda t, y: sde.log_density(y, t), t, y)


@every_nonlinear
@given(y=positions, t=st.floats(0.05, 1))
def test_the_known_scores_are_gradients(name, y, t):
    sde, t = NONLINEAR[name], torch.tensor(t)
    score = gradient(lambda y: sde.log_density(y, t), y)
    torch.testing.assert_close(sde.true_score(y, t), score)


@given(data=st.data(), eta=etas)
def test_a_linear_sde_run_as_a_stranger_is_the_same(data, eta):
    """`DiagonalSDE` writes its reverse in the denoised mean; `SDE` in the score."""

    class Stranger(OrnsteinUhlenbeck):
        def f(self, t, y):
            return sde.f(t, y)

        def g(self, t, y):
            return sde.g(t, y)

    sde = data.draw(sdes("VP"))
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    (t,) = data.draw(times(sde))
    stranger = Stranger(basis=sde.basis)
    for a, b in (
        (ReverseSDE(model, eta), ReverseSDE(ScoreOnly(stranger, model.score), eta)),
        (ProbabilityFlow(model), ProbabilityFlow(ScoreOnly(stranger, model.score))),
    ):
        time = a.sign * t[0]
        torch.testing.assert_close(a.f(time, z), b.f(time, z), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.g(time, z), b.g(time, z))


def test_an_sde_without_a_kernel_says_so():
    model = ScoreOnly(OrnsteinUhlenbeck((2,)), lambda z, t: -z)
    with pytest.raises(NotImplementedError, match="OrnsteinUhlenbeck has no closed-form kernel"):
        model.denoise(torch.zeros(1, 2), 0.5)


def test_an_sde_without_a_prior_says_so():
    from solvers import EulerMaruyama

    model = ScoreOnly(OrnsteinUhlenbeck((2,)), lambda z, t: -z)
    with pytest.raises(ValueError, match=r"prior: .*OrnsteinUhlenbeck"):
        EulerMaruyama(2).sample(model, (1,))


def test_components_are_appended_and_marginalised_by_the_distribution_given():
    """As a distribution of one event, or of as many numbers."""
    torch.manual_seed(0)
    sde, stage = OrnsteinUhlenbeck((5,)), Stage(0.5, 0.1, 5)
    sde.distribution = lambda t, first, last: Normal(torch.arange(first, last) + 0.0, t / 1000)
    z = torch.randn(4, 2)
    grown = sde.append(z, stage, Noise())
    assert torch.equal(grown[:, :2], z)
    torch.testing.assert_close(
        grown[:, 2:].round(), torch.tensor([2.0, 3.0, 4.0]).expand(4, 3), rtol=0, atol=0
    )
    generators = [torch.Generator().manual_seed(row) for row in range(4)]
    assert sde.append(z, stage, Noise(generators)).shape == grown.shape
    kept, log_prob = sde.marginalise(grown, stage, 2)
    assert torch.equal(kept, z)
    each = Normal(torch.tensor([2.0, 3.0, 4.0]), 5e-4)
    torch.testing.assert_close(log_prob, each.log_prob(grown[:, 2:]).sum(-1))
    sde.distribution = lambda t, first, last: Independent(each, 1)
    torch.testing.assert_close(sde.marginalise(grown, stage, 2)[1], log_prob)


def test_an_estimator_must_answer_something():
    sde = DiagonalSDE(VP(), Identity((2,)))
    for kind, method in ((ScoreEstimator, "denoise"), (DirectScoreEstimator, "score")):
        with pytest.raises(TypeError, match=f"abstract.*Mute.*{method}"):
            type("Mute", (kind,), {})(sde)


@pytest.mark.parametrize(
    ("t", "shape"),
    [
        (0.5, (1,)),
        (torch.tensor(0.5), (1,)),
        (torch.ones(4), (4, 1)),
        (torch.ones(4, 1), (4, 1)),
        (torch.ones(4, 3), (4, 3)),
        (torch.ones(1, 3), (1, 3)),
    ],
)
def test_times_are_told_apart_by_their_axes(t, shape):
    assert align(t, torch.zeros(4, 3)).shape == shape


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.3, [0.3] * 4, np.float32(0.3), 1])
def test_a_number_has_the_digits_of_the_state(t, dtype, default):
    """Whatever torch's default is: ``0.3`` in float32 is 1e-8 off."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = align(t, torch.zeros(4, 3, dtype=dtype))
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == dtype
    assert (found == torch.tensor(t, dtype=torch.float64).to(dtype)).all()


@pytest.mark.parametrize("of", [float, torch.tensor, lambda t: torch.tensor([0.5, t])])
def test_times_are_those_from_zero_to_the_last(of):
    sde, z = DiagonalSDE(VP(), Identity((3,))), torch.zeros(2, 3)
    for t in (0.0, sde.T):
        assert sde.time(of(t), z).flatten()[-1] == t
    for t in (-1e-3, sde.T + 1e-3):
        with pytest.raises(ValueError, match=r"^t: expected (a time|times) from 0 to 1\.0"):
            sde.time(of(t), z)


@pytest.mark.parametrize("t", [torch.ones(5), torch.ones(5, 1), torch.ones(2, 4, 3)])
def test_times_that_fit_no_batch_are_refused(t):
    with pytest.raises(ValueError, match=r"^t: expected a number, shape"):
        align(t, torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"^t: expected real numbers"):
        align(1j * t, torch.zeros(4, 3))


@given(data=st.data())
def test_times_per_sample_are_times_one_by_one(data):
    sde = data.draw(sdes())
    model = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    t = torch.cat(data.draw(times(sde, 3)))
    for question in (model.denoise, model.score, sde.f, sde.g):
        arguments = (lambda t, z: (t, z)) if question in (sde.f, sde.g) else (lambda t, z: (z, t))
        together = question(*arguments(t, z))
        alone = torch.cat([question(*arguments(t[i], z[i : i + 1])) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eta", [-0.1, float("nan")])
def test_negative_noise_is_refused(eta):
    sde = DiagonalSDE(VP(), Identity((2,)))
    with pytest.raises(ValueError, match="eta"):
        ReverseSDE(ScoreOnly(sde, lambda z, t: -z), eta)


def test_an_sde_may_start_at_time_zero_and_no_earlier():
    assert OrnsteinUhlenbeck((2,), eps=0.0).eps == 0
    with pytest.raises(ValueError, match="eps, T: expected 0 <= eps < T"):
        OrnsteinUhlenbeck((2,), eps=-1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["forward", "flow", "reverse"])
def test_what_an_unknown_sde_says_of_several_times(kind, dtype):
    """Its drift and diffusion at each of them, and steps of Euler and Maruyama between them."""

    class Ageing(OrnsteinUhlenbeck):
        def f(self, t, y):
            return -t * y

        def g(self, t, y):
            return (1 + t) * y

    sde = Ageing((2,))
    model = ScoreOnly(sde, lambda z, t: -2 * z - t)
    equation, eta, sign = {
        "forward": lambda: (sde, 1.0, 1),
        "flow": lambda: (ProbabilityFlow(model), 0.0, 1),
        "reverse": lambda: (ReverseSDE(model, 0.5), 0.5, -1),
    }[kind]()
    assert equation.stochastic == (eta > 0)
    z, xi = torch.tensor([[1.0, -2.0]], dtype=dtype), torch.tensor([[0.3, 0.5]], dtype=dtype)
    ts = sign * torch.tensor([[0.25], [0.5], [1.0]])
    at = equation.at(ts, z)
    for t, field in zip(ts[1:], at[1:].fields(), strict=True):
        s = sign * t  # the SDE's time
        g2, divergence = ((1 + s) * z) ** 2, 2 * (1 + s) ** 2 * z
        pull = g2 * (-2 * z - s) + divergence if kind != "forward" else 0.0
        drift = sign * (-s * z - (1 + eta**2) / 2 * pull)
        wanted = {
            "drift": drift,
            "diffusion": eta * (1 + s) * z,
            "forcing": sign * drift,  # in the SDE's time
        }
        for name, value in wanted.items():
            torch.testing.assert_close(getattr(field, name)(z), value.to(dtype), msg=name)
        noise = (1 + s) * z * xi  # `noise_std` has the factor
        torch.testing.assert_close(field.increment(z, xi), noise.to(dtype))
    step, h = at[:2].propagator(at[1:]), torch.tensor([[0.25], [0.5]])  # in the SDE's time
    for name, value in (("decay", 1 + 0 * h), ("damping", 0 * h), ("h", h), ("gain", h)):
        torch.testing.assert_close(getattr(step, name), value, msg=name)
    assert (step.noise_std is None) == (eta == 0)
    if eta:
        torch.testing.assert_close(step.noise_std, eta * h.sqrt())


def test_the_mean_that_follows_from_a_score_is_of_its_condition():
    class Shifted(DirectScoreEstimator):
        def score(self, z, t, condition=None):
            return condition - z

    model, z = Shifted(DiagonalSDE(VP(), Identity((2,)))), torch.randn(3, 2).double()
    alpha, sigma = model.sde.kernel(torch.tensor([0.5], dtype=torch.float64))
    for condition in (torch.zeros(3, 2), torch.randn(3, 2)):
        wanted = (z + sigma**2 * (condition - z)) / alpha
        torch.testing.assert_close(model.denoise(z, 0.5, condition), wanted)
