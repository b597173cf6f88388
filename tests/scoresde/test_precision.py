import copy

import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import every_schedule, sdes, times
from torch import nn

from estimators import ClassifierFree, Denoising, Gaussian, ResidualMLP
from scoresde import (
    DCT,
    PCA,
    VP,
    Blocks,
    Clock,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    Learned,
    Tabulated,
)
from scoresde.precision import cast_like, full_precision, network_dtype, shallow_copy, to_device
from scoresde.testing import DeviceCalls

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_schedule
@given(data=st.data())
def test_casting_an_sde_does_not_round_it(kind, dtype, data):
    sde = data.draw(sdes(kind))
    (t,) = data.draw(times(sde))
    before = (*sde.kernel(t), *readings.rates(sde, t))
    after = (*sde.to(dtype).kernel(t), *readings.rates(sde, t))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert all(b.dtype == torch.float64 for b in sde.buffers() if b.is_floating_point())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casting_a_model_casts_the_network_alone(dtype):
    sde = DiagonalSDE(VP(0.1, 20.0), Identity((2,)), [1 / 3, 1.0])
    model = Denoising(sde, ResidualMLP((2,), width=8, depth=1), data_std=1 / 3).to(dtype)
    assert {p.dtype for p in model.network.parameters()} == {dtype}
    assert model.data_std.dtype == torch.float64
    assert float(model.data_std) == 1 / 3
    assert float(sde.clock.speeds[0]) == 1 / 3


def test_a_learned_parameter_is_cast_and_trained():
    schedule = VP(beta_max=nn.Parameter(torch.tensor(20.0)))
    assert [name for name, _ in schedule.named_parameters()] == ["beta_max"]
    alpha = schedule.alpha(torch.tensor([0.5]))
    (slope,) = torch.autograd.grad(alpha, schedule.beta_max)
    assert slope.item() == pytest.approx(-alpha.item() * 0.5**2 / 4, rel=1e-5)
    assert schedule.double().beta_max.dtype == torch.float64


MADE_OF_NUMBERS = {
    "clock": lambda numbers: Clock(numbers),
    "schedule": lambda numbers: VP(numbers, numbers + 1),
    "knots": lambda numbers: Tabulated(numbers),
    "sde": lambda numbers: DiagonalSDE(
        VP(), Identity((2,)), numbers, numbers, mean=numbers, std=numbers
    ),
    "moments": lambda numbers: Denoising(
        DiagonalSDE(VP(), Identity((2,))),
        ResidualMLP((2,), 4, 1),
        data_mean=numbers,
        data_std=numbers,
    ),
    "no label": lambda numbers: ClassifierFree(MADE_OF_NUMBERS["moments"](numbers + 1), numbers),
}


@pytest.mark.parametrize("kind", MADE_OF_NUMBERS)
def test_numbers_that_a_module_is_made_of_stay_their_owners(kind):
    """Or loading what another one was saved as would change them, and all that is made of them."""
    numbers = torch.tensor([2.0, 0.5]).double()
    module = MADE_OF_NUMBERS[kind](numbers)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert numbers.tolist() == [2.0, 0.5]


