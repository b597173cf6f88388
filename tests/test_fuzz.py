"""Whatever comes in, it works or it is refused by a documented error that says what is wrong.

No other error, no code run, no file lost or left half-written. `benchmarks/fuzz.py` runs the
same for as long as one likes.
"""

import collections
import contextlib
import copy
import functools
import hashlib
import inspect
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from estimators import Gaussian, ResidualMLP
from scoresde import (
    VP,
    Basis,
    DiagonalSDE,
    Haar,
    Schedule,
    ScoreEstimator,
    Solver,
    log_prob,
    plugins,
)
from scoresde.app import config
from scoresde.app.cli import main
from scoresde.app.config import ConfigError
from scoresde.app.model import Model
from scoresde.data import Dataset
from scoresde.data import load as load_data
from scoresde.plugins import PluginError, UnknownPlugin
from scoresde.training import checkpoint
from scoresde.training.checkpoint import CheckpointError
from solvers import DDIM, StepLimit

SETTINGS = {
    "data": {"source": "digits", "held_out": 0.2},
    "sde": {
        "name": "diagonal",
        "schedule": {"name": "vp", "beta_min": 0.1},
        "basis": {"name": "haar", "levels": 2},
        "speeds": [1.0, 1.5, 2.0],
        "scale": "data_std",
    },
    "estimator": {
        "name": "denoising",
        "network": {"name": "residual-mlp", "width": 4, "depth": 1},
    },
    "solver": {"name": "ddim", "steps": 2, "eta": 0.5},
    "training": {"steps": 2, "batch_size": 4, "lr": 1e-3},
}
FACTS = {
    "event_shape": [1, 4, 4],
    "bins": 17,
    "data_mean": [0.0] * 16,
    "data_std": [1.0, 0.5, 0.1],
}
TOML = b"""
[sde]
name = "diagonal"   # a comment
speeds = [1.0, 1_5e-1, inf, nan, 0x1f]
[sde.schedule]
name = 'cosine'
"a.b".c = 1979-05-27T07:32:00Z
"""
inputs: collections.Counter[str] = collections.Counter()
"""How many have been tried, by test."""


properties: dict[str, Callable[[int], Callable[[], None]]] = {}
"""Tests by name, for any number of examples."""


def fuzz(examples, *strategies):
    """A property, for some examples here and any number elsewhere."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            inputs[test.__name__] += 1
            test(*args, **kwargs)

        def property_(count):
            checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
            limits = settings(max_examples=count, deadline=None, suppress_health_check=checks)
            return limits(given(*strategies)(counted))

        properties[test.__name__] = property_
        return property_(examples)

    return decorate


# What must never happen, as the interpreter itself reports it.
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
              "pickle.find_class", "socket.connect", "ctypes.dlopen")  # fmt: skip
_watching = False
_happened: list[str] = []


def _audit(event, arguments):
    if _watching and (event in _FORBIDDEN or (event == "import" and "canary" in arguments[0])):
        _happened.append(f"{event} {arguments!r}")


@contextlib.contextmanager
def nothing_runs():
    """Fails if a process is started, a pickle read, or the module that files name imported."""
    global _watching
    _happened.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _happened


@contextlib.contextmanager
def forbidden_module():
    """Puts a module on the path that nobody may import; what is imported late is there before."""
    if not hasattr(sys, "_fuzz_audited"):  # a hook stays for good
        sys.addaudithook(_audit)
        sys._fuzz_audited = True
    for group in plugins.GROUPS:
        plugins.check(group)
    CliRunner().invoke(main, ["list"])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "canary.py").write_text("def run(**anything): exit('code was run')\n")
        sys.path.insert(0, folder)
        yield
        sys.path.remove(folder)


@pytest.fixture(scope="module", autouse=True)
def prepared():
    with forbidden_module():
        yield


NAMES = st.sampled_from(
    ["os:system", "canary:run", "canary", "builtins:exec", "scoresde.plugins:get", "__class__",
     "../../etc/passwd", "/dev/zero", "", " ", ":", "a:b:c", "ddim", "haar", "pca", "vp", "heun",
     "identity", "denoising", "gaussian", "data_std", "sde", "basis", "network", "estimator",
     "components", "event_shape", "\x00", "ß" * 300]
)  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, -1, 2**31, -(2**63), 2**64, 10**30, True, False]),
    st.floats(),
    st.floats(-2, 20),
)
SCALARS = st.one_of(st.none(), NUMBERS, NAMES, st.text(max_size=5))
KEYS = st.one_of(
    st.sampled_from(
        ["name", "sde", "schedule", "basis", "estimator", "network", "solver", "levels", "bins",
         "steps", "eta", "speeds", "scale", "drop", "blocks", "bands", "event_shape",
         "condition_dim", "corrector", "grid", "times", "weighting", "components", "facts",
         "__class__", "self"]
    ),
    st.text(max_size=4),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def _places(tree, path=()):
    """Paths of all entries of nested tables and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(entries):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*path, key))


