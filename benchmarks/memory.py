"""What hostile files cost: memory and seconds of a process that reads one, beside the bound.

Every file is made, then read by a process of its own, which says the most memory it has had (as
``/usr/bin/time -v`` does) beyond what importing takes. All of it must stay below
`scoresde.internals.limits.memory`, whatever a file claims.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.internals import limits
from scoresde.training import checkpoint

READ = """
import contextlib, sys, warnings
warnings.simplefilter("ignore")
from scoresde.training import checkpoint
from scoresde.app import config
from scoresde.data import load
from scoresde.app.model import Model
import pyarrow.parquet, PIL.Image
def held(kind):
    text = open("/proc/self/status").read()
    return int(text.split(kind)[1].split()[0]) * 1024
reader = {"load": load, "config": config.read, "model": Model.load}[sys.argv[1]]
with contextlib.suppress(OSError):  # forgets the peak of importing, where that may be written
    open("/proc/self/clear_refs", "w").write("5")
before = held("VmRSS:")
try:
    reader(sys.argv[2])
    said = "read"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(held("VmHWM:") - before, said.replace(chr(10), " ")[:300])
"""


def _numbers(shape: str, dtype: str = "<f8") -> bytes:
    """The start of a ``.npy`` file."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)  # type: ignore[return-value]


def _claims(path: Path) -> None:
    path.write_bytes(_numbers("(1000000000, 100)") + bytes(1000))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(_numbers("(1000000000, 1)"))
        file.truncate(2**33)


