"""Samples are compared with held-out events, beside other real ones, in features one chooses."""

import json
import math
import statistics

import pytest
import torch
from commands import config, run

from estimators import Gaussian
from scoresde import VP, DiagonalSDE, Identity, Joint, ScoreEstimator
from scoresde.app.quality import evaluate_samples
from scoresde.data import Dataset, LazyArray, dequantize, quantize
from scoresde.metrics import compare, pixels
from solvers import DDIM

DTYPES = (torch.float32, torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(shape, std=0.3, dtype=torch.float32):
    n = math.prod(shape)
    return Gaussian(
        DiagonalSDE(VP(), Identity(shape)), torch.zeros(shape), std**2 * torch.eye(n)
    ).to(dtype)


def report(model, data, others, features=pixels, **options):
    return evaluate_samples(
        model, data, others, DDIM(32), features, generator=generator(), **options
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_good_model_is_as_far_away_as_real_events(dtype):
    real, others = 0.3 * torch.randn(2, 300, 3, generator=generator(1)).to(dtype)
    good, wide = (report(gaussian((3,), std, dtype), real, others) for std in (0.3, 0.6))
    assert good["frechet"] < 4 * good["frechet_floor"] < wide["frechet"] / 4
    assert abs(good["kernel"]) < 0.2 * wide["kernel"]
    assert good["precision"] > good["precision_floor"] - 0.1 > wide["precision"]
    assert good["frechet_floor"] == wide["frechet_floor"] == compare(real, others).frechet
    assert (good["count"], good["repeats"]) == (300, 1)
    assert math.isnan(good["frechet_stderr"])
    assert wide["frechet"] == pytest.approx(3 * 0.3**2, rel=0.2)


def test_all_sets_are_of_one_size():
    real, others = torch.randn(40, 2), torch.randn(60, 2)
    assert report(gaussian((2,)), real, others)["count"] == 40
    found = report(gaussian((2,)), real, others, count=10)
    assert found["frechet_floor"] == compare(real[:10], others[:10]).frechet
    with pytest.raises(ValueError, match=r"count: expected at most 40, of which .*, got 41"):
        report(gaussian((2,)), real, others, count=41)
    with pytest.raises(ValueError, match="count: expected a whole number of at least 4, got 3"):
        report(gaussian((2,)), real[:3], others)


def test_several_draws_have_a_mean_and_a_standard_error():
    real, others = torch.randn(2, 20, 2, generator=generator(1))
    found = report(gaussian((2,)), real, others, repeats=3)
    source = generator()
    model, solver = gaussian((2,)), DDIM(32)
    alone = [compare(real, solver.sample(model, (20,), generator=source)) for _ in range(3)]
    for metric in ("frechet", "kernel", "precision", "recall"):
        values = [getattr(one, metric) for one in alone]
        assert found[metric] == pytest.approx(statistics.mean(values))
        assert found[f"{metric}_stderr"] == pytest.approx(statistics.stdev(values) / 3**0.5)


def test_integers_are_seen_as_pictures_show_them():
    """Real ones and samples: the lowest bin is black, the highest white."""
    seen = []

    def features(x):
        seen.append(x)
        return pixels(x)

    values = quantize(torch.randn(2, 12, 1, 2, 2, generator=generator(1)), 5)
    real, others = (Dataset("mine", part, bins=5) for part in values)
    report(gaussian((1, 2, 2), 1.0), real, others, features)
    assert [len(x) for x in seen] == [12] * 3
    assert all(set(x.unique().tolist()) == {-1.0, -0.5, 0.0, 0.5, 1.0} for x in seen)
    assert torch.equal(seen[0], values[0] / 2.0 - 1)
    assert torch.equal(quantize(dequantize(values[1], 5), 5), values[1])


class Told(ScoreEstimator):
    """Its samples are what they are told."""

    def __init__(self):
        super().__init__(DiagonalSDE(VP(), Identity((2,))))

    def denoise(self, z, t, condition=None):
        return condition.to(z).unsqueeze(-1).expand_as(z)


def test_samples_are_told_what_real_events_are():
    condition = torch.arange(12)
    real = Dataset("mine", condition.float()[:, None].repeat(1, 2), condition=condition)
    assert report(Told(), real, real)["frechet"] < 0.01


def test_parts_that_are_given_are_those_of_real_events():
    """``x`` is ``y`` and little noise: what is compared is ``x``, given the ``y`` of its event."""
    joint = Joint(y=(1,), x=(1,))
    sde = DiagonalSDE(VP(), joint, speeds=[0.0, 1.0])
    model = Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.01]]))
    y = torch.randn(2, 200, 1, generator=generator(1)) + 3
    x = y + 0.1 * torch.randn(2, 200, 1, generator=generator(2))
    real, others = (joint.join(y=y[i], x=x[i]) for i in range(2))
    found = report(model, real, others, given=["y"])
    assert found["frechet_floor"] == compare(x[0], x[1]).frechet
    assert found["frechet"] < found["frechet_floor"], "the y of the samples are those of the real x"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    result = run("train", config(folder), "--output", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out"


def means(x):
    return x.flatten(2).mean(-1).repeat(1, 3) + torch.arange(3)


class Means:
    def __call__(self, x):
        return means(x)


def printed(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.output[result.output.index("{") :])


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ([], "efficientnet-lite0"),
        (["--features", "pixels"], "pixels"),
        (["--features", "test_quality:means", "--allow-imports"], "test_quality:means"),
        (["--features", "test_quality:Means", "--allow-imports"], "test_quality:Means"),
        (["--features", "pixels", "--data", "digits"], "pixels"),
    ],
)
def test_from_the_command_line(model, options, features):
    found = printed(run("evaluate", model, "--frechet", "--count", 8, "--json", *options))
    assert list(found)[:4] == ["features", "data", "count", "repeats"]
    assert (found["features"], found["count"], found["frechet_stderr"]) == (features, 8, None)
    assert min(found["frechet"], found["frechet_floor"]) > 0
    assert set(found) == {"features", "data", "count", "repeats"} | {
        f"{metric}{of}"
        for metric in ("frechet", "kernel", "precision", "recall")
        for of in ("", "_stderr", "_floor")
    }


