"""However networks are run and batches cut, what is learned is the same."""

from functools import partial

import pytest
import torch
from runs import DATA, edited
from torch import nn

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Haar, Identity, LogLinear
from scoresde.data import Dataset
from scoresde.training import Training

SHAPE = (2, 4, 4)
IMAGES = Dataset("images", torch.arange(60 * 32).reshape(60, *SHAPE) * 7 % 5, bins=5)
DTYPES = [torch.float32, torch.float64]


class Convolutions(nn.Module):
    """Two layers on images, with dropout if asked for."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.input_layer, self.output_layer = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 2, 3, padding=1),
        )
        self.norm, self.dropout = nn.GroupNorm(2, 8), nn.Dropout(dropout)

    def forward(self, x, level):
        return self.output_layer(
            self.dropout(self.norm(self.input_layer(x)).tanh()) + level.view(-1, 1, 1, 1)
        )


def convolutional(dtype, dropout=0.0, basis=None):
    torch.manual_seed(0)
    sde = DiagonalSDE(LogLinear(), basis or Identity(SHAPE))
    return Denoising(sde, Convolutions(dropout)).to(dtype)


def fitted(estimator, data=IMAGES, held_out=IMAGES, **options):
    training = Training(steps=6, batch_size=12, measurements=2, lr=5e-3, **options)
    history = training.fit(estimator, data, held_out, progress=False)
    return torch.cat([p.detach().flatten() for p in estimator.parameters()]), history


def same(found, wanted, dtype):
    """Up to the order of summation."""
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(found[0], wanted[0], rtol=tolerance, atol=tolerance)
    for name in ("losses", "held_out"):
        assert getattr(found[1], name) == pytest.approx(getattr(wanted[1], name), rel=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_a_batch_in_parts_is_the_batch(dtype, parts):
    """Times, noise and dequantisation are those of the whole batch; integers are dequantised."""
    data = IMAGES if dtype == torch.float32 else Dataset("x", torch.randn(60, *SHAPE).to(dtype))
    wanted = fitted(convolutional(dtype), data, data)
    same(fitted(convolutional(dtype), data, data, accumulation=parts), wanted, dtype)


def test_a_part_has_a_share_of_the_events():
    seen, training = [], Training(steps=2, batch_size=12, accumulation=3, measurements=1)

    class Watched(Denoising):
        def loss(self, x, condition=None, generator=None):
            if self.training:
                seen.append(len(x))
            return super().loss(x, condition, generator)

    estimator = Watched(DiagonalSDE(LogLinear(), Identity((2,))), ResidualMLP((2,), 8, 1))
    training.fit(estimator, DATA, progress=False)
    assert seen == [4] * 6


def test_parts_are_of_one_size():
    expected = "batch_size: expected a multiple of accumulation, 5, got 12"
    with pytest.raises(ValueError, match=expected):
        Training(batch_size=12, accumulation=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("basis", [None, Haar(SHAPE, 1)], ids=["pixels", "haar"])
def test_channels_may_lie_last(dtype, basis):
    estimator = convolutional(dtype, basis=basis)
    found = fitted(estimator, channels_last=True)
    same(found, fitted(convolutional(dtype, basis=basis)), dtype)
    for part in (estimator.network.input_layer, estimator.network.output_layer):
        assert part.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_lie_last_where_there_are_some():
    with pytest.raises(ValueError, match=r"^channels_last: expected networks with weights of"):
        Training(channels_last=True).fit(edited(), DATA, progress=False)


def test_a_run_with_channels_last_goes_on_bit_for_bit(tmp_path):
    def stop(step):
        if step == 3:
            raise RuntimeError

    training = Training(steps=6, batch_size=12, channels_last=True)
    found, wanted = convolutional(torch.float32, 0.2), convolutional(torch.float32, 0.2)
    options = {"progress": False, "folder": tmp_path, "save_every": 1}
    with pytest.raises(RuntimeError):
        training.fit(convolutional(torch.float32, 0.2), IMAGES, IMAGES, on_step=stop, **options)
    training.fit(found, IMAGES, IMAGES, **options)
    training.fit(wanted, IMAGES, IMAGES, progress=False)
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def compiler(monkeypatch):
    """What is compiled, and how often that is run; traced, and not made faster."""
    compiled, run = torch.compile, []

    def counted(graph, inputs):
        def call(*arguments):
            run.append(graph)
            return graph(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", partial(compiled, backend=counted))
    return run


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_networks_learn_the_same(compiler, dtype):
    """For updates; measurements, which are few, are not worth it."""
    estimator = convolutional(dtype)
    found = fitted(estimator, compile=True)
    assert len(compiler) == 6
    same(found, fitted(convolutional(dtype)), dtype)
    estimator.network(torch.randn(1, *SHAPE, dtype=dtype), torch.zeros(1, dtype=dtype))
    assert len(compiler) == 6


def test_an_error_leaves_networks_as_they_were(compiler):
    def spoil(step):
        with torch.no_grad():
            estimator.network.output_layer.bias.fill_(torch.nan)

    estimator = convolutional(torch.float32)
    with pytest.raises(FloatingPointError):
        Training(compile=True).fit(estimator, IMAGES, progress=False, on_step=spoil)
    assert estimator.network._compiled_call_impl is None


def test_what_is_compiled_already_is_left_so(compiler):
    estimator = convolutional(torch.float32)
    estimator.network.compile()
    before = estimator.network._compiled_call_impl
    fitted(estimator, compile=True)
    assert estimator.network._compiled_call_impl is before


class Alone(Denoising):
    """Learns by one number of its own."""

    def __init__(self):
        super().__init__(DiagonalSDE(LogLinear(), Identity((2,))), lambda x, level: x)
        self.weight = nn.Parameter(torch.ones(()))

    def denoise(self, z, t, condition=None):
        return self.weight * z


def test_what_has_no_network_is_not_compiled():
    with pytest.raises(ValueError, match=r"^compile: expected an estimator with networks, got Al"):
        Training(compile=True).fit(Alone(), DATA, progress=False)


def test_tf32_is_asked_for_while_it_trains():
    seen = []

    class Watched(ResidualMLP):
        def forward(self, *arguments):
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(*arguments)

    def fit(precision):
        torch.manual_seed(0)
        network = Watched((2,), width=16, depth=1)
        estimator = Denoising(DiagonalSDE(LogLinear(), Identity((2,))), network)
        return fitted(estimator, DATA, DATA, precision=precision)

    before = torch.get_float32_matmul_precision()
    found = fit("tf32")
    assert {*seen} == {"high"}
    assert torch.get_float32_matmul_precision() == before
    seen.clear()
    wanted = fit("float32")
    assert {*seen} == {before}
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("accumulation", 0),
        ("accumulation", 1.5),
        ("compile", 1),
        ("compile", "yes"),
        ("channels_last", None),
        ("workers", -1),
        ("workers", True),
        ("workers", 2000),
        ("precision", "TF32"),
    ],
)
def test_settings_are_checked(option, value):
    with pytest.raises(ValueError, match=rf"^{option}: expected .*, got "):
        Training(**{option: value})
