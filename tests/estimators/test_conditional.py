"""CDE, CDiffE, CMDE and VS-CMDE: one joint estimator with more or less noise on the condition."""

import inspect
import math

import pytest
import torch

from estimators import MultiScale, ResidualMLP, cde, cdiffe, cmde, vs_cmde
from scoresde import VE, DiagonalSDE, Haar, Identity, Joint, LogLinear, Packed, condition, log_prob
from scoresde.conditioning import split_events
from scoresde.training import Training
from solvers import DDIM, ExponentialMultistep

NAMES = {"cde": cde, "cdiffe": cdiffe, "cmde": cmde, "vs-cmde": vs_cmde}


def maker(shape):
    return ResidualMLP(shape, 16, 1)


def pair(schedule=None):
    return DiagonalSDE(VE(0.005, 20.0) if schedule is None else schedule, Joint(y=(2,), x=(3,)))


def made(name, sde=None, **options):
    torch.manual_seed(0)
    more = {"updates": 10} if name == "vs-cmde" else {}
    return NAMES[name](pair() if sde is None else sde, maker, **more, **options)


@pytest.mark.parametrize(
    ("name", "noise"), [("cde", 0.0), ("cdiffe", 20.0), ("cmde", 0.5), ("vs-cmde", 0.5)]
)
def test_the_noise_that_makes_the_name(name, noise):
    sigma = made(name).eval().sde.at(torch.ones(1, dtype=torch.float64)).sigma
    assert float(sigma[0]) == pytest.approx(noise, rel=1e-6)
    assert float(sigma[1]) == pytest.approx(20.0)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_and_samples(name):
    model = made(name)
    Training(steps=2, batch_size=8).fit(model, torch.randn(20, 5), progress=False)
    posterior = condition(model, y=torch.randn(4, 2))
    assert DDIM(3, eta=1.0).sample(posterior, (2, 4)).shape == (2, 4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_of_the_noise_is_the_joint_model(dtype):  # invariant 31
    """CMDE as fast as the rest is CDiffE, of one network."""
    fast, equal = (
        made(name, **o).to(dtype) for name, o in (("cmde", {"noise": 20.0}), ("cdiffe", {}))
    )
    for model in (fast, equal):
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    z = torch.randn(7, 5, dtype=dtype)
    torch.testing.assert_close(fast.denoise(z, 0.7), equal.denoise(z, 0.7), rtol=1e-4, atol=1e-4)


def test_what_stands_still_is_no_part_of_the_loss():
    """And has a density; what diffuses has none."""
    still, slow = made("cde"), made("cmde")
    x = torch.randn(6, 5)
    other = x + torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
    for model in (still, slow):
        a, b = (model.losses(v, generator=torch.Generator().manual_seed(0)) for v in (x, other))
        assert not torch.equal(a, b)
    posterior, rest = split_events(still, ["y"], x)
    assert log_prob(posterior, rest, ExponentialMultistep(8)).value.shape == (6,)
    posterior, rest = split_events(slow, ["y"], x)
    with pytest.raises(ValueError, match="observed: expected components that do not diffuse"):
        log_prob(posterior, rest, ExponentialMultistep(8))


def test_cde_learns_the_posterior():
    """Of two correlated numbers, as by the closed form: mean .8 y, deviation .6."""
    torch.manual_seed(0)
    sde = DiagonalSDE(LogLinear(), Joint(y=(1,), x=(1,)))
    model = cde(sde, lambda shape: ResidualMLP(shape, 32, 1))
    y = torch.randn(4096, 1)
    x = 0.8 * y + 0.6 * torch.randn(4096, 1)
    Training(steps=150, batch_size=256, lr=5e-3, ema=0.9).fit(
        model, torch.cat([y, x], 1), progress=False
    )
    known = torch.tensor([[1.0], [-1.0]])
    samples = ExponentialMultistep(12).sample(condition(model, y=known), (1000, 2))
    assert samples.mean(0).flatten().tolist() == pytest.approx([0.8, -0.8], abs=0.12)
    assert samples.std(0).flatten().tolist() == pytest.approx([0.6, 0.6], abs=0.1)


class TestScales:
    """Multi-scale diffusion of an image, given another: a network per stage sees both."""

    basis = Joint(y=(1, 2, 2), x=Haar((1, 8, 8), levels=2))

    def sde(self):
        drop = [1.0, 1.0, 0.75, 0.5]
        return DiagonalSDE(LogLinear(), self.basis, speeds=[1.0, 1.0, 1 / 0.75, 2.0], drop=drop)

    @pytest.mark.parametrize(
        ("view", "seen"),
        [
            ("events", [(2, 2, 2), (2, 4, 4), (2, 8, 8)]),
            ("packed", [(2, 2, 2), (5, 2, 2), (5, 4, 4)]),
        ],
    )
    def test_stages_see_the_condition_in_their_own_coordinates(self, view, seen):
        shapes = []

        def spy(shape):
            shapes.append(tuple(shape))
            return maker(shape)

        model = cmde(self.sde(), spy, network_bases=view)
        assert shapes == seen
        assert isinstance(model, MultiScale)
        joint = model.stages[-1].network_basis
        assert isinstance(joint.parts["x"], Packed) == (view == "packed")
        x = torch.randn(5, self.basis.dim)
        assert model.losses(x).shape == (5,)
        posterior = condition(model, y=torch.randn(3, 1, 2, 2))
        assert DDIM(6, eta=1.0).sample(posterior, (3,)).shape == (3, 1, 8, 8)

    def test_a_density_given_what_stands_still(self):
        model = cde(self.sde(), maker)
        posterior, x = split_events(model, ["y"], torch.randn(2, self.basis.dim))
        assert torch.isfinite(log_prob(posterior, x, ExponentialMultistep(6)).value).all()

    def test_what_is_given_must_be_there_from_the_start(self):
        basis = Joint(x=Haar((1, 4, 4), levels=1), y=(4,))
        sde = DiagonalSDE(LogLinear(), basis, speeds=[1.0, 2.0, 1.0], drop=[1.0, 0.5, 0.5])
        with pytest.raises(
            ValueError, match=r"dim: expected more than 16: of the last part, .y., alone"
        ):
            cde(sde, maker)


def test_signatures_name_every_option():
    """By which a file is checked."""
    wanted = {"given", "network_bases", "shares", "data_mean", "data_std", "weighting", "times"}
    for name, function in NAMES.items():
        parameters = inspect.signature(function).parameters
        assert wanted < parameters.keys()
        assert ("noise" in parameters) == (name in ("cmde", "vs-cmde"))
        assert ("updates" in parameters) == (name == "vs-cmde")
        assert "baseline" not in parameters


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: made("cde", given="z"), ValueError, "parts: unknown name 'z'"),
        (lambda: made("cde", given=["x", "y"]), ValueError, "given: expected some of the parts"),
        (lambda: made("cde", noise=0.1), TypeError, "noise"),
        (lambda: made("cmde", noise=math.nan), ValueError, "noise: .*nan"),
        (lambda: made("cmde", network_bases="all"), ValueError, "view: unknown name 'all'"),
        (lambda: made("cde", DiagonalSDE(VE(), Identity((2,)))), TypeError, "basis: .*Joint"),
        (lambda: cde(pair(), [maker, maker]), ValueError, "networks: expected 1, got 2"),
    ],
)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
