"""Data: read, checked, split; levels to densities and back."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scoresde.data import (
    Dataset,
    bits_per_dim,
    dequantize,
    digits,
    load,
    patches,
    quantize,
    read_images,
    split,
)

LEVELS = st.integers(2, 2**16)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_float_arrays_come_in_the_default_dtype(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 2, 3))
    for dtype in ("<f2", ">f4", "<f8", ">f8"):
        np.save(tmp_path / "a.npy", np.asfortranarray(array.astype(dtype))[::-1])
        data = load(tmp_path / "a.npy")
        assert (data.levels, data.values.dtype, data.name) == (None, torch.float32, "a.npy")
        assert np.allclose(data.values.numpy(), array[::-1], atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "given_levels", "levels", "read"),
    [
        ("uint8", None, 256, torch.uint8),
        ("uint8", 7, 7, torch.uint8),
        ("bool", None, 2, torch.uint8),
        (">i4", 7, 7, torch.int64),
        ("uint64", 7, 7, torch.int64),
        ("int8", 7, 7, torch.int64),
    ],
)
def test_integer_arrays(tmp_path, dtype, given_levels, levels, read):
    array = (np.arange(6).reshape(2, 3) % levels).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load(tmp_path / "a.npy", levels=given_levels)
    assert (data.levels, data.values.dtype) == (levels, read)
    assert data.values.tolist() == array.astype(int).tolist()


def test_arrays_of_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, one=np.ones((2, 3)))
    assert load(path).values.shape == (2, 3)
    np.savez_compressed(path, one=np.ones((2, 3)), two=np.zeros((4, 5)))
    assert load(path, key="two").values.shape == (4, 5)
    for key in (None, "three"):
        with pytest.raises(ValueError, match=f"one of one, two, got {key}"):
            load(path, key=key)
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match="key: expected None"):
        load(tmp_path / "a.npy", key="one")


@pytest.mark.parametrize(
    ("array", "options", "error", "message"),
    [
        (np.array([[{}]]), {}, ValueError, "Object arrays"),
        (np.ones((2, 3), complex), {}, TypeError, "real numbers, got an array of complex128"),
        (np.array([["a"]]), {}, TypeError, "real numbers, got an array of <U1"),
        (np.float64(1), {}, ValueError, r"shape \(N, \*event\), no size 0, got \(\)"),
        (np.ones(3), {}, ValueError, r"got \(3,\)"),
        (np.ones((0, 3)), {}, ValueError, r"got \(0, 3\)"),
        (np.ones((3, 0)), {}, ValueError, r"got \(3, 0\)"),
        (np.array([[1, math.nan]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.array([[1, math.inf]]), {}, ValueError, "a.npy: expected finite.*1 NaN"),
        (np.ones((2, 3)), {"levels": 4}, ValueError, "levels: expected None for float64"),
        (np.ones((2, 3), int), {}, ValueError, "levels: expected the number of levels of int64"),
        (np.ones((2, 3), int), {"levels": 1}, ValueError, "levels: expected 2 to 65536, got 1"),
        (np.array([[4, 0]]), {"levels": 4}, ValueError, "from 0 to 3, got 0 to 4"),
        (np.array([[-1, 0]]), {"levels": 4}, ValueError, "from 0 to 3, got -1 to 0"),
    ],
)
def test_arrays_that_will_not_do(tmp_path, array, options, error, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        load(tmp_path / "a.npy", **options)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"garbled", b"PK\x03\x04garbled", b"\x93NUMPY\x01\x00"])
def test_garbled_arrays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        load(tmp_path / name)


def test_values_must_fit_levels():
    with pytest.raises(TypeError, match="expected integers"):
        Dataset("x", torch.zeros(2, 3), levels=4)
    with pytest.raises(TypeError, match="floating-point"):
        Dataset("x", torch.zeros(2, 3, dtype=torch.int64))
    assert repr(digits()) == (
        "Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, levels=17)"
    )


def test_missing_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean 'digits'.*patches"):
        load("digit")
    for name in ("a.npy", "folder", "folder/a.npz"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            load(tmp_path / name)


def test_options_of_another_source_are_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        load("digits", size=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'key'"):
        load(tmp_path, key="x")


def paint(path, size=(6, 4), mode="RGB"):
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_a_folder_of_images(tmp_path):
    second, first = paint(tmp_path / "b1.png"), paint(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("not an image")
    data = load(tmp_path)
    assert (data.name, data.levels, data.values.shape) == (tmp_path.name, 256, (2, 3, 4, 6))
    assert np.array_equal(data.values.numpy(), np.stack([first, second]).transpose(0, 3, 1, 2))
    assert load(tmp_path, mode="L").values.shape == (2, 1, 4, 6)


def test_images_are_cropped_at_the_centre_and_resized(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    paint(tmp_path / "b.png", size=(9, 9))
    values = load(tmp_path, size=2).values
    assert values.shape == (2, 3, 2, 2)
    assert (values[0].float() - 200).abs().max() < 20, "the black sides must be cut off"


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "CMYK"])
def test_modes_are_converted(tmp_path, mode):
    paint(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    assert load(tmp_path).values.shape == (1, 3, 4, 6)


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(ValueError, match="a folder with images in it"):
        load(tmp_path)
    paint(tmp_path / "a.png")
    for options in ({"mode": "CMYK"}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(tmp_path, **options)
    paint(tmp_path / "b.png", size=(6, 5))
    paint(tmp_path / "c.png", size=(7, 5))
    with pytest.raises(ValueError, match=r"b\.png: expected the size of a\.png \(3, 4, 6\)"):
        load(tmp_path)
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "aa.png")
    with pytest.raises(ValueError, match=r"aa\.png: .*8 bits per channel, got I"):
        load(tmp_path)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_images(tmp_path / "absent")


def test_images_that_would_fill_the_memory(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused = pytest.raises(ValueError, match=r"a\.png: .*at most 20 pixels.* got 24")
    with refused, pytest.warns(Image.DecompressionBombWarning):
        load(tmp_path)


NAMES = ["a", "b b", "c"]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("", ["1", "2", "3"]),
        ("a,b b,c\n", NAMES),
        ('"a" , b b ,c\n', NAMES),
        ("\ufeffa,b b,c\r\n", NAMES),
    ],
)
def test_tables(tmp_path, header, names):
    path = tmp_path / "a.csv"
    path.write_bytes((header + '1,-2.5,3e2\n\n 4, +5 ,"6"\n').encode())
    data = load(path)
    assert (data.name, data.levels, data.values.dtype) == ("a.csv", None, torch.float32)
    assert data.values.tolist() == [[1, -2.5, 300], [4, 5, 6]]
    chosen = load(path, columns=[names[2], names[0]])
    assert chosen.values.tolist() == [[300, 1], [6, 4]]
    assert load(path, columns=[names[1]]).values.tolist() == [[-2.5], [5]]


def test_other_delimiters(tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    assert load(tmp_path / "a.csv", delimiter=";").values.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"line 2, column 1 \(a;b\): .*got '1;2'"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "a.csv: expected lines of numbers, got none"),
        ("a,b\n", {}, "a.csv: expected lines of numbers, got none"),
        ("1,x\n", {}, r"a\.csv, line 1, column 2: expected a finite number, got 'x'"),
        ("1,2\n3\n", {}, r"a\.csv, line 2: expected 2 columns, got 1"),
        ("1,2\n\n3,4,5\n", {}, r"a\.csv, line 3: expected 2 columns, got 3"),
        ("a,b\n1,2\n3,\n", {}, r"a\.csv, line 3, column 2 \(b\): .*got ''"),
        ("a,b\n1,nan\n", {}, r"a\.csv, line 2, column 2 \(b\): .*got 'nan'"),
        ("a,b\n1,1e999\n", {}, r"a\.csv, line 2, column 2 \(b\): .*got '1e999'"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "columns: expected some of a, b, got c"),
        ("1,2\n", {"columns": ["0"]}, "columns: expected some of 1, 2, got 0"),
        ('a,"b\n1,2\n', {}, "a.csv"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, options, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.csv", **options)


def test_tables_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match=r"a\.csv: cannot be read as CSV"):
        load(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"b\.csv"):
        load(tmp_path / "b.csv")


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
    )
)
def test_numbers_come_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_text("".join(",".join(map(repr, row)) + "\n" for row in table))
    assert load(path).values.tolist() == table


def test_digits():
    data = load("digits")
    assert (data.values.shape, data.levels, int(data.values.max())) == ((1797, 1, 8, 8), 17, 16)


def test_patches_are_seeded_and_disjoint():
    data = load("patches", size=16, seed=3)
    assert data.values.shape[1:] == (1, 16, 16)
    assert len(data.values) > 1900
    assert torch.equal(data.values, patches(16, seed=3).values)
    assert not torch.equal(data.values[:9], patches(16, seed=4).values[:9])
    assert len(patches(16, stride=8).values) > 3.5 * len(data.values)
    assert patches(427).values.shape[1:] == (1, 427, 427)
    pixels = 2 * 427 * 640
    assert data.values.numel() <= pixels
    for options in ({"size": 0}, {"size": 428}, {"stride": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            patches(**options)


@pytest.mark.parametrize("name", ["digits", "patches"])
def test_without_scikit_learn(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[data\]'"):
        load(name)


@given(
    count=st.integers(2, 200),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_split_is_a_partition(count, fraction, seed):
    data = Dataset("x", torch.arange(count)[:, None], levels=count)
    train, held_out = split(data, fraction, seed)
    both = torch.cat([train.values, held_out.values]).flatten()
    assert both.sort().values.tolist() == list(range(count))
    assert abs(len(train.values) - fraction * count) <= 1
    assert min(len(train.values), len(held_out.values)) > 0
    assert train.levels == held_out.levels == count
    again, _ = split(data, fraction, seeded(seed))
    assert torch.equal(again.values, train.values)


def test_split_is_shuffled_and_checked():
    data = Dataset("x", torch.arange(100)[:, None], levels=100)
    train, _ = split(data, 0.5)
    assert train.values.flatten().tolist() != list(range(50))
    assert not torch.equal(train.values, split(data, 0.5, seed=1)[0].values)
    for fraction in (0, 1, -0.5, 2, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            split(data, fraction)
    with pytest.raises(ValueError, match="two events"):
        split(Dataset("x", torch.zeros(1, 2)), 0.5)


@given(levels=LEVELS, seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_quantize_inverts_dequantize(levels, seed):
    values = torch.randint(levels, (20_000,), generator=seeded(seed))
    x = dequantize(values, levels, seeded(seed))
    assert x.abs().max() <= 1
    assert torch.equal(quantize(x, levels), values)


@given(levels=LEVELS)
@settings(deadline=None)
@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_cells_survive_rounding(levels, u):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u))
        values = torch.arange(levels)
        assert torch.equal(quantize(dequantize(values, levels), levels), values)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantized_values_are_uniform_on_their_cells(levels):
    values = torch.arange(levels).repeat(100_000 // levels)
    x = dequantize(values.to(torch.int32), levels, seeded(0)).double()
    u = (x + 1) * levels / 2 - values
    assert torch.equal(dequantize(values, levels, seeded(0)), x.float())
    # Kolmogorov-Smirnov, at about 1 in 10^5.
    grid = torch.linspace(0, 1, len(u), dtype=torch.float64)
    assert (u.sort().values - grid).abs().max() < 2.5 / math.sqrt(len(u))


def test_quantize_clamps_and_checks():
    x = torch.tensor([-math.inf, -1.0, 0.0, 1.0, math.inf])
    assert quantize(x, 256).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        quantize(torch.tensor([math.nan]), 256)
    with pytest.raises(TypeError, match="floating"):
        quantize(torch.tensor([1]), 256)
    for call in (quantize, dequantize):
        with pytest.raises(ValueError, match="levels"):
            call(x, 1)


@given(levels=LEVELS, dim=st.integers(1, 4096))
@settings(deadline=None)
def test_a_uniform_density_costs_log2_levels(levels, dim):
    log_prob = torch.full((2,), -dim * math.log(2), dtype=torch.float64)
    bits = bits_per_dim(log_prob, dim, levels)
    assert bits.tolist() == pytest.approx([math.log2(levels)] * 2)


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_bits_bound_the_cost_of_the_levels(levels):
    """For a density that is constant on cells the bound is the entropy itself."""
    p = torch.rand(levels, generator=seeded(1)).double().softmax(0)
    values = torch.multinomial(p, 200_000, replacement=True, generator=seeded(2))
    x = dequantize(values, levels, seeded(3))
    log_prob = (p * levels / 2).log()[quantize(x, levels)]
    entropy = -(p * p.log2()).sum().item()
    assert bits_per_dim(log_prob, 1, levels).mean().item() == pytest.approx(entropy, abs=5e-3)


def test_bits_check_their_arguments():
    for dim, levels in ((0, 256), (3, 1)):
        with pytest.raises(ValueError, match="dim" if dim == 0 else "levels"):
            bits_per_dim(torch.zeros(2), dim, levels)
