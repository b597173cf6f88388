"""Guidance by labels: against closed forms, exact at its ends, and what it costs."""

import math

import pytest
import torch

from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    GaussianMixture,
    MultiScale,
    NetworkAdapter,
    ResidualMLP,
    UNet,
)
from scoresde import (
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Identity,
    ScoreEstimator,
    bound,
    log_prob,
)
from scoresde.data import Dataset
from scoresde.sampling.grid import restrict
from scoresde.training import Training
from solvers import DDIM, EulerMaruyama, ExponentialMultistep, Heun

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
COVARIANCES = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.4]], [[0.1, 0], [0, 1]]])
PRIOR = torch.tensor([0.5, 0.3, 0.2])


class Labelled(ScoreEstimator):
    """Exact: the component of a mixture that a label names, and the mixture where it is 3."""

    def __init__(self, schedule=None):
        sde = DiagonalSDE(VP() if schedule is None else schedule, Identity((2,)))
        super().__init__(sde)
        parts = [Gaussian(sde, m, c) for m, c in zip(MEANS, COVARIANCES, strict=True)]
        whole = GaussianMixture(sde, PRIOR, MEANS, COVARIANCES)
        self.parts, self.evaluations = torch.nn.ModuleList([*parts, whole]), 0

    def denoise(self, z, t, condition=None):
        self.evaluations += 1
        known = torch.stack([part.denoise(z, t) for part in self.parts])
        place = condition.reshape(1, *z.shape[:-1], 1).expand(1, *z.shape)
        return known.gather(0, place).squeeze(0)


LABELS = torch.tensor([0, 1, 2, 1])
Z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def closed_form(z, t, labels, sde):
    """Denoised means of components and of their mixture, without any of our estimators."""
    z = z.double()
    alpha, sigma = (v.double() for v in sde.kernel(torch.tensor([t], dtype=torch.float64)))
    means, log_weights = [], []
    for mean, covariance, weight in zip(MEANS.double(), COVARIANCES.double(), PRIOR, strict=True):
        total = alpha**2 * covariance + sigma**2 * torch.eye(2).double()
        gain = alpha * covariance @ torch.linalg.inv(total)
        means.append(mean + (z - alpha * mean) @ gain.mT)
        distribution = torch.distributions.MultivariateNormal(alpha * mean, total)
        log_weights.append(weight.double().log() + distribution.log_prob(z))
    posterior = torch.stack(log_weights, -1).softmax(-1)
    each = torch.stack(means, -2)
    return each[torch.arange(len(z)), labels], (posterior.unsqueeze(-1) * each).sum(-2)


@every_dtype
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_of_a_mixture_it_is_the_closed_form(guidance, t, dtype):
    model = Labelled()
    guided = ClassifierFree(model, null_condition=3, guidance=guidance)
    told, unconditional = closed_form(Z, t, LABELS, model.sde)
    wanted = unconditional + guidance * (told - unconditional)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-6}[dtype]
    found = guided.denoise(Z.to(dtype), t, LABELS)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    alpha, sigma = (v.double() for v in model.sde.kernel(torch.tensor([t], dtype=torch.float64)))
    score = guided.score(Z.to(dtype), t, LABELS).double()
    wanted = (alpha * wanted - Z.double()) / sigma**2
    torch.testing.assert_close(score, wanted, atol=10 * tolerance, rtol=10 * tolerance)


@every_dtype
@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
def test_its_ends_are_exact_and_cost_one_evaluation(interval, dtype):
    model, z = Labelled(), Z.to(dtype)
    told, unconditional = (model.denoise(z, 0.3, c) for c in (LABELS, torch.full_like(LABELS, 3)))
    sigma = float(model.sde.at(torch.tensor([[0.3]])).noise_level.exp())
    assert 0.5 < sigma < 2.0
    for guidance, condition, wanted in (
        (1.0, LABELS, told),
        (0.0, LABELS, unconditional),
        (2.0, None, unconditional),
    ):
        model.evaluations = 0
        guided = ClassifierFree(model, null_condition=3, guidance=guidance, interval=interval)
        assert torch.equal(guided.denoise(z, 0.3, condition), wanted)
        assert model.evaluations == 1


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_outside_the_interval_the_condition_is_as_it_is_and_costs_one_evaluation(guidance):
    model = Labelled()
    guided = ClassifierFree(model, null_condition=3, guidance=guidance, interval=(0.3, 2.0))
    everywhere = ClassifierFree(model, null_condition=3, guidance=guidance)
    solver = DDIM(20)
    times = solver.times(model.sde)[:-1]
    levels = [float(model.sde.at(t.reshape(1, 1)).noise_level.exp()) for t in times]
    within = [0.3 <= level <= 2.0 for level in levels]
    assert 3 < sum(within) < 17
    for t, inside in zip(times.tolist(), within, strict=True):
        wanted = (everywhere if inside else model).denoise(Z, t, LABELS)
        assert torch.equal(guided.denoise(Z, t, LABELS), wanted)
    model.evaluations = 0
    solver.sample(guided, (4,), condition=LABELS)
    assert model.evaluations == 20 + (sum(within) if guidance else 0)