@given(data=st.data())
def test_the_state_survives_saving_and_loading(data):
    sde = data.draw(sdes("VP"))
    (t,) = data.draw(times(sde))
    other = DiagonalSDE(VP(), sde.basis, torch.ones_like(sde.clock.speeds))
    other.scale = torch.ones_like(sde.scale)
    for name in ("beta_min", "beta_max"):
        setattr(other.schedule, name, torch.ones_like(getattr(sde.schedule, name)))
    other.load_state_dict(sde.state_dict())
    for a, b in zip(
        (*sde.kernel(t), *readings.rates(sde, t)),
        (*other.kernel(t), *readings.rates(other, t)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_what_is_not_precise_stays_as_it_is_per_component():
    """And what is, is widened at any depth."""

    class Inside(VP):
        def __init__(self):
            super().__init__([0.1, 0.2])
            self.network, self.clock = nn.Linear(2, 2), Clock([1.0, 2.0])

    module = Inside()
    assert module.width == 2
    view = module.per_component(Blocks({"a": 1, "b": 2}))
    assert view.width == 3
    assert view.network is module.network
    assert torch.equal(view.clock.speeds, torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))


def test_speeds_of_parts_are_not_rounded():
    assert float(Joint(y=(1,), x=(1,)).per_block(y=1 / 3, x=1.0)[0]) == 1 / 3


@pytest.mark.parametrize("bad", [float("nan"), [1.0, float("inf")], [], "text"])
def test_constants_must_be_finite_numbers(bad):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        VP(beta_min=bad)


def test_a_module_is_as_wide_as_the_widest_inside():
    inner = VP(0.1, [10.0, 20.0, 30.0])

    class Outer(VP):
        def __init__(self):
            super().__init__()
            self.inner, self.other = inner, nn.Identity()

    assert (VP().width, inner.width, Outer().width) == (1, 3, 3)


MODULES = {
    "schedule": lambda: VP(),
    "learned schedule": lambda: Learned(),
    "basis": lambda: DCT((4,)),
    "basis with a state": lambda: PCA(torch.eye(2)),
    "sde": lambda: DiagonalSDE(VP(), DCT((2,)), [1 / 3, 1.0]),
    "model": lambda: Denoising(
        DiagonalSDE(VP(), Haar((1, 2, 2), 1)), ResidualMLP((1, 2, 2), width=8, depth=1)
    ),
    "known": lambda: Gaussian(DiagonalSDE(VP(), DCT((2,))), torch.zeros(2), torch.eye(2)),
}


class NoSuchDevice(RuntimeError):
    """As CUDA's, where there is none."""


def contents(module):
    return {n: (v.data_ptr(), v.dtype) for n, v in [*module.named_buffers()]} | {
        n: (v.data_ptr(), v.dtype) for n, v in [*module.named_parameters()]
    }


@pytest.mark.parametrize("fails", [0, 1, 2], ids="at call {}".format)
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_move_that_fails_leaves_a_module_as_it_was(make, fails):
    module, calls = make(), iter(range(99))
    before = contents(module)

    def move(tensor):
        if next(calls) >= fails:
            raise NoSuchDevice
        return tensor

    if len(before) > fails:
        with pytest.raises(NoSuchDevice):
            module._apply(move)
    assert contents(module) == before
    module.double().float()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is none")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_device_that_is_not_there_leaves_a_module_as_it_was(make):
    module = make()
    before = contents(module)
    with pytest.raises((AssertionError, RuntimeError)):
        module.to("cuda")
    assert contents(module) == before


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_go_to_meta_and_are_made_again(make):
    module, other = make(), make().to("meta")
    assert all(v.is_meta for v in other.state_dict().values())
    other.to_empty(device="cpu").load_state_dict(module.state_dict())
    for name, value in module.state_dict().items():
        again = other.state_dict()[name]
        torch.testing.assert_close(again, value, atol=0, rtol=0, equal_nan=True)


def test_a_view_has_what_is_replaced_and_the_rest():
    layer, other = nn.Linear(2, 1), nn.Parameter(torch.zeros(1))
    weight, bias = layer.weight, layer.bias
    view = shallow_copy(layer, bias=other)
    assert view.weight is weight
    assert view.bias is other
    assert layer.bias is bias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_of_a_network_is_that_of_its_weights(dtype):
    assert network_dtype(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)).to(dtype)) == dtype
    assert network_dtype(nn.ReLU()) is None
    assert network_dtype(torch.sin) is None


@every_schedule
@given(data=st.data())
def test_what_is_planned_on_the_cpu_does_not_ask_the_device(kind, data):
    sde = data.draw(sdes(kind))
    (t,) = data.draw(times(sde))
    before = sde.at(t)
    expected = [before.alpha, before.sigma, before.f, before.g2, before.noise_level]
    expected += [sde.breakpoints(), *sde.moments(sde.T, 0, sde.basis.dim)]
    moved_sde = sde.to("meta")
    with DeviceCalls() as calls:
        after = moved_sde.at(t)
        found = [after.alpha, after.sigma, after.f, after.g2, after.noise_level]
        found += [moved_sde.breakpoints(), *moved_sde.moments(sde.T, 0, sde.basis.dim)]
    for a, b in zip(expected, found, strict=True):
        assert a == b if isinstance(a, list) else torch.equal(a, b)
    assert calls.summary()["reads"] == calls.summary()["operations"] == 0, str(calls)


def test_a_constant_that_is_written_on_its_device_is_read_again():
    clock = Clock([1.0, 2.0]).to("meta")
    cpu = torch.device("cpu")
    with DeviceCalls() as calls:
        assert clock.constant_on("speeds", cpu).tolist() == [1.0, 2.0]
        clock.speeds.mul_(2)
        clock.constant_on("speeds", cpu)
        clock.constant_on("speeds", cpu)
        clock.speeds = torch.ones(2, dtype=torch.float64, device="meta")
        clock.constant_on("speeds", cpu)
    assert calls.reads.total() == 2
    assert clock.constant_on("speeds", torch.device("meta")) is clock.speeds


def test_what_is_known_on_the_cpu_follows_a_module_back_and_forth():
    clock = Clock([1.0, 2.0])
    clock.speeds.mul_(3)
    there = copy.deepcopy(clock.to("meta")).to(torch.bfloat16).to("meta")
    assert there.constant_on("speeds", torch.device("cpu")).tolist() == [3.0, 6.0]
    view = there.per_component(Blocks({"a": 1, "b": 2}), torch.device("cpu"))
    assert view.constant_on("speeds", torch.device("cpu")).tolist() == [3.0, 6.0, 6.0]
    there.to_empty(device="cpu")
    there.load_state_dict({"speeds": torch.tensor([1.0, 5.0])})
    assert there.constant_on("speeds", torch.device("cpu")).tolist() == [1.0, 5.0]


