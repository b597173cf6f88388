"""Many samples, a batch at a time: the same ones, in memory for a batch, and in files."""

import numpy as np
import pytest
import torch
from models import SOLVERS
from torch import nn

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity, Joint, Noise, ScoreEstimator, condition
from scoresde.noise import NoiseShard
from solvers import DDIM, ExponentialMultistep

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def bed(dtype=torch.float32):
    torch.manual_seed(0)
    network = ResidualMLP((3,), 8, 1)
    nn.init.normal_(network.output_layer[1].weight, std=0.3)
    return Denoising(DiagonalSDE(VP(), Identity((3,))), network).to(dtype)


def seeds(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


@every_dtype
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 4, 5, 11, 99])
def test_samples_with_generators_of_their_own_do_not_depend_on_batches(size, eta, dtype):
    model, solver = bed(dtype), ExponentialMultistep(4, eta=eta)
    whole = solver.sample(model, (11,), generator=seeds(11))
    parts = solver.sample(model, (11,), generator=seeds(11), batch_size=size)
    assert parts.dtype == dtype
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    # whose last digits depend on how many are computed together, and on nothing else
    alone = solver.sample(model, (size,), generator=seeds(size)) if size < 11 else whole
    assert torch.equal(parts[:size], alone)


def test_one_generator_goes_from_batch_to_batch():
    model, solver = bed(), DDIM(4, eta=1.0)
    one, other = seeds(1)[0], seeds(1)[0]
    parts = [solver.sample(model, (n,), generator=one) for n in (4, 4, 2)]
    assert torch.equal(solver.sample(model, (10,), generator=other, batch_size=4), torch.cat(parts))
    assert torch.equal(one.get_state(), other.get_state())
    whole = solver.sample(model, (10,), generator=seeds(1)[0])
    for size in (10, 4000):
        again = solver.sample(model, (10,), generator=seeds(1)[0], batch_size=size)
        assert torch.equal(again, whole)


def test_batches_come_one_by_one():
    asked = []

    class Asked(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            asked.append(len(z))
            return torch.zeros_like(z)

    model = Asked(DiagonalSDE(VP(), Identity((3,))))
    parts = DDIM(2).batches(model, (5, 2), 4)
    assert asked == []
    assert next(parts).shape == (4, 3)
    assert asked == [4, 4]
    assert [part.shape for part in parts] == [(4, 3), (2, 3)]
    assert asked == [4, 4, 4, 4, 2, 2]


class Told(ScoreEstimator):
    """Data that are the condition."""

    def denoise(self, z, t, condition=None):
        return condition["where"].expand_as(z)


@pytest.mark.parametrize("flat", [False, True])
def test_conditions_go_with_their_samples(flat):
    sde = DiagonalSDE(VP(), Identity((2,)))
    where = torch.arange(20.0).reshape(5, 2, 2)
    known = {"where": where.flatten(0, 1) if flat else where, "scale": 3.0}
    found = DDIM(200, final_denoise=True).sample(Told(sde), (5, 2), condition=known, batch_size=3)
    assert torch.equal(found, where)


def test_what_is_observed_goes_with_its_samples():
    sde = DiagonalSDE(VP(), Joint(y=(1,), x=(1,)))
    covariance = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
    y = torch.linspace(-3, 3, 4).unsqueeze(-1)
    posterior = condition(Gaussian(sde, torch.zeros(2), covariance), clean=True, y=y)
    solver, shape = ExponentialMultistep(12), (3, 4)
    whole = solver.sample(posterior, shape, generator=seeds(12))
    parts = solver.sample(posterior, shape, generator=seeds(12), batch_size=5)
    torch.testing.assert_close(parts, whole)
    assert float((parts.squeeze(-1) - y.squeeze(-1)).abs().max()) < 0.5


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 5)])
def test_shapes(shape, tmp_path):
    model = bed()
    for output in (None, tmp_path / "x.npy"):
        found = DDIM(2).sample(model, shape, batch_size=2, output=output)
        assert found.shape == (*shape, 3)
        assert found.dtype == torch.float32


# Files.


@every_dtype
def test_a_file_holds_what_was_drawn(tmp_path, dtype):
    path, model = tmp_path / "x.npy", bed(dtype)
    found = DDIM(4).sample(model, (5, 2), generator=seeds(10), batch_size=3, output=path)
    whole = DDIM(4).sample(model, (5, 2), generator=seeds(10), batch_size=3)
    assert torch.equal(found, whole)
    assert np.array_equal(np.load(path), whole.numpy())
    found.zero_()
    assert np.array_equal(np.load(path), whole.numpy())


def test_what_breaks_off_leaves_no_file(tmp_path):
    class Breaking(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            return torch.full_like(z, torch.nan if len(z) < 4 else 0.0)

    (tmp_path / "x.npy").write_bytes(b"before")
    model = Breaking(DiagonalSDE(VP(), Identity((3,))))
    with pytest.raises(ValueError, match="samples: expected finite numbers"):
        DDIM(2).sample(model, (6,), batch_size=4, output=tmp_path / "x.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == b"before"


def test_files_that_cannot_be_are_refused_before_anything_is_drawn(tmp_path):
    class Never(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            raise AssertionError

    model = Never(DiagonalSDE(VP(), Identity((3,))))
    with pytest.raises(ValueError, match=r"output: expected a name that ends in \.npy, got .*csv"):
        DDIM(2).sample(model, (6,), output=tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError):
        DDIM(2).sample(model, (6,), output=tmp_path / "missing" / "x.npy")
    with pytest.raises(TypeError, match=r"dtype: expected one that \.npy files have"):
        DDIM(2).sample(model, (6,), output=tmp_path / "x.npy", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="generator: expected one generator, or 6"):
        DDIM(2).sample(model, (6,), batch_size=4, generator=seeds(7))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "many"])
def test_sizes_are_checked(size):
    with pytest.raises(ValueError, match="batch_size: expected a whole number of at least 1"):
        DDIM(2).sample(bed(), (6,), batch_size=size)


@pytest.mark.parametrize(("size", "what"), [(None, "5/5"), (4, "10/10"), (10, "5/5")])
def test_progress_counts_samples_where_there_are_batches(capsys, size, what):
    DDIM(4).sample(bed(), (10,), progress=True, batch_size=size)
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_draws_in_batches(name):
    found = SOLVERS[name](3).sample(bed(), (5,), batch_size=2)
    assert found.shape == (5, 3)


# Noise of some samples.


def test_noise_of_some_samples():
    part = Noise(seeds(5)).part(slice(1, 3))
    assert torch.equal(part(torch.empty(2, 3)), Noise(seeds(5))(torch.empty(5, 3))[1:3])
    one = Noise(seeds(1)[0])
    assert one.part(slice(1, 3)) is one
    shard = NoiseShard(seeds(1)[0], 0, 2)
    assert shard.part(slice(1, 3)) is shard
