"""Checkpoints: faithful, whole or not at all, and never worse than CheckpointError."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.training import checkpoint
from scoresde.training.checkpoint import CheckpointError, load, remove, save

CONFIG = {"sde": {"name": "log-linear", "scales": [0.5, 1.0]}, "note": "größer", "seed": None}
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]


def weights_of(folder):
    (path,) = folder.glob("model-*.safetensors")
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_tensors_and_config_come_back(tmp_path, dtype, shape):
    value = (torch.randn(shape) * 3).to(getattr(torch, dtype))
    save(tmp_path / "new" / "folder", {"a.b": value}, CONFIG)
    state, config = load(tmp_path / "new" / "folder")
    assert config == CONFIG
    assert state["a.b"].dtype == value.dtype
    assert torch.equal(state["a.b"], value)


def test_shared_transposed_expanded_and_learned_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "row": base[1],
        "transposed": base.T,
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "learned": torch.nn.Parameter(base.clone()),
    }
    save(tmp_path, tensors, {})
    state, _ = load(tmp_path)
    assert state.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(state[name], value), name
    torch.testing.assert_close(base, torch.arange(12.0).reshape(3, 4))


def test_a_save_replaces_the_last_and_leaves_other_files_alone(tmp_path):
    others = ["model-00001-of-00002.safetensors", "notes.txt", ".other.tmp"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".config.json.1.tmp").touch()
    for step in range(3):
        save(tmp_path, {"w": torch.full((2,), float(step))}, {"step": step})
    save(tmp_path, {"w": torch.full((2,), 2.0)}, {"step": "same weights"})
    assert load(tmp_path)[1] == {"step": "same weights"}
    assert len(list(tmp_path.iterdir())) == len(others) + 2
    assert all((tmp_path / name).exists() for name in others)


@pytest.mark.parametrize(
    ("state", "config"),
    [
        ({"w": [1.0]}, {}),
        ({3: torch.ones(1)}, {}),
        ({"w": torch.ones(2).to_sparse()}, {}),
        ({"w": torch.ones(2, dtype=torch.complex128)}, {}),
        ({"w": torch.ones(1)}, {"x": torch.ones(1)}),
        ({"w": torch.ones(1)}, {"x": float("nan")}),
        ({"w": torch.ones(1)}, {"x": [float("inf")]}),
    ],
)
def test_what_cannot_be_saved_leaves_the_last_pair(tmp_path, state, config):
    save(tmp_path, {"w": torch.zeros(1)}, CONFIG)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        save(tmp_path, state, config)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("count", range(4))
def test_a_save_cut_at_any_step_leaves_a_whole_pair(tmp_path, monkeypatch, call, after, count):
    save(tmp_path, {"w": torch.zeros(4)}, {"step": 0})
    real, calls = getattr(os, call), []

    def cut(*args):
        if len(calls) == count and not after:
            raise KeyboardInterrupt
        real(*args)
        calls.append(args)
        if len(calls) == count + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, cut)
        try:
            save(tmp_path, {"w": torch.ones(4)}, {"step": 1})
        except KeyboardInterrupt:
            pass
        else:
            assert (call, count) in [("replace", 2), ("replace", 3)]
    state, config = load(tmp_path)
    assert torch.equal(state["w"], torch.full((4,), float(config["step"])))
    save(tmp_path, {"w": torch.ones(4)}, {"step": 2})
    assert len(list(tmp_path.iterdir())) == 2


# Forks from a fresh process, which has one thread; torch is imported once for all the children.
# A child tells when it begins to save: it is killed some way into a save, however long one takes,
# and children are killed until more than ten of them were cut in the middle of one.
KILLED = """
import os, random, signal, sys, time
import torch
from scoresde.training.checkpoint import load, save