@st.composite
def changed(draw, tree):
    """A tree with a few entries replaced, removed, added or taken from elsewhere in it."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        table = functools.reduce(lambda part, k: part[k], above, tree)
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                table[key] = draw(VALUES)
            case "remove":
                del table[key]
            case "add" if isinstance(table, dict):
                table[draw(KEYS)] = draw(VALUES)
    return tree


@st.composite
def damaged(draw, content):
    """Bytes cut short, flipped, doubled or overwritten here and there."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "overwrite":
                new = draw(st.binary(max_size=16))
                data[at : at + len(new)] = new
            case "repeat":
                data[at:at] = data[at : at + 64] * draw(st.integers(1, 20))
    return bytes(data)


def nested(depth):
    """Brackets in brackets, as JSON and TOML write them."""
    return st.sampled_from(["[", '{"a":', "a.", "[[", "{a="]).map(lambda b: b.encode() * depth)


@functools.cache
def saved():
    """The files of a small model: names and contents."""
    with tempfile.TemporaryDirectory() as folder:
        Model.build(SETTINGS, FACTS).save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def weights_name():
    (name,) = (name for name in saved() if name != "config.json")
    return name


def refused(error, *parts):
    """An error's message says something, about one of the parts."""
    message = str(error)
    assert message
    assert any(part in message for part in parts), message


