"""Stages of a multi-scale model: trained together on shares of a batch, or each by itself."""

import itertools

import pytest
import torch
from forks import FORKS, needs_fork
from torch import nn

from estimators import Denoising, MultiScale, ResidualMLP
from scoresde import Cosine, DiagonalSDE, Haar, Noise
from scoresde.noise import NoiseShard
from scoresde.testing import DeviceCalls
from scoresde.training import Training

SHAPE = (1, 4, 4)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def diffusion():
    return DiagonalSDE(Cosine(), Haar(SHAPE, 2), [1.0, 2.0, 4.0], drop=[1.0, 0.5, 0.25])


def build(dtype=torch.float32, **options):
    torch.manual_seed(0)
    sde = diffusion()
    networks = [ResidualMLP((stage.dim,), width=8, depth=1) for stage in sde.stages()]
    for network in networks:
        nn.init.normal_(network.output_layer[1].weight, std=0.3)
    return MultiScale(sde, networks, **options).to(dtype)


def events(count, dtype=torch.float32):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


def seeded():
    return torch.Generator().manual_seed(2)


@every_dtype
def test_stages_in_shares_have_the_losses_of_their_events(dtype):
    model, x = build(dtype, shares=[1.0, 0.5, 0.2]), events(10, dtype)
    losses = model.losses(x, generator=seeded())
    noise, wanted = Noise(seeded()), []
    for stage, count in zip(model.stages, (10, 5, 2), strict=True):
        own = stage.losses(x[:count], generator=noise)
        wanted.append(torch.cat([own * (10 / count), torch.zeros(10 - count, dtype=dtype)]))
        assert own.mean() > 0
    torch.testing.assert_close(losses, sum(wanted))
    means = [part.mean() / 16 for part in wanted]
    torch.testing.assert_close(model.loss(x, generator=seeded()), sum(means))


@every_dtype
def test_shares_leave_the_mean_of_a_loss_as_it_is(dtype):
    whole, parts = build(dtype), build(dtype, shares=[0.5, 0.5, 0.5])
    x = events(1, dtype).expand(4000, *SHAPE)
    first, second = (model.losses(x, generator=seeded()).detach() for model in (whole, parts))
    spread = (3 * first.var() / len(first)).sqrt()  # the second mean is over half as many
    assert abs(first.mean() - second.mean()) < 4 * spread < 0.03 * first.mean()


def test_every_event_counts_in_evaluation():
    whole, parts, x = build(), build(shares=[1.0, 0.5, 0.25]), events(8)
    losses = [model.eval().losses(x, generator=seeded()) for model in (whole, parts)]
    assert torch.equal(*losses)


def test_shares_hear_their_own_conditions_and_generators():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.told, self.weight = [], nn.Parameter(torch.ones(()))

        def forward(self, x, level, condition):
            self.told.append(condition.flatten().tolist())
            return self.weight * x

    networks = [Told() for _ in range(3)]
    model = MultiScale(diffusion(), networks, shares=[1.0, 0.5, 0.25])
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    condition = torch.arange(4.0).unsqueeze(-1)
    losses = model.losses(events(4), condition, generators)
    assert [network.told for network in networks] == [[[0, 1, 2, 3]], [[0, 1]], [[0]]]
    assert losses.shape == (4,)


def test_shares_are_the_same_of_several_processes():
    model, x = build(shares=[1.0, 0.5, 0.5]), events(8)
    whole = model.losses(x, generator=seeded())
    parts = [model.losses(x[i::2], generator=NoiseShard(seeded(), i, 2)) for i in range(2)]
    torch.testing.assert_close(sum(p.mean() for p in parts) / 2, whole.mean())


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0, 0.5], r"shares: expected 3, got 2"),
        ([1.0, 0.0, 0.5], r"shares: expected positive"),
        ([1.0, 2.0, 0.5], r"shares: expected a finite number from 0 to 1"),
        ([1.0, "half", 0.5], r"shares: expected a finite number"),
    ],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        build(shares=shares)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_events_have_a_loss_in_every_stage(rows):
    losses = build(shares=[1.0, 0.1, 0.1]).losses(events(rows))
    assert losses.shape == (rows,)
    assert losses.isfinite().all()


