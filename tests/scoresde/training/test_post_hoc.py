"""Averages of weights that are made when a run is over, against those that went along with it."""

from types import SimpleNamespace

import attrs
import pytest
import torch
from runs import DATA, Stop, model
from torch import nn

from scoresde.training import Training, checkpoint
from scoresde.training.average import GAMMAS, WeightAverage, power_decay
from scoresde.training.post_hoc import WIDTHS, PostHocAverages, keep

TRAINING = Training(steps=40, snapshots=8, batch_size=8, lr=1e-2)


def fit(folder, training=TRAINING, stop=None, dtype=torch.float32, seen=None):
    estimator = model().to(dtype)

    def on_step(step):
        if step == stop:
            raise Stop
        if seen is not None and step:
            seen.append({k: v.detach().clone() for k, v in estimator.named_parameters()})

    training.fit(estimator, DATA, progress=False, folder=folder, on_step=on_step, save_every=7)
    return estimator


def width_of(gamma):
    return (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("run"), []
    estimator = fit(folder, dtype=torch.float64, seen=seen)
    state = checkpoint.load(folder)[0]
    seen.append({k: state[f"model.{k}"] for k, _ in estimator.named_parameters()})
    return folder, estimator, seen


def test_snapshots_are_where_they_were_asked_for(run):
    folder, _, seen = run
    assert len(seen) == 40
    averages = PostHocAverages.load(folder)
    assert [*averages.paths] == [5, 10, 15, 20, 25, 30, 35, 40]
    files = [path.name for path in averages.paths[5].iterdir()]
    assert any(name.endswith(".safetensors") for name in files)
    assert not any(name.endswith((".pt", ".pkl", ".bin")) for name in files)


def along_the_way(seen, gamma):
    """The recursion of the paper, written out."""
    average = None
    for n, weights in enumerate(seen, 1):
        beta = (1 - 1 / n) ** (gamma + 1)
        average = {
            k: (1 - beta) * v + (beta * average[k] if average else 0) for k, v in weights.items()
        }
    return average


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_kept_profiles_are_the_recursion(run, gamma):
    folder, _, seen = run
    path = PostHocAverages.load(folder).paths[40]
    tensors = checkpoint.load(path)[0]
    for name, value in along_the_way(seen, gamma).items():
        kept = tensors[f"{GAMMAS.index(gamma)}.{name}"]
        torch.testing.assert_close(kept, value, rtol=1e-9, atol=1e-12)


def ramp(folder, gammas, steps=2000, snapshots=20):
    """Snapshots of a weight that is where the run is, and one that wanders; the latter's places."""
    layer = nn.Linear(1, 2, bias=False).double()
    profiles = [WeightAverage(layer) for _ in gammas]
    wander = torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wander = wander.cumsum(0) / steps**0.5
    main = SimpleNamespace(is_main_process=True)
    for n in range(1, steps + 1):
        with torch.no_grad():
            layer.weight[:, 0] = torch.stack([torch.tensor(n / steps), wander[n - 1]])
        for gamma, profile in zip(gammas, profiles, strict=True):
            profile.update(power_decay(gamma, n))
        if n % (steps // snapshots) == 0 and folder is not None:
            now = {f"{i}.weight": p.values["weight"] for i, p in enumerate(profiles)}
            keep(
                folder, SimpleNamespace(step=n, processes=main, profile_tensors=lambda now=now: now)
            )
    return [profile.values["weight"] for profile in profiles]


def test_any_width_is_as_if_it_had_gone_along(tmp_path):
    """Of a ramp from 0 to 1 an average with ``n^g`` is ``(g + 1)/(g + 2)``."""
    ramp(tmp_path, GAMMAS)
    gammas = [30.0, 16.97, 10.0, 6.94, 4.0, 2.0, 1.5]
    averages = PostHocAverages.load(tmp_path)
    for gamma, wanted in zip(gammas, ramp(None, gammas), strict=True):
        found = averages.weights(width_of(gamma))["weight"]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)
        assert abs(found[0] - (gamma + 1) / (gamma + 2)) < 2e-3


@pytest.mark.parametrize("snapshots", [2, 8])
def test_a_weight_that_stays_is_its_own_average(tmp_path, snapshots):
    main = SimpleNamespace(is_main_process=True)
    stays = {f"{k}.weight": torch.full((2,), 3.0, dtype=torch.float64) for k in range(len(GAMMAS))}
    for n in range(1, snapshots + 1):
        step = 500 * n // snapshots
        keep(tmp_path, SimpleNamespace(step=step, processes=main, profile_tensors=lambda: stays))
    averages = PostHocAverages.load(tmp_path)
    for width in (*WIDTHS, 0.28):
        found = averages.weights(width)["weight"]
        torch.testing.assert_close(found, stays["0.weight"], rtol=1e-9, atol=0)


def test_profiles_end_as_if_nobody_had_interrupted(tmp_path):
    fit(tmp_path / "whole")
    for stop in (3, 12, 24):
        with pytest.raises(Stop):
            fit(tmp_path / "parts", stop=stop)
    fit(tmp_path / "parts")
    one, two = (PostHocAverages.load(tmp_path / name) for name in ("whole", "parts"))
    assert [*one.paths] == [*two.paths]
    for step, path in one.paths.items():
        first, second = checkpoint.load(path)[0], checkpoint.load(two.paths[step])[0]
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_another_run_in_the_folder_starts_without(tmp_path):
    fit(tmp_path)
    checkpoint.remove(tmp_path)
    fit(tmp_path, attrs.evolve(TRAINING, steps=6, snapshots=2))
    assert [*PostHocAverages.load(tmp_path).paths] == [3, 6]


def test_a_width_is_chosen_by_the_loss(run):
    folder, estimator, _ = run
    averages = PostHocAverages.load(folder)
    before = {k: v.clone() for k, v in estimator.state_dict().items()}
    losses = averages.losses(estimator, DATA, [None, 0.05, 0.25], training=TRAINING)
    again = averages.losses(estimator, DATA, [0.25, None], training=TRAINING)
    assert losses[0.25] == again[0.25]
    assert losses[None] == again[None]
    assert len({*losses.values()}) == 3
    assert all(torch.equal(v, before[k]) for k, v in estimator.state_dict().items())
    averages.load_into(estimator, 0.25)
    assert averages.losses(estimator, DATA, [None], training=TRAINING)[None] == losses[0.25]
    estimator.load_state_dict(before)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.01, 0.3, float("nan"), "wide"])
def test_widths_that_are_none_are_refused(run, width):
    with pytest.raises((TypeError, ValueError), match="width: expected"):
        PostHocAverages.load(run[0]).weights(width)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="snapshots"):
        PostHocAverages.load(tmp_path)
    with pytest.raises(ValueError, match="folder: expected one in which snapshots=8"):
        TRAINING.fit(model(), DATA, progress=False)
    with pytest.raises(ValueError, match="snapshots: expected"):
        Training(snapshots=-1)


def test_the_first_update_forgets_what_was_there():
    layer = nn.Linear(1, 1)
    average = WeightAverage(layer)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    average.update(power_decay(GAMMAS[0], 1))
    assert torch.equal(average.values["weight"], layer.weight)