torch.set_num_threads(1)  # threads do not survive a fork
folder, random_ = sys.argv[1], random.Random(0)
save(folder, {"w": torch.zeros(50_000), "b": torch.zeros(3)}, {"step": 0})
steps, leftovers = [0], 0
while leftovers <= 10 or len(set(steps)) <= 10:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(steps[-1] + 1, 10**9):
            value = float(step)
            os.write(writer, b".")
            save(folder, {"w": torch.full((50_000,), value), "b": torch.full((3,), value)},
                 {"step": step})
    os.close(writer)
    for _ in range(random_.randint(1, 3)):
        start = time.perf_counter()
        os.read(reader, 1)
    time.sleep(random_.uniform(0, time.perf_counter() - start))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    leftovers += len([name for name in os.listdir(folder) if name != ".lock"]) > 2
    state, config = load(folder)
    assert all((tensor == config["step"]).all() for tensor in state.values()), config
    assert config["step"] >= steps[-1]
    steps.append(config["step"])
    assert len(steps) < 400, f"of {len(steps)} kills {leftovers} fell within a save"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_process_leaves_a_whole_pair(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr


def test_reading_while_another_writes(tmp_path):
    save(tmp_path, {"w": torch.zeros(100)}, {"step": 0})
    stop = threading.Event()

    def write():
        step = 0
        while not stop.is_set():
            step += 1
            save(tmp_path, {"w": torch.full((100,), float(step))}, {"step": step})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            state, config = load(tmp_path)
            assert (state["w"] == config["step"]).all()
    finally:
        stop.set()
        writer.join()


def test_a_pair_replaced_between_the_two_reads(tmp_path, monkeypatch):
    save(tmp_path, {"w": torch.zeros(1)}, {"step": 0})
    real = checkpoint._manifest

    def replaced(folder):
        monkeypatch.setattr(checkpoint, "_manifest", real)
        manifest = real(folder)
        save(tmp_path, {"w": torch.ones(1)}, {"step": 1})
        return manifest

    monkeypatch.setattr(checkpoint, "_manifest", replaced)
    state, config = load(tmp_path)
    assert (state["w"].item(), config) == (1.0, {"step": 1})


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.config\.json: .*No such file"):
        load(tmp_path / "absent")
    save(tmp_path, {"w": torch.zeros(1)}, {})
    weights_of(tmp_path).unlink()
    with pytest.raises(CheckpointError, match=r"model-.*\.safetensors: .*No such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a format"),
        ("{}", "expected a format"),
        ('{"format": 1, "sha256": "../../x", "config": {}}', "expected a format"),
        ('{"format": 0, "sha256": "' + "0" * 64 + '", "config": {}}', "expected a format"),
        ('{"format": 1, "sha256": "' + "0" * 64 + '", "config": []}', "expected a format"),
        ('{"format": 3}', "format 3 is newer than 2"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    save(tmp_path, {"w": torch.zeros(1)}, {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        load(tmp_path)


def test_weights_that_are_no_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.safetensors, "save", lambda tensors: b"garbled")
    save(tmp_path, {"w": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, {"w": torch.arange(20.0), "b": torch.ones(3, dtype=torch.int32)}, CONFIG)
    return folder


def damaged(path, content):
    """Loads with ``path`` replaced by ``content``, then puts it back."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        return load(path.parent)
    finally:
        path.write_bytes(whole)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_truncated_weights(folder, share):
    content = weights_of(folder).read_bytes()
    with pytest.raises(CheckpointError, match=r"safetensors: truncated or altered"):
        damaged(weights_of(folder), content[: int(share * len(content))])


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@settings(deadline=None)
def test_flipped_bits_in_weights(folder, place, mask):
    content = bytearray(weights_of(folder).read_bytes())
    content[int(place * len(content))] ^= mask
    with pytest.raises(CheckpointError, match=r"safetensors: truncated or altered"):
        damaged(weights_of(folder), bytes(content))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_manifests_fail_cleanly_or_not_at_all(folder, data):
    content = bytearray((folder / "config.json").read_bytes())
    end = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CheckpointError):
        state, config = damaged(folder / "config.json", bytes(content[:end]))
        assert torch.equal(state["w"], torch.arange(20.0))
        assert isinstance(config, dict)


@pytest.mark.parametrize("bit", range(8))
def test_no_bit_of_a_manifest_flips_unseen(folder, bit):
    """Nor of what is written otherwise but means the same."""
    content = (folder / "config.json").read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        with pytest.raises(CheckpointError, match=r"config\.json"):
            damaged(folder / "config.json", bytes(flipped))
    with pytest.raises(CheckpointError, match="altered"):
        damaged(folder / "config.json", json.dumps(json.loads(content)).encode())


def test_the_first_format_is_read_still(tmp_path):
    save(tmp_path, {"w": torch.ones(1)}, CONFIG)
    path = tmp_path / "config.json"
    manifest = json.loads(path.read_text())
    del manifest["own_sha256"]
    path.write_text(json.dumps({**manifest, "format": 1}))
    assert load(tmp_path) == ({"w": torch.ones(1)}, CONFIG)
    path.write_text(json.dumps({**manifest, "format": 1, "own_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="expected a format"):
        load(tmp_path)


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    ours = [".config.json.0123456789abcdef.tmp", ".model-0.safetensors.0.tmp", ".config.json.7.tmp"]
    others = [".config.json", "notes.tmp", ".notes.0123.tmp", "config.json.bak"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    save(tmp_path, {"w": torch.ones(1)}, {})
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*others, "config.json", weights_of(tmp_path).name}


def test_manifest_is_json_for_people(folder):
    manifest = json.loads((folder / "config.json").read_text())
    assert manifest["config"] == CONFIG
    assert weights_of(folder).name == f"model-{manifest['sha256'][:16]}.safetensors"


@pytest.mark.parametrize("content", ["{}", "[1]", "not JSON", '{"format": 1, "sha256": 3}'])
def test_a_config_of_another_kind_is_not_replaced(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    for call in (lambda: save(tmp_path, {"w": torch.ones(1)}, {}), lambda: remove(tmp_path)):
        with pytest.raises(FileExistsError, match=r"config\.json: in the way"):
            call()
    assert [path] == list(tmp_path.iterdir())
    assert path.read_text() == content


def test_removed_with_what_is_ours_only(tmp_path):
    folder = tmp_path / "run"
    remove(folder)
    save(folder, {"w": torch.ones(1)}, {})
    (folder / ".config.json.1.tmp").touch()
    remove(folder)
    assert not folder.exists()
    save(folder, {"w": torch.ones(1)}, {})
    (folder / "notes.txt").touch()
    remove(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["config.json", "weights"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    save(tmp_path, {"w": torch.ones(1)}, {})
    path = weights_of(tmp_path) if name == "weights" else tmp_path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{path.name}: expected a file"):
        load(tmp_path)
