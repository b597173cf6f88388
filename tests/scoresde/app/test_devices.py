"""Where models are made, trained and asked, by name."""

import json

import numpy as np
import pytest
import torch
from commands import config, run

from scoresde.app import devices
from scoresde.app.config import read
from scoresde.app.devices import accelerators, device
from scoresde.app.model import Model
from scoresde.app.parts import data_of

TWO = [torch.device("cuda", 0), torch.device("cuda", 1)]
LISTED = r"one that is there \(auto, cpu, cuda:0, cuda:1\), got "


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: TWO)


@pytest.fixture
def stand_in(monkeypatch):
    """A device that has no values, as if it were an accelerator."""
    monkeypatch.setattr(devices, "accelerators", lambda: [torch.device("meta")])


@pytest.fixture
def default_meta():
    """As the device of what names none, which refuses every number that was made there."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    result = run("train", config(folder), "--output", folder / "out")
    assert result.exit_code == 0, result.output
    assert "--device" not in result.output
    return folder / "out"


def places(estimator):
    return {v.device.type for v in (*estimator.parameters(), *estimator.buffers())}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("auto", "cuda"),
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.device("cpu"), "cpu"),
        (None, "cpu"),
    ],
)
def test_a_device_by_its_name(value, found):
    assert device("device", value) == torch.device(found)


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(devices, "accelerators", list)
    assert device("device", "auto") == torch.device("cpu")


def test_none_is_where_torch_makes_tensors():
    with torch.device("meta"):
        assert device("device", None) == torch.device("meta")
        assert device("device", "cpu") == torch.device("cpu")


@pytest.mark.parametrize(("kind", "count"), [("cuda", 2), ("xpu", 1), ("mps", 1)])
def test_what_torch_says_is_there(monkeypatch, kind, count):
    assert not set(map(str, accelerators())) & {f"{kind}:0"} or torch.cuda.is_available()
    monkeypatch.setattr(torch.get_device_module(kind), "device_count", lambda: count)
    assert {torch.device(kind, i) for i in range(count)} <= {*accelerators()}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "value", ["cuda:2", "mps", "mps:0", "xpu", "meta", "gpu", "cuda:x", "", "Cpu"]
)
def test_what_is_not_there_is_said_and_what_is(value):
    with pytest.raises(ValueError, match=f"^name: expected {LISTED}{value}$"):
        device("name", value)


@pytest.mark.parametrize("value", [0, True, 1.5, torch.zeros(1), ["cpu"]])
def test_what_is_no_name_is_refused(value):
    with pytest.raises(TypeError, match=r"^device: expected a str, got "):
        device("device", value)


COMMANDS = {
    "train": lambda model, tmp: ("train", config(tmp), "--output", tmp / "new"),
    "sample": lambda model, tmp: ("sample", model, "--count", 2, "--output", tmp / "x.npy"),
    "evaluate": lambda model, tmp: ("evaluate", model, "--count", 2, "--json"),
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


@every_command
def test_commands_refuse_what_is_not_there_in_a_line(model, tmp_path, monkeypatch, command):
    monkeypatch.setattr(devices, "accelerators", lambda: TWO)
    result = run(*command(model, tmp_path), "--device", "mps")
    assert result.exit_code == 1
    listed = "auto, cpu, cuda:0, cuda:1"
    assert result.output == f"Error: --device: expected one that is there ({listed}), got mps\n"
    assert not (tmp_path / "new").exists()


@every_command
def test_commands_compute_on_the_accelerator_that_is_there_and_say_so(
    model, tmp_path, monkeypatch, stand_in, command
):
    asked = []

    def stop(*_, device, **__):
        asked.append(device)
        raise ValueError("stop")

    for name in ("train", "load"):
        monkeypatch.setattr(Model, name, stop)
    result = run(*command(model, tmp_path))
    assert result.stderr.splitlines() == ["--device: meta", "Error: stop"]
    for name in ("cpu", "meta"):
        result = run(*command(model, tmp_path), "--device", name)
        assert result.stderr.splitlines() == ["Error: stop"]
    assert asked == [torch.device(name) for name in ("meta", "cpu", "meta")]


@every_command
def test_the_cpu_and_what_was_asked_for_are_not_announced(model, tmp_path, command):
    for options in ([], ["--device", "cpu"]):
        result = run(*command(model, tmp_path), *options)
        assert result.exit_code == 0, result.output
        assert "--device" not in result.output


@every_command
def test_a_default_device_is_for_others(model, tmp_path, default_meta, command):
    (tmp_path / "expected").mkdir()
    found = run(*command(model, tmp_path))
    torch.set_default_device(None)
    expected = run(*command(model, tmp_path / "expected"))
    assert found.exit_code == expected.exit_code == 0, (found.output, expected.output)
    if (tmp_path / "x.npy").exists():
        assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "expected/x.npy"))
    elif (tmp_path / "new").exists():
        states = [
            Model.load(p / "new").estimator.state_dict() for p in (tmp_path, tmp_path / "expected")
        ]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    else:
        assert json.loads(found.stdout) == json.loads(expected.stdout)


def test_a_model_is_built_and_loaded_where_it_is_asked_for(model, stand_in):
    here, there = Model.load(model), Model.load(model, device="auto")
    assert (places(here.estimator), places(there.estimator)) == ({"cpu"}, {"meta"})
    shapes = [{n: v.shape for n, v in m.estimator.state_dict().items()} for m in (here, there)]
    assert shapes[0] == shapes[1]
    built = Model.build(here.settings, here.facts, device="meta")
    assert places(built.estimator) == {"meta"}
    with torch.device("meta"):
        assert places(Model.load(model).estimator) == {"meta"}
        assert places(Model.load(model, device="cpu").estimator) == {"cpu"}


def test_a_model_is_trained_where_it_is_asked_for(tmp_path, monkeypatch, stand_in):
    class Stop(Exception):
        pass

    def fit(self, estimator, *_, **__):
        raise Stop(places(estimator))

    monkeypatch.setattr("scoresde.training.Training.fit", fit)
    settings = read(config(tmp_path))
    for value, place in (("meta", "meta"), ("cpu", "cpu"), (None, "cpu")):
        with pytest.raises(Stop) as stopped:
            Model.train(settings, device=value)
        assert stopped.value.args == ({place},)


def test_python_refuses_what_is_not_there_before_anything_is_read(tmp_path):
    for call, source in ((Model.load, tmp_path / "nothing"), (Model.train, {})):
        with pytest.raises(ValueError, match=r"^device: expected one that is there \(auto, cpu"):
            call(source, device="cuda:99")


def test_data_are_read_whatever_the_default_device(tmp_path, default_meta):
    train, held_out = data_of(read(config(tmp_path)))
    assert {train.values.device.type, held_out.values.device.type} == {"cpu"}


@pytest.mark.usefixtures("two")
def test_processes_have_devices_of_their_own(tmp_path):
    result = run("train", config(tmp_path), "--output", tmp_path / "out", "--distributed",
                 "--device", "cuda:1")  # fmt: skip
    wanted = "a kind of device, as every process of --distributed has one of its own"
    assert result.output == f"Error: --device: expected {wanted}, got cuda:1\n"


def test_processes_on_a_device_that_they_are_not_given_are_refused(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(devices, "accelerators", lambda: TWO)
    taken = "--device: expected cpu, which accelerate takes here, got cuda"
    with pytest.raises(ValueError, match=taken):
        devices.processes("cuda")
    assert devices.processes("cpu").device == torch.device("cpu")