def _bomb(path: Path) -> None:
    """Zeros, 7.5 GB of them, packed a thousandfold."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(_numbers("(1000000000, 1)"))
        for _ in range(1000):
            file.write(bytes(8_000_000))


def _line(path: Path) -> None:
    """One line without an end: of cells, 200 MB of them."""
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"12," * 350_000)


def _quoted(path: Path) -> None:
    """One cell without an end, over many lines."""
    path.write_bytes(b'a,b\n"' + b"1\n" * 50_000_000)


def _cells(path: Path) -> None:
    """Digits, of which each becomes a number."""
    path.write_bytes(b"1,1,1,1,1,1,1,1\n" * 3_000_000)


def _columns(path: Path) -> None:
    """40,000 columns."""
    names = ",".join(f"column {i}" for i in range(40_000))
    path.write_text(names + "\n" + ",".join(["0.5"] * 40_000) + "\n")


def _png(width: int, height: int, content: bytes) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, part in ((b"IHDR", head), (b"IDAT", content), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + kind + part
        data += struct.pack(">I", zlib.crc32(kind + part))
    return data


def _pixels(path: Path) -> None:
    """Black, 12,000 pixels square, in 430 KB."""
    path.mkdir()
    packer, content = zlib.compressobj(9), []
    for _ in range(12_000):
        content.append(packer.compress(bytes(1 + 3 * 12_000)))
    image = _png(12_000, 12_000, b"".join([*content, packer.flush()]))
    (path / "0.png").write_bytes(image)


def _many(path: Path) -> None:
    """2,000 images of 12 MB in 40 KB each."""
    path.mkdir()
    image = _png(2000, 2000, zlib.compress(bytes(2000 * (1 + 3 * 2000)), 9))
    for i in range(2000):
        (path / f"{i:04}.png").write_bytes(image)


def _repeated(path: Path) -> None:
    """A number, 300 million times."""
    import pyarrow
    from pyarrow import parquet

    part = pyarrow.table({"a": np.full(10**7, 0.5)})
    with parquet.ParquetWriter(path, part.schema, compression="zstd") as writer:
        for _ in range(30):
            writer.write_table(part)


def _described(path: Path) -> None:
    """A Parquet file that is nothing but a description, of 30 MB."""
    path.write_bytes(b"PAR1" + bytes(30_000_000) + struct.pack("<I", 30_000_000) + b"PAR1")


def _model(basis: str, shape: list[int]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        import torch

        settings = {
            "sde": {"name": "diagonal", "schedule": "vp", "basis": basis},
            "estimator": {"name": "denoising", "network": {"name": "residual-mlp", "width": 1}},
            "solver": "ddim",
        }
        content = {"settings": settings, "facts": {"event_shape": shape, "bins": None}}
        checkpoint.save(path, {"weight": torch.zeros(4)}, content)

    return make


def _weights(path: Path) -> None:
    """Weights that are nothing but a description, of 50 MB."""
    with io.BytesIO() as file:
        file.write(b"{")
        for i in range(900_000):
            file.write(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' % i)
        file.write(b'"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}')
        text = file.getvalue()
    weights = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(weights).hexdigest()
    path.mkdir()
    manifest = {"format": 1, "sha256": digest, "config": {}}
    (path / "config.json").write_text(json.dumps(manifest))
    (path / f"model-{digest[:16]}.safetensors").write_bytes(weights)


def _parts(path: Path) -> None:
    """Keys of 2,000 parts, each of which is a dictionary in the one before."""
    path.write_bytes(b"".join(b"%c." % (97 + i % 26) * 2000 + b"k%d=1\n" % i for i in range(60)))


def _manifest(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_bytes(b"[" + b"{}," * 20_000_000 + b"{}]")


FILES: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "a pipe": ("load", "x.npy", os.mkfifo),
    "a device": ("load", "x.csv", lambda path: path.symlink_to("/dev/zero")),
    "a pipe as configuration": ("config", "x.toml", os.mkfifo),
    "an array that claims 800 GB": ("load", "x.npy", _claims),
    "a sparse array of 8 GB": ("load", "x.npy", _sparse),
    "8 GB of zeros, packed": ("load", "x.npz", _bomb),
    "a line of 70 million cells": ("load", "x.csv", _line),
    "a cell of 50 million lines": ("load", "x.csv", _quoted),
    "24 million digits, each a cell": ("load", "x.csv", _cells),
    "40,000 columns": ("load", "x.csv", _columns),
    "an image of 144 million pixels": ("load", "x", _pixels),
    "2,000 images of 12 MB": ("load", "x", _many),
    "300 million rows, repeated": ("load", "x.parquet", _repeated),
    "a description of 30 MB": ("load", "x.parquet", _described),
    "a model with a DCT of 20,000": ("model", "x", _model("dct", [1, 20_000, 1])),
    "a model with a DCT of 7,000": ("model", "x", _model("dct", [1, 7_000, 1])),
    "a model with PCA of 22,500": ("model", "x", _model("pca", [1, 150, 150])),
    "a model of a billion numbers": ("model", "x", _model("identity", [10**9])),
    "weights of 900,000 names": ("model", "x", _weights),
    "a manifest of 60 MB": ("model", "x", _manifest),
    "keys of 2,000 parts": ("config", "x.toml", _parts),
    "60 MB of configuration": ("config", "x.toml", _write(b"[a]\n" * 15_000_000)),
}
"""What reads it, its name, and what makes it."""


def measured(name: str, folder: Path, memory: int | None = None) -> dict[str, Any]:
    """The cost of one of `FILES`, read with another bound if one is given."""
    reader, file, make = FILES[name]
    path = folder / file
    make(path)
    settings = {} if memory is None else {limits.VARIABLE: str(memory)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", READ, reader, str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
    )
    assert done.returncode == 0, done.stderr
    used, _, said = done.stdout.strip().partition(" ")
    seconds = time.perf_counter() - start
    return {"file": name, "memory": int(used), "seconds": seconds, "said": said}


def run(quick: bool = False) -> dict[str, Any]:
    """A row for every file."""
    slow = ("packed", "pixels", "repeated", "cell", "names", "12 MB")
    rows = []
    for name in FILES:
        if quick and any(part in name for part in slow):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, Path(folder)))
        row = rows[-1]
        print(
            f"{name:32}{row['memory'] / 2**20:8.0f} MiB {row['seconds']:6.1f} s  {row['said']}",
            flush=True,
        )
    most = max(row["memory"] for row in rows)
    return {"bound": limits.memory(), "most": most, "below": most <= limits.memory(), "rows": rows}
