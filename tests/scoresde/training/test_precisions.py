"""What products of networks are computed in, by what a device has instructions for."""

import warnings

import pytest
import torch

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Identity, LogLinear
from scoresde.training import Training
from scoresde.training.precisions import autocast_dtype, multiplies_bfloat16

CPU = torch.device("cpu")


def processor(monkeypatch, *names):
    known = dict.fromkeys(("avx2", "amx_bf16", "avx512_bf16", "bf16"), False)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: known | dict.fromkeys(names, True), raising=False
    )


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_is_bfloat16_where_there_are_instructions(monkeypatch, name):
    processor(monkeypatch, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autocast_dtype("auto", CPU) is torch.bfloat16
        assert autocast_dtype("bfloat16", CPU) is torch.bfloat16


def test_auto_is_float32_where_there_are_none(monkeypatch):
    processor(monkeypatch, "avx2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autocast_dtype("auto", CPU) is None
        assert autocast_dtype("tf32", CPU) is None
    for precision in ("bfloat16", "float16"):
        with pytest.warns(UserWarning, match=f"^precision: this processor .* for {precision},"):
            assert autocast_dtype(precision, CPU) is getattr(torch, precision)


def test_a_torch_that_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert multiplies_bfloat16(CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autocast_dtype("auto", CPU) is None
        assert autocast_dtype("bfloat16", CPU) is torch.bfloat16


@pytest.mark.parametrize("known", [False, True])
def test_a_gpu_says_so_itself(monkeypatch, known):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: known)
    expected = torch.bfloat16 if known else None
    assert autocast_dtype("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize(("name", "precision"), [("avx2", "float32"), ("bf16", "bfloat16")])
def test_training_takes_what_is_fast(monkeypatch, name, precision):
    def weights(asked):
        torch.manual_seed(0)
        network = ResidualMLP((2,), width=8, depth=1)
        estimator = Denoising(DiagonalSDE(LogLinear(), Identity((2,))), network)
        data = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        Training(steps=3, batch_size=16, precision=asked).fit(estimator, data, progress=False)
        return torch.cat([p.detach().flatten() for p in estimator.parameters()])

    processor(monkeypatch, name)
    assert torch.equal(weights("auto"), weights(precision))
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not torch.equal(weights("auto"), weights(other))