def test_samples_with_times_of_their_own_are_each_in_the_interval_or_not():
    model = Labelled()
    guided = ClassifierFree(model, null_condition=3, guidance=2.5, interval=(0.3, 2.0))
    t = torch.tensor([0.01, 0.3, 0.3, 0.99])
    found = guided.denoise(Z, t, LABELS)
    for i in range(4):
        alone = guided.denoise(Z[i : i + 1], float(t[i]), LABELS[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_much_noise_is_in_an_interval_without_end_and_clean_data_are_in_none():
    model = Labelled(VP(beta_max=4000.0))  # sigma/alpha is more than numbers hold
    everywhere = ClassifierFree(model, null_condition=3, guidance=2.0)
    for high, inside in ((math.inf, True), (1e300, False)):
        guided = ClassifierFree(model, null_condition=3, guidance=2.0, interval=(0.0, high))
        other = everywhere if inside else model
        assert torch.equal(guided.denoise(Z, 1.0, LABELS), other.denoise(Z, 1.0, LABELS))
        assert torch.equal(guided.denoise(Z, 0.0, LABELS), model.denoise(Z, 0.0, LABELS))


# Training.


class Recorded(Labelled):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), []

    def loss(self, x, condition=None, generator=None):
        self.seen.append(condition)
        return self.weight.square()


CONDITIONS = {
    "labels": (torch.arange(1, 4001) % 7, 9),
    "vectors": (torch.arange(4000.0).unsqueeze(-1).repeat(1, 2), [-1.0, -2.0]),
    "maps": (torch.rand(4000, 1, 2, 3), torch.full((1, 2, 3), -1.0)),
}


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_conditions_are_lost_with_their_probability_whole_and_in_place(kind, dropout):
    told, none = CONDITIONS[kind]
    model = Recorded()
    guided = ClassifierFree(model, none, dropout=dropout)
    guided.loss(torch.zeros(4000, 2), told, torch.Generator().manual_seed(0))
    (seen,) = model.seen
    lost = (seen == torch.as_tensor(none)).flatten(1 if told.ndim > 1 else 0)
    lost = lost.all(1) if told.ndim > 1 else lost
    assert torch.equal(seen[~lost], told[~lost])
    assert lost.double().mean().item() == pytest.approx(dropout, abs=0.03)
    assert seen.dtype == told.dtype


def test_without_dropout_the_loss_is_that_of_the_estimator():
    model = denoising()
    x, labels = torch.randn(8, 2), torch.arange(8) % 3
    for dropout, same in ((0.0, True), (0.5, False)):
        guided = ClassifierFree(model, null_condition=3, dropout=dropout)
        losses = [m.loss(x, labels, torch.Generator().manual_seed(0)) for m in (model, guided)]
        assert torch.equal(*losses) == same
    everything = ClassifierFree(model, null_condition=3, dropout=1.0)
    with pytest.raises(ValueError, match="condition: expected one for every event"):
        everything.loss(x)


def denoising(dtype=torch.float32, **options):
    torch.manual_seed(0)
    network = ResidualMLP((2,), width=16, depth=1, classes=3, **options)
    torch.nn.init.normal_(network.output_layer[1].weight, std=0.3)
    return Denoising(DiagonalSDE(VP(), Identity((2,))), network).to(dtype)


@pytest.mark.parametrize("parts", [2, 4])
def test_who_loses_its_condition_does_not_depend_on_the_parts_of_a_batch(parts):
    data = Dataset("mine", torch.randn(40, 2), condition=torch.arange(40) % 3)
    trained = []
    for accumulation in (1, parts):
        guided = ClassifierFree(denoising(), null_condition=3, dropout=0.4)
        settings = {"steps": 3, "batch_size": 8, "accumulation": accumulation}
        Training(**settings).fit(guided, data, data, progress=False)
        trained.append(torch.nn.utils.parameters_to_vector(guided.parameters()))
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", ["uniform", "multi-scale"])
def test_samples_are_of_the_class_they_are_asked_for(spread):
    """Two classes far apart, a small network, a short training; no label gives both."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 2
    centre = (2.0 * labels - 1).reshape(-1, 1).expand(-1, 4) * torch.tensor([1.0, 1.0, -1.0, -1.0])
    x = centre + 0.2 * torch.randn(256, 4, generator=g)
    if spread == "uniform":
        network = ResidualMLP((4,), 32, 1, classes=2)
        inner = Denoising(DiagonalSDE(Cosine(), Identity((4,))), network)
    else:
        sde = DiagonalSDE(Cosine(), Haar((4,), 2), drop=[1.0, 0.8, 0.8])
        inner = MultiScale(sde, lambda shape: ResidualMLP(shape, 32, 1, classes=2))
    model = ClassifierFree(inner, null_condition=2, guidance=1.5)
    data = Dataset("two", x, condition=labels, classes=("left", "right"))
    Training(steps=150, batch_size=64, lr=3e-3, ema=0.9, measurements=1).fit(
        model, data, progress=False
    )
    told = torch.arange(60) % 2
    found = DDIM(12).sample(model, (60,), condition=told, generator=torch.Generator())
    assert ((found @ torch.tensor([1.0, 1.0, -1.0, -1.0]) > 0).long() == told).all()
    unconditional = DDIM(12).sample(model, (60,), generator=torch.Generator())
    assert 10 < (unconditional[:, 0] > 0).sum() < 50


# What takes a condition.


def networks():
    yield "mlp", Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1, classes=3))
    unet = UNet((2,), channels=[8, 8], blocks=1, attention=0, classes=3)
    yield "unet", Denoising(DiagonalSDE(VP(), Identity((2,))), unet)
    sde = DiagonalSDE(Cosine(), Haar((2,), 1), drop=[1.0, 0.7])
    yield "multi-scale", MultiScale(sde, lambda shape: ResidualMLP(shape, 8, 1, classes=3))


@pytest.mark.covering(1)
@every_dtype
@pytest.mark.parametrize("name", ["mlp", "unet", "multi-scale"])
def test_whatever_takes_a_condition_takes_labels(name, dtype):
    torch.manual_seed(0)
    inner = dict(networks())[name].to(dtype)
    for weight in inner.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model, x = ClassifierFree(inner, null_condition=3, guidance=1.5), torch.randn(4, 2, dtype=dtype)
    many = [torch.Generator().manual_seed(i) for i in range(4)]

    def again():
        return [torch.Generator().manual_seed(i) for i in range(4)]

    solver = DDIM(4)
    wanted = solver.sample(model, (4,), condition=LABELS, generator=many)
    assert wanted.dtype == dtype
    close = {"rtol": 1e-4, "atol": 1e-5}
    told = {"condition": LABELS, "generator": again()}
    torch.testing.assert_close(solver.sample(model, (4,), batch_size=3, **told), wanted, **close)
    told["generator"] = again()
    torch.testing.assert_close(
        torch.cat([*solver.batches(model, (4,), 2, **told)]), wanted, **close
    )
    compiled = solver.compiled(model, (4,), condition=LABELS)
    torch.testing.assert_close(compiled(again()), wanted, **close)
    shaped = solver.sample(model, (2, 2), condition=LABELS.reshape(2, 2), generator=again())
    torch.testing.assert_close(shaped.reshape(4, -1), wanted.reshape(4, -1), **close)
    told["generator"] = again()
    one = solver.sample(model, (4,), condition=torch.tensor(1), generator=again())
    torch.testing.assert_close(one[3], wanted[3], **close)
    other = solver.sample(model, (4,), condition=(LABELS + 1) % 3, generator=again())
    assert (other - wanted).abs().amax(1).min() > 1e-4
    for solver in (Heun(4), ExponentialMultistep(4), EulerMaruyama(4)):
        solver.sample(model, (4,), **told)
    density = log_prob(model, x, DDIM(6), condition=LABELS, trace=ExactTrace())
    for i in range(4):
        alone = log_prob(model, x[i : i + 1], DDIM(6), condition=LABELS[i : i + 1])
        torch.testing.assert_close(density.value[i : i + 1], alone.value, **close)
    assert bound(model, x, condition=LABELS).shape == (4,)


def test_a_restricted_grid_is_that_of_the_stages():
    """Every stage's network hears the label."""
    model = dict(networks())["multi-scale"]
    for stage in model.stages:
        torch.nn.init.normal_(stage.network.output_layer[1].weight)
        t = restrict(DDIM(9).times(model.sde), stage.stage)[1].item()
        z = torch.randn(1, stage.stage.dim)
        first, second = (stage.denoise(z, t, torch.tensor([label])) for label in (0, 1))
        assert not torch.equal(first, second)


class Deaf(torch.nn.Linear):
    def forward(self, x, level):
        return super().forward(x)


DEAF = {
    "mlp": (ResidualMLP((2,), 8, 1), ValueError, "none, as the network was made without"),
    "unet": (UNet((2,), channels=[8], blocks=1), ValueError, "none, as the network was made witho"),
    "a user's": (Deaf(2, 2), TypeError, r"None, as the network takes none .* Deaf.forward\(x, lev"),
}


@pytest.mark.parametrize("name", DEAF)
def test_what_takes_no_condition_says_so_in_a_sentence(name):
    network, error, message = DEAF[name]
    model = Denoising(DiagonalSDE(VP(), Identity((2,))), network)
    data = Dataset("mine", torch.randn(8, 2), condition=torch.arange(8))
    with pytest.raises(error, match=f"condition: expected {message}") as found:
        Training(steps=1, batch_size=4).fit(model, data, progress=False)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), r"labels \(batch,\) of 0 to 3, .* none, got \[0, 4\]"),
        (torch.tensor([-1, 0]), r"got \[-1, 0\]"),
        (torch.tensor([0.0, 1.0]), r"got \[0.0, 1.0\]"),
        (torch.zeros(20, 1).long(), r"got torch.int64 \(20, 1\)"),
        (None, "condition: expected one, got None"),
    ],
)
def test_labels_that_are_none_are_named(labels, message):
    for network in (
        ResidualMLP((2,), 8, 1, classes=3),
        UNet((2,), channels=[8], blocks=1, classes=3),
    ):
        with pytest.raises(ValueError, match=message):
            network(torch.zeros(2, 2), torch.zeros(2), labels)