@pytest.mark.parametrize("components", [1, 20])
def test_what_is_learned_on_a_device_is_read_at_once(components):
    """And once for every value, unless it is differentiated."""
    schedule, t = Learned(components).to("meta"), torch.linspace(0.1, 1, 5).unsqueeze(-1)
    optimizer = torch.optim.AdamW(schedule.parameters())
    for _ in range(2):
        with DeviceCalls() as calls, torch.no_grad():
            assert {schedule.log_snr(t).device.type for _ in range(3)} == {"cpu"}
        assert calls.reads.total() == 1, str(calls)
        for weight in schedule.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    with DeviceCalls() as calls:
        found = schedule.log_snr(t)
    assert calls.reads.total() == 3, str(calls)  # log_snr, log_alpha and sigma
    assert found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_that_are_sent_off_are_those_that_arrive(dtype):
    value, like = torch.tensor([0.1, 3.0], dtype=torch.float64), torch.empty(0, dtype=dtype)
    assert torch.equal(cast_like(value, like), value.to(dtype))
    assert cast_like(value, like.to("meta")).dtype == dtype
    with DeviceCalls() as calls:
        assert to_device(value, torch.device("meta")).dtype == torch.float64
        cast_like(torch.ones(2, dtype=dtype, device="meta"), like)
    assert calls.copies.total() == 0
    assert calls.queued.total() == 1
    assert calls.reads.total() == 1


def beta(sde, dtype=torch.float32):
    return sde.schedule.constants(torch.zeros(1, dtype=dtype), "beta_min")[0]


def test_a_constant_is_cast_once_for_every_value_that_it_takes():
    sde = DiagonalSDE(VP(0.1, 20.0), Identity((2,)))
    assert beta(sde) is beta(sde)
    assert (beta(sde), beta(sde).dtype) == (torch.tensor(0.1), torch.float32)
    assert beta(sde, torch.float64) == 0.1
    sde.schedule.beta_min.fill_(0.2)
    assert beta(sde) == torch.tensor(0.2)
    sde.load_state_dict(DiagonalSDE(VP(0.3, 20.0), Identity((2,))).state_dict())
    assert beta(sde) == torch.tensor(0.3)
    sde.schedule.beta_min = torch.tensor(0.4, dtype=torch.float64)
    assert beta(sde) == torch.tensor(0.4)
    sde.schedule.beta_min.data = torch.tensor(0.5, dtype=torch.float64)
    assert beta(sde) == torch.tensor(0.5)
    sde.schedule.beta_min.data = torch.tensor(0.4, dtype=torch.float64)
    assert beta(copy.deepcopy(sde)) == torch.tensor(0.4)
    blocks = Blocks({"a": 1, "b": 2})
    each = VP([0.1, 0.2], 20.0)
    each.constants(torch.zeros(1), "beta_min")
    wide = each.per_component(blocks).constants(torch.zeros(1), "beta_min")[0]
    assert torch.equal(wide, torch.tensor([0.1, 0.2, 0.2]))


def test_what_was_cast_where_nobody_learns_is_none_of_what_is_learned_after():
    model = Denoising(DiagonalSDE(Learned(2), Identity((2,))), ResidualMLP((2,), 8, 1))
    x = torch.randn(3, 2)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            model.loss(x)
        model.zero_grad()
        model.loss(x).backward()
        assert all(p.grad is not None for p in model.sde.parameters())


def test_a_constant_within_a_transform_is_that_transforms():
    sde = DiagonalSDE(VP(0.1, 20.0), Identity((2,)))

    def cast(low):
        called = torch.func.functional_call
        module = sde.schedule
        return called(module, {"beta_min": low}, (torch.full((1,), 0.5),))[1].sum()

    slopes = [torch.func.grad(cast)(torch.tensor(v, dtype=torch.float64)) for v in (0.1, 0.1, 5.0)]
    assert slopes[0] == slopes[1] != slopes[2]
    assert (
        torch.func.vmap(cast)(torch.tensor([0.1, 5.0], dtype=torch.float64)).unique().numel() == 2
    )
    assert beta(sde) == torch.tensor(0.1)


def test_what_a_transform_has_cast_is_not_kept():
    sde = DiagonalSDE(VP(0.1, 20.0), Identity((2,)))
    torch.func.grad(lambda x: (x * beta(sde)).sum())(torch.ones(1))
    found = beta(sde)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(found)
    assert beta(sde) is found


def test_formulas_of_numbers_alone_are_left_as_they_are():
    with torch.autocast("cpu", torch.bfloat16):
        assert full_precision(lambda n: n + 1)(3) == 4
        assert (
            full_precision(torch.matmul)(torch.ones(1, 2), torch.ones(2, 1)).dtype == torch.float32
        )