def test_random_numbers_are_those_of_each_stages_components():
    """And the batch is transformed once."""
    model = build(shares=[1.0, 1.0, 0.5]).to("meta")
    x = torch.empty(8, *SHAPE, device="meta")
    model.loss(x)
    drawn, transformed = [], []
    model.sde.basis.register_forward_hook(lambda *_: transformed.append(1))

    class Counting(Noise):
        def __call__(self, like):
            drawn.append(tuple(like.shape))
            return super().__call__(like)

    with DeviceCalls() as calls:
        model.losses(x, generator=Counting())
    assert drawn == [(8, 1), (8, 4), (4, 16)]
    assert len(transformed) == 1
    assert calls.operations["rand"] == 3  # one start of the strata each


@every_dtype
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_coefficients_are_as_good_as_their_events(stage, dtype):
    model, x = build(dtype), events(6, dtype)
    one = model.stages[stage]
    view, z = one.on_coefficients(), model.sde.basis(x)[:, : one.stage.dim]
    assert torch.equal(view.losses(z, generator=seeded()), one.losses(x, generator=seeded()))
    assert {id(p) for p in view.parameters()} == {id(p) for p in one.parameters()}
    with pytest.raises(ValueError, match=r"(x|z): expected "):
        view.losses(x)
    one.losses(x)  # which is what it was


def test_what_is_trained_on_coefficients_is_the_stage():
    x, settings = events(64), Training(steps=5, batch_size=8)
    stage, same = build().stages[1], build().stages[1]
    before = [p.detach().clone() for p in stage.parameters()]
    settings.fit(stage.on_coefficients(), stage.sde.basis(x)[:, :4], progress=False)
    settings.fit(same, x, progress=False)
    for was, own, other in zip(before, stage.parameters(), same.parameters(), strict=True):
        assert torch.equal(own, other)
        assert not torch.equal(own, was)


def fit(index, folder):
    """What each process runs: a stage of the model that all of them build."""
    stage = build().stages[index]
    Training(steps=6, batch_size=8).fit(
        stage, events(64), folder=f"{folder}/stage{index}", progress=False
    )


@needs_fork
def test_stages_trained_at_once_are_those_trained_one_after_the_other(tmp_path):
    """By processes that know nothing of each other; what they have written is put together."""
    running = [FORKS.Process(target=fit, args=(i, tmp_path)) for i in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    together, apart = build(), build()
    settings = Training(steps=6, batch_size=8)
    for i in range(2):
        over = settings.fit(
            together.stages[i], events(64), folder=tmp_path / f"stage{i}", progress=False
        )
        assert over.steps[-1] == 6
        settings.fit(apart.stages[i], events(64), progress=False)
    found, wanted = together.state_dict(), apart.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not torch.equal(found["stages.0.network.output_layer.1.bias"], torch.zeros(1))


def asked(levels, rows=8):
    """What a loss asks of a device, of networks that ask for one multiplication each."""
    size = 2**levels
    ends = [1 / 2**k for k in range(levels + 1)]
    sde = DiagonalSDE(Cosine(), Haar((1, size, size), levels), [1 / t for t in ends], drop=ends)
    model = MultiScale(sde, [Free() for _ in ends], shares=[1.0] * levels + [0.5]).to("meta")
    x = torch.empty(rows, 1, size, size, device="meta")
    model.loss(x)
    with DeviceCalls() as calls:
        model.loss(x).backward()
    return calls.summary()


class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, level):
        return self.weight * x


def test_another_stage_asks_little_of_a_device():
    """Schedules are read, and levels averaged, for all stages at once."""
    found = [asked(levels) for levels in (2, 3, 4, 5)]
    each = [b["operations"] - a["operations"] for a, b in itertools.pairwise(found)]
    assert max(each) < 90
    for name in ("reads", "copies", "queued", "drawn"):
        assert [counts[name] for counts in found] == [0] * 4


def test_shares_are_part_of_what_a_run_is(tmp_path):
    x, training = events(16), Training(steps=1, batch_size=8)
    training.fit(build(shares=[1.0, 1.0, 0.5]), x, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"estimator\.shares\.2: expected 0\.5, got 0\.25"):
        training.fit(build(shares=[1.0, 1.0, 0.25]), x, folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_mean", 0.3),
        ("data_std", 1.7),
        ("parametrization", "velocity"),
        ("weighting", "likelihood"),
        ("times", "karras"),
    ],
)
def test_stages_are_what_each_would_be_by_itself(name, value):
    for options in ({name: value}, {}):
        model = build(**options)
        for stage in model.stages:
            alone = Denoising(model.sde, stage.network, stage=stage.stage, **options)
            assert getattr(stage, name) == getattr(alone, name)
    assert getattr(alone, name) != getattr(build(**{name: value}).stages[0], name)