def test_networks_of_others_hear_labels():
    class Theirs(torch.nn.Module):
        def forward(self, x, time, class_labels=None):
            return x * class_labels.reshape(-1, 1)

    inner = Denoising(DiagonalSDE(VP(), Identity((2,))), NetworkAdapter(Theirs()))
    found = ClassifierFree(inner, null_condition=3).denoise(Z, 0.5, LABELS)
    assert torch.equal(found, inner.denoise(Z, 0.5, LABELS))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance": -1.0}, "guidance: expected a finite number of at least 0"),
        ({"guidance": math.nan}, "guidance: expected a finite number"),
        ({"dropout": 1.5}, "dropout: expected"),
        ({"interval": (2.0, 1.0)}, "interval: expected two numbers, least and largest sigma/alpha"),
        ({"interval": (1.0,)}, "interval: expected two numbers"),
        ({"interval": (-1.0, 1.0)}, "interval: expected a finite number of at least 0"),
        ({"interval": (0.0, math.nan)}, "interval: expected"),
        ({"interval": (0.0, "a")}, "interval: expected"),
        ({"interval": 3.0}, "interval: expected two numbers"),
        ({"null_condition": "nothing"}, "null_condition: expected a tensor, a number or a list"),
        ({"null_condition": None}, "null_condition: expected a tensor, a number or a list"),
        ({"estimator": None}, "estimator: expected a ScoreEstimator, got None"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ClassifierFree(**{"estimator": Labelled(), "null_condition": 3, **wrong})


def test_what_is_no_tensor_cannot_be_replaced():
    with pytest.raises(TypeError, match="condition: expected a Tensor, got 'dog'"):
        ClassifierFree(Labelled(), 3, guidance=2.0).denoise(Z, 0.5, "dog")
