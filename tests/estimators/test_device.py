"""What a loss asks of a device: counted on one that has no values."""

import pytest
import torch
from torch import nn

from estimators import (
    ClassifierFree,
    Denoising,
    Gaussian,
    MultiScale,
    PartNetwork,
    ResidualMLP,
    Truncated,
)
from scoresde import DCT, PCA, VP, Cosine, DiagonalSDE, Haar, Identity, Joint, Learned, Packed
from scoresde.objectives.parametrization import PARAMETRIZATIONS
from scoresde.objectives.weighting import WEIGHTINGS
from scoresde.testing import DeviceCalls
from solvers import DDIM

META = torch.device("meta")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Free(nn.Module):
    """A network that costs one operation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, level, condition=None):
        return self.weight * x


def uniform(basis=None, speeds=1.0, schedule=None, network=None, **options):
    basis = Identity((4,), {"a": 1, "b": 3}) if basis is None else basis
    sde = DiagonalSDE(VP() if schedule is None else schedule, basis, speeds)
    return Denoising(sde, Free() if network is None else network, **options)


def corrected():
    sde = DiagonalSDE(VP(), Identity((4,)))
    known = Gaussian(sde, torch.zeros(4), torch.eye(4))
    inner = Denoising(sde, Free(), baseline=known)
    return Denoising(sde, Free(), baseline=inner, data_mean=[1.0, 2.0, 3.0, 4.0])


def bounded():
    sde = DiagonalSDE(VP(), Identity((4,)))
    return Denoising(sde, Free(), baseline=Truncated(sde, -1.0, 1.0))


def part():
    joint = Joint(y=(1,), x=(3,))
    sde = DiagonalSDE(VP(), joint, joint.per_block(y=0.0, x=1.0))
    return Denoising(sde, PartNetwork(joint, "x", ResidualMLP((3,), 8, 1, condition_dim=1)))


def multi_scale(levels=2, basis=None, **options):
    basis = Haar((1, 8, 8), levels) if basis is None else basis
    drop = [0.5**k for k in range(len(basis.blocks))]
    sde = DiagonalSDE(Cosine(), basis, [1 / t for t in drop], drop=drop)
    views = [basis.coarse(levels), *(Packed(basis.coarse(k)) for k in range(levels - 1, -1, -1))]
    return MultiScale(sde, [Free() for _ in views], network_bases=views, **options)


MODELS = {
    "uniform": uniform,
    "measured": lambda: uniform(data_mean=[1.0, 2.0, 3.0, 4.0], data_std=[1.0, 2.0]),
    "a speed per block": lambda: uniform(speeds=[1.0, 0.6]),
    "a speed per component": lambda: uniform(speeds=[1.0, 0.6, 0.3, 0.2], data_std=[1.0, 2.0]),
    "components that stand still": lambda: uniform(speeds=[0.0, 1.0]),
    "a schedule per block": lambda: uniform(schedule=VP(0.1, [10.0, 20.0])),
    "learned": lambda: uniform(schedule=Learned(2)),
    "blocks are observed": lambda: uniform(observe="blocks", data_mean=1.0),
    "components are observed": lambda: uniform(speeds=[1.0, 0.6], observe="components"),
    "corrected": corrected,
    "corrected, between bounds": bounded,
    "a part": part,
    "wavelets": lambda: uniform(Haar((1, 4, 4), 2), [1.0, 2.0, 4.0], data_std=[1.0, 2.0, 3.0]),
    "cosines": lambda: uniform(DCT((1, 4, 4), bands=3), [1.0, 2.0, 4.0]),
    "principal components": lambda: uniform(PCA(torch.eye(4))),
    "multi-scale": multi_scale,
    "multi-scale, in shares": lambda: multi_scale(shares=[1.0, 0.5, 0.25]),
}
FORMS = {
    **{f"parametrization={n}": {"parametrization": n} for n in PARAMETRIZATIONS},
    **{f"weighting={n}": {"weighting": n} for n in WEIGHTINGS},
}


def counted(call):
    with DeviceCalls() as calls:
        call()
    return calls


def ready(make, dtype=torch.float32, rows=8):
    """A model on the device, and events it has met."""
    model = make().to(dtype).to(META)
    x = torch.empty(rows, *model.sde.basis.event_shape, dtype=dtype, device=META)
    return model, x, counted(lambda: model.loss(x))


@every_dtype
@pytest.mark.parametrize("name", MODELS)
def test_no_loss_waits_for_the_device(name, dtype):
    """After the first, which looks at the events."""
    model, x, first = ready(MODELS[name], dtype)
    assert first.reads.total() == 1, str(first)
    calls = counted(lambda: model.loss(x).backward())
    assert not calls.reads, str(calls)
    assert not calls.copies, str(calls)
    assert not calls.drawn


@every_dtype
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", [uniform, multi_scale])
def test_nor_does_any_form_of_it(make, options, dtype):
    model, x, _ = ready(lambda: make(**options), dtype)
    calls = counted(lambda: model.loss(x).backward())
    assert not calls.reads, str(calls)
    assert not calls.copies, str(calls)


def operations(make, rows=8):
    model, x, _ = ready(make, rows=rows)
    return counted(lambda: model.loss(x)).operations.total()


def named(count, size=2):
    return {f"block{i}": size for i in range(count)}


WIDER = {
    "components": lambda n: uniform(Identity((n,)), data_mean=torch.ones(n)),
    "components with scales": lambda n: uniform(
        Identity((n,)), data_mean=torch.ones(n), data_std=torch.full((n,), 2.0)
    ),
    "components, observed": lambda n: uniform(Identity((n,)), observe="components"),
    "blocks": lambda n: uniform(
        Identity((2 * n,), named(n)), torch.linspace(0.5, 1, n), data_std=torch.full((n,), 2.0)
    ),
    "blocks of components with speeds": lambda n: uniform(
        Identity((2 * n,), named(n)), torch.linspace(0.5, 1, 2 * n)
    ),
    "blocks, observed": lambda n: uniform(Identity((2 * n,), named(n)), observe="blocks"),
}


@pytest.mark.parametrize("name", WIDER)
def test_operations_do_not_grow_with_what_a_state_has(name):
    """Beside the sums over blocks, which are in pairs."""
    few, many = (operations(lambda n=n: WIDER[name](n)) for n in (8, 64))
    in_pairs = 12 if "blocks" in name else 0
    assert few <= many <= few + in_pairs


@pytest.mark.parametrize("make", [uniform, multi_scale])
def test_operations_do_not_grow_with_the_batch(make):
    assert operations(make, 4) == operations(make, 256)


@pytest.mark.parametrize("name", MODELS)
def test_a_default_device_is_nobody_elses(name):
    """What is on the CPU stays there, whatever is made elsewhere by default."""
    model = MODELS[name]()
    x = torch.randn(8, *model.sde.basis.event_shape)
    with META:
        loss = model.loss(x, generator=torch.Generator().manual_seed(0))
        loss.backward()
        mean = model.denoise(model.sde.basis(x), 0.1)
    assert (loss.device.type, mean.device.type) == ("cpu", "cpu")
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    again = MODELS[name]()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.loss(x, generator=torch.Generator().manual_seed(0)), loss)


ASKED = ("learned", "corrected", "principal components")
"""Whose numbers, tensors on the device already, are looked at while they are made."""


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ASKED])
def test_what_is_made_on_a_default_device_is_used_there(name):
    with META, DeviceCalls():
        model = MODELS[name]()
        x = torch.empty(8, *model.sde.basis.event_shape)
        model.loss(x)
        calls = counted(lambda: model.loss(x).backward())
    assert {v.device for v in (*model.parameters(), *model.buffers())} == {META}
    assert not calls.reads, str(calls)
    assert not calls.copies, str(calls)


# of "corrected" a uniform model is a part, "wavelets" have a speed per block
IN_ONE = {
    name: MODELS[name] for name in ("learned", "blocks are observed", "corrected", "wavelets")
}
IN_ONE["two scales"] = lambda: multi_scale(1)


@pytest.mark.parametrize("name", IN_ONE)
def test_a_loss_is_one_graph(name):
    """`torch.compile` finds nothing at which it would have to ask Python."""
    model = IN_ONE[name]()
    x = torch.randn(8, *model.sde.basis.event_shape)
    model.loss(x)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager", dynamic=False)
    torch.manual_seed(0)
    found = compiled(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model.loss(x))


def test_a_loss_on_a_device_is_one_graph():
    """There constants are not read: that would break it."""
    model = MODELS["measured"]().to(META)
    x = torch.empty(8, *model.sde.basis.event_shape, device=META)
    model.loss(x)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager", dynamic=False)
    assert compiled(x).device == META


@every_dtype
@pytest.mark.parametrize("make", [uniform, multi_scale])
def test_random_numbers_of_the_host_are_sent_without_waiting(make, dtype):
    model, x, _ = ready(make, dtype)
    calls = counted(lambda: model.loss(x, generator=torch.Generator("cpu")))
    assert not calls.reads, str(calls)
    assert not calls.copies, str(calls)
    assert calls.queued.total() == 2 * len(model.sde.stages())


def by_hand(x):
    """The preconditioned loss of `uniform`, as one would write it for one schedule."""
    u = (torch.rand(1, device=x.device) + torch.arange(len(x), device=x.device) / len(x)).frac()
    t = (0.001 + 0.999 * u).unsqueeze(-1)
    log_alpha = -t * (0.1 + t * (19.9 / 2)) / 2
    alpha, power = log_alpha.exp(), -torch.expm1(2 * log_alpha)
    sigma, variance = power.sqrt(), alpha**2 + power
    level = (power.log() / 2 - log_alpha).squeeze(-1) / 4
    z = torch.addcmul(alpha * x, sigma, torch.randn_like(x))
    skip, out = alpha / variance, sigma * variance.rsqrt()
    denoised = torch.addcmul(skip * z, out, Free().to(x.device)(variance.rsqrt() * z, level))
    return ((x - denoised) / out).square().mean()


def test_a_loss_has_less_than_two_operations_for_one_by_hand():
    """It says of any schedule, clock and weighting what that says of one."""
    model, x, _ = ready(lambda: uniform(Identity((4,))))
    ours, bare = (
        counted(call).operations.total() for call in (lambda: model.loss(x), lambda: by_hand(x))
    )
    assert 30 < bare < ours < 2.2 * bare
    host, events = uniform(Identity((4,))), torch.randn(8, 4)
    host.loss(events)
    ours, bare = (
        counted(call).host.total() for call in (lambda: host.loss(events), lambda: by_hand(events))
    )
    assert 30 < bare < ours < 1.8 * bare


def test_stages_have_a_loss_each_and_one_transform():
    """Outside of networks a multi-scale update costs a few uniform losses."""
    one, stages = operations(lambda: uniform(Haar((1, 8, 8), 2))), operations(multi_scale)
    assert stages < 3 * 1.6 * one


@every_dtype
@pytest.mark.parametrize("condition", [None, torch.tensor([0, 1, 0])], ids=["none", "labels"])
def test_guidance_is_where_the_estimator_is_that_it_is_made_around(dtype, condition):
    network = ResidualMLP((4,), 8, 1, classes=3)
    guided = ClassifierFree(
        uniform(network=network).to(META, dtype), null_condition=2, guidance=2.0
    )
    told = None if condition is None else condition.to(META)
    assert guided.null_condition.device == META
    with DeviceCalls():
        x = DDIM(2).sample(guided, (3,), condition=told)
    assert (x.device, x.dtype) == (META, dtype)