def test_seeds_steps_and_repetitions(model):
    def frechet(*options):
        command = ("evaluate", model, "--frechet", "--count", 6, "--features", "pixels", "--json")
        return printed(run(*command, *options))

    assert frechet() == frechet("--seed", 0)
    assert frechet()["frechet"] != frechet("--seed", 1)["frechet"]
    assert frechet()["frechet"] != frechet("--steps", 2)["frechet"]
    assert frechet("--repeats", 2)["frechet_stderr"] > 0
    lines = run("evaluate", model, "--frechet", "--count", 6, "--features", "pixels").output
    assert "features: pixels\n" in lines
    assert "frechet_floor: " in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "pixels"], "--features: expected none without --frechet, got pixels"),
        (["--repeats", 2], "--repeats: expected none without --frechet, got 2"),
        (["--frechet", "--hutchinson", 2], "--hutchinson: expected none beside --frechet, got 2"),
        (["--frechet", "--features", "fid"], "features: expected one of 'pixels', 'efficientnet-l"),
        (["--frechet", "--features", "a:b"], "features: 'a:b' is an import path, which can run"),
        (["--frechet", "--features", "math:pi", "--allow-imports"], "expected a function of even"),
        (["--frechet", "--features", "math:no", "--allow-imports"], "cannot load 'math:no'"),
        (["--frechet", "--count", 3], "count: expected a whole number of at least 4, got 3"),
        (["--frechet", "--count", 9999], "count: expected at most 180, of which there are other"),
    ],
)
def test_what_is_refused(model, options, message):
    result = run("evaluate", model, *options)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_real_events_are_read_once_for_all_repetitions():
    """Dequantised once, too: it is the same ones that all samples are compared with."""
    asked = []

    def read(rows):
        asked.extend(rows.tolist())
        return torch.randint(4, (len(rows), 2), generator=torch.Generator().manual_seed(0))

    model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
    data = Dataset("lazy", LazyArray(8, read), bins=4)
    asked.clear()
    report = evaluate_samples(model, data, data, DDIM(2), pixels, repeats=3)
    assert report["repeats"] == 3
    assert sorted(asked) == sorted([*range(8)] * 2), "as data, and as the others"