@contextlib.contextmanager
def folder_with(files):
    """A folder that must come out as it went in."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            Path(name, file).write_bytes(content)
        yield Path(name)
        assert {path.name: path.read_bytes() for path in Path(name).iterdir()} == files


def manifest(content, weights):
    digest = hashlib.sha256(weights).hexdigest()
    text = json.dumps({"format": 1, "sha256": digest, "config": content})
    return {"config.json": text.encode(), f"model-{digest[:16]}.safetensors": weights}


@fuzz(
    30, st.one_of(st.binary(max_size=200), damaged(TOML), nested(5000), st.text().map(str.encode))
)
def test_toml(content):
    with folder_with({"config.toml": content}) as folder, nothing_runs():
        path = folder / "config.toml"
        try:
            assert isinstance(config.read(path), dict)
        except ConfigError as error:
            refused(error, str(path))


@fuzz(40, changed(SETTINGS), st.one_of(st.just(FACTS), st.just({**FACTS, "event_shape": [3]})))
def test_settings(content, facts):
    with nothing_runs():
        try:
            assert isinstance(Model.build(content, facts), Model)
        except (ConfigError, UnknownPlugin, PluginError) as error:
            refused(error, *content, "sde", "estimator", "solver", *plugins.GROUPS)


def load(folder):
    with nothing_runs():
        try:
            state, content = checkpoint.load(folder)
            assert isinstance(content, dict)
            assert all(isinstance(value, torch.Tensor) for value in state.values())
            assert isinstance(Model.load(folder), Model)
        except CheckpointError as error:
            refused(error, str(folder))
        except (UnknownPlugin, PluginError) as error:
            refused(error, *plugins.GROUPS)


def load_files(**files):
    with folder_with({**saved(), **files}) as folder:
        load(folder)


@fuzz(25, st.data())
def test_damaged_files(data):
    name = data.draw(st.sampled_from(sorted(saved())))
    content = saved()[name]
    load_files(
        **{name: data.draw(st.one_of(damaged(content), st.binary(max_size=99), nested(9999)))}
    )


@fuzz(25, damaged(b"".join(v for k, v in saved().items() if k != "config.json")))
def test_weights_with_a_digest_of_their_own(weights):
    content = json.loads(saved()["config.json"])["config"]
    with folder_with(manifest(content, weights)) as folder:
        load(folder)


@fuzz(40, changed({"settings": SETTINGS, "facts": FACTS}))
def test_models_that_someone_else_wrote(content):
    with folder_with(manifest(content, saved()[weights_name()])) as folder:
        load(folder)


@functools.cache
def data_files():
    """A small file of every kind: names and contents."""
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image, files = Image.fromarray(array * 20), {}
    writers = {
        "x.npy": lambda file: np.save(file, array / 2),
        "bytes.npy": lambda file: np.save(file, array),
        "x.npz": lambda file: np.savez_compressed(file, x=array),
        "x.csv": lambda file: file.write(b"a,b\n1,-2e3\n.5,'0'\n"),
        "x.tsv": lambda file: file.write("a\tb\n1.5\t\nNA\t2\n".encode("utf-16")),
        "x.parquet": lambda file: parquet.write_table(pyarrow.table({"a": [0.5, None]}), file),
        **{
            f"x.{kind}": functools.partial(image.save, format=kind)
            for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "eps")
        },
    }
    for name, write in writers.items():
        with io.BytesIO() as file:
            write(file)
            files[name] = file.getvalue()
    return files


def load_file(name, content):
    """Data from a file, in memory and from the disk."""
    with folder_with({name: content}) as folder, nothing_runs():
        table = name.endswith(("csv", "tsv", "parquet"))
        array = table or name.endswith(("npy", "npz"))
        for options in ({}, {"missing": "nan"} if table else {"lazy": True}):
            try:
                found = load_data(folder / name if array else folder, **options)
                assert isinstance(found, Dataset)
                assert len(found.read(slice(None))) == len(found)
            except (TypeError, ValueError) as error:
                refused(error, str(folder), name, "bins", "key", "lazy")


@fuzz(50, st.sampled_from(sorted(data_files())), st.sampled_from(sorted(data_files())), st.data())
def test_data_files(name, kind, data):
    """Under the name of their own kind, or of another."""
    content = data_files()[kind]
    load_file(name, data.draw(st.one_of(st.just(content), damaged(content), st.binary())))


READERS = {
    "config.toml": test_toml.hypothesis.inner_test,
    "config.json": lambda content: load_files(**{"config.json": content}),
    "weights": lambda content: load_files(**{weights_name(): content}),
    "weights with their digest": test_weights_with_a_digest_of_their_own.hypothesis.inner_test,
    **{name: functools.partial(load_file, name) for name in data_files()},
}
"""What reads bytes, for `benchmarks/fuzz.py`."""


OBJECTS = st.one_of(
    VALUES,
    st.binary(max_size=3),
    st.sampled_from([float, object(), print, len, Exception("x")]),
    st.sampled_from([(), (0,), (1,), (2, 2), (3, 1)]).flatmap(
        lambda shape: st.sampled_from(["float32", "float64", "int64", "bool", "complex64"]).map(
            lambda dtype: torch.ones(shape).to(getattr(torch, dtype))
        )
    ),
    st.floats().map(torch.tensor),
)
SDE_ = DiagonalSDE(VP(), Haar((1, 4, 4), levels=1))
MODEL = Gaussian(SDE_, torch.zeros(1, 4, 4), torch.eye(16))
GIVEN = {
    "event_shape": (1, 4, 4),
    "schedule": VP(),
    "basis": Haar((1, 4, 4), levels=1),
    "sde": SDE_,
    "network": ResidualMLP((1, 4, 4), width=4, depth=1),
    "networks": [ResidualMLP((1, 4, 4), width=4, depth=1)],
    "components": torch.eye(4),
    "mean": torch.zeros(1, 4, 4),
    "covariance": torch.eye(16),
    "weights": torch.ones(1),
    "means": torch.zeros(1, 1, 4, 4),
    "covariances": torch.eye(16)[None],
    "levels": 1,
    "estimator": MODEL,
    "null_condition": 0.0,
    "low": -1.0,
    "high": 1.0,
}
PRECISIONS = st.sampled_from([torch.float32, torch.float64])
NAMED = {f"{group}/{name}" for group in plugins.GROUPS for name in plugins.available(group)}


def wrong(error):
    """An error for a user: one line that begins with the name of an argument."""
    assert re.match(r"[A-Za-z_][\w, ]*(\[.*\])?: .|'\w+' must ", str(error)), repr(error)


def in_precision(value, dtype):
    """What is given, a real tensor in a precision."""
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if real else value


def asked(made, dtype):
    """Something that was made answers in the precision that it is asked in, if it can."""
    with contextlib.suppress(ArithmeticError, StepLimit, ValueError):
        if isinstance(made, Solver):
            assert made.sample(MODEL, (2,), dtype=dtype).dtype == dtype
        elif isinstance(made, ScoreEstimator):
            z = torch.zeros(2, made.sde.basis.dim, dtype=dtype)
            for t in (0, 0.5, made.sde.T):
                answers = [getattr(made, q)(z, t) for q in ("denoise", "score", "noise")]
                assert {(v.dtype, v.shape) for v in answers} == {(dtype, z.shape)}
        elif isinstance(made, Basis):
            assert made(torch.zeros(made.event_shape, dtype=dtype)).dtype == dtype
        elif isinstance(made, Schedule):
            answers = [v for t in (0.0, 0.5, made.T) for v in made(torch.tensor([t], dtype=dtype))]
            assert all(v.dtype == dtype for v in answers)


@fuzz(100, st.sampled_from(sorted(NAMED)), PRECISIONS, st.data())
def test_arguments(name, dtype, data):
    factory = plugins.get(*name.split("/"))
    parameters = inspect.signature(factory).parameters
    given = {**getattr(factory, "example", {}), **GIVEN}
    arguments = {
        k: in_precision(given[k], dtype)
        for k, p in parameters.items()
        if k in given and p.default is p.empty
    }
    # a billion layers are built if one asks for them
    huge = {"depth", "width", "hidden", "channels", "blocks", "condition_channels"}
    changeable = sorted(set(parameters) - huge - {"classes", "condition_dim", "prior"})
    keys = (
        st.lists(st.sampled_from(changeable), min_size=1, max_size=2) if changeable else st.just([])
    )
    for key in data.draw(keys):
        arguments[key] = data.draw(OBJECTS)
    try:
        made = factory(**arguments)
    except FileNotFoundError:  # which names the file
        return
    except (TypeError, ValueError) as error:
        wrong(error)
        return
    if isinstance(made, torch.nn.Module):
        made = made.to(dtype)
    functions = {
        "grid",
        "corrector",
        "parametrization",
        "weighting",
        "baseline",
        "network_basis",
        "observe",
    }
    if not functions & set(arguments) and getattr(made, "steps", 0) < 10:
        asked(made, dtype)


CALLS = ["sample_shape", "generator", "x", "method", "trace", "z", "t"]


@fuzz(60, st.sampled_from(CALLS), PRECISIONS, OBJECTS)
def test_calls(argument, dtype, value):
    if argument == "sample_shape" and isinstance(value, (list, tuple)) and len(value) > 0:
        return  # as many samples as one asks for
    x = {} if argument == "x" else {"x": torch.zeros(2, 1, 4, 4, dtype=dtype)}
    value = in_precision(value, dtype)
    try:
        if argument in ("sample_shape", "generator"):
            arguments = {"sample_shape": (2,), argument: value}
            assert DDIM(2).sample(MODEL, dtype=dtype, **arguments).dtype == dtype
        elif argument in ("z", "t"):
            arguments = {"z": torch.zeros(2, 16, dtype=dtype), "t": 0.5, argument: value}
            assert MODEL.denoise(**arguments).isfinite().all()
        else:
            found = log_prob(MODEL, **{**x, argument: value}).value
            assert found.dtype == dtype or argument == "x"
    except (TypeError, ValueError) as error:
        wrong(error)


@contextlib.contextmanager
def inside_a_folder():
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


OPTIONS = {
    "train": ["--output", "--pictures", "--distributed", "--replace"],
    "sample": ["--count", "--output", "--png", "--solver", "--steps", "--eta", "--seed"],
    "evaluate": ["--data", "--count", "--hutchinson", "--solver", "--steps", "--seed", "--json"],
    "cite": [],
    "list": ["--nothing"],
    "": ["--version", "--debug", "--help", "--nothing"],
}
WORDS = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "-1", "1e3", "nan", "inf", "9" * 30, "model", "new", "digits", "x.npy",
         "config.toml", "none", "no/where", ".", "", "ddim", "heun", "os:system", "canary:run",
         "model/config.json", "mine.txt"]
    ),
    st.text(st.characters(exclude_characters="/\x00", codec="utf-8"), max_size=4),
)  # fmt: skip


@fuzz(40, st.sampled_from(sorted(OPTIONS)), st.data())
def test_the_command_line(command, data):
    words = [command] if command else []
    if command in ("train", "sample", "evaluate", "cite"):
        words.append(data.draw(st.one_of(st.sampled_from(["model", "config.toml"]), WORDS)))
    if command == "train":
        words += ["--output", data.draw(WORDS)]
    for option in data.draw(st.lists(st.sampled_from(OPTIONS[command] or ["-h"]), max_size=2)):
        words.append(option)
        if option not in ("--json", "--distributed", "--replace", "--version", "--debug", "--help"):
            words.append(data.draw(WORDS))
    with inside_a_folder():
        Path("model").mkdir()
        for name, content in saved().items():
            Path("model", name).write_bytes(content)
        Path("config.toml").write_bytes(TOML)
        Path("mine.txt").write_bytes(b"mine")
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        with nothing_runs():
            result = CliRunner().invoke(main, words)
        after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    told = (words, result.output)
    if result.exit_code:
        assert isinstance(result.exception, SystemExit), told
        assert "Error: " in result.output or not words, told
    named = {Path(word) for word in words[1:]}
    lost = {path for path in before if after.get(path) != before[path]}
    assert lost <= named, told
    assert not [path for path in after if path.name.endswith((".partial", ".tmp"))], told
