"""One optimiser, fused where that is right."""

import pytest
import torch
from torch import nn

from scoresde.training.adam import adam, load_adam
from scoresde.training.settings import TrainingSettings
from scoresde.training.tally import Tally

SETTINGS = TrainingSettings(lr=0.1, weight_decay=0.3)
DTYPES = [torch.float32, torch.float64]


def layouts(dtype):
    """Weights that lie in memory in different ways, by name."""
    torch.manual_seed(0)
    return {
        "dense": torch.randn(4, 3, dtype=dtype),
        "scalar": torch.randn((), dtype=dtype),
        "transposed": torch.randn(3, 4, dtype=dtype).T,
        "channels last": torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last),
        "strided": torch.randn(6, 6, dtype=dtype)[:, :2],
        "expanded": torch.randn(1, dtype=dtype).expand(1, 1),
    }


def stepped(weight, optimizer, count, first=0):
    for step in range(first, first + count):
        torch.manual_seed(step)
        weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, dtype=weight.dtype))
        optimizer.step()


@pytest.mark.parametrize("name", layouts(torch.float32))
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_are_those_of_the_plain_optimiser(dtype, name):
    """However weights lie in memory, and nothing beside them is touched."""
    first, second = (nn.Parameter(layouts(dtype)[name]) for _ in range(2))
    around = torch.empty(0, dtype=dtype).set_(first.data.untyped_storage()).clone()
    plain = torch.optim.AdamW([second], lr=0.1, weight_decay=0.3, fused=False)
    optimizer = adam([first], SETTINGS)
    assert optimizer.defaults["fused"] == (name != "strided")
    stepped(first, optimizer, 4)
    stepped(second, plain, 4)
    torch.testing.assert_close(first, second)
    now = torch.empty(0, dtype=dtype).set_(first.data.untyped_storage())
    assert int((now != around).sum()) == first.numel()


@pytest.mark.parametrize("name", layouts(torch.float32))
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_what_was_saved_goes_on_bit_for_bit(dtype, name):
    """Files have no layouts."""
    weight, again = (nn.Parameter(layouts(dtype)[name]) for _ in range(2))
    optimizer, other = adam([weight], SETTINGS), adam([again], SETTINGS)
    stepped(weight, optimizer, 300 if name == "scalar" else 3)
    state = optimizer.state_dict()["state"][0]
    saved = {f"0.{k}": v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    with torch.no_grad():
        again.copy_(weight)
    load_adam(other, [again], saved)
    stepped(weight, optimizer, 2, first=5)
    stepped(again, other, 2, first=5)
    assert torch.equal(weight, again)


def test_state_of_other_weights_is_refused():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = adam([weight], SETTINGS)
    with pytest.raises(IndexError):
        load_adam(optimizer, [weight], {"1.step": torch.zeros(())})
    with pytest.raises(RuntimeError):
        load_adam(optimizer, [weight], {"0.exp_avg": torch.zeros(4)})


def test_where_steps_may_not_be_left_out_none_is_fused(monkeypatch):
    """Whatever torch fuses."""
    monkeypatch.setattr("scoresde.training.adam._LEAVE_OUT", ("cuda",))
    assert not adam([nn.Parameter(torch.zeros(3))], SETTINGS).defaults["fused"]


def test_complex_weights_have_an_optimiser():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    optimizer = adam([weight], SETTINGS)
    assert not optimizer.defaults["fused"]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert bool((weight.real < 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_after_a_failure_is_left_out(dtype):
    weight, tally = nn.Parameter(torch.ones(3, dtype=dtype)), Tally(torch.device("cpu"))
    optimizer = adam([weight], SETTINGS, tally)
    for loss in (1.0, torch.nan, 1.0):
        weight.grad = torch.ones_like(weight)
        tally.add(torch.tensor(loss), torch.tensor(1.0))
        optimizer.step()
    wanted = nn.Parameter(torch.ones(3, dtype=dtype))
    wanted.grad = torch.ones_like(wanted)
    adam([wanted], SETTINGS).step()
    assert torch.equal(weight, wanted)
    assert tally.read() == (2, False)
