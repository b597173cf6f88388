"""Folders of images."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scoresde.data import load, read_images
from scoresde.internals import limits


def paint(path, size=(6, 4), mode="RGB"):
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_a_folder_of_images(tmp_path):
    second, first = paint(tmp_path / "b1.png"), paint(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("not an image")
    data = load(tmp_path)
    assert (data.name, data.bins, data.values.shape) == (tmp_path.name, 256, (2, 3, 4, 6))
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


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA"])
def test_modes_are_converted(tmp_path, mode):
    pixels = paint(tmp_path / "a.png", mode=mode)
    wanted = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))
    values = load(tmp_path).values
    assert np.array_equal(values.numpy(), wanted.transpose(2, 0, 1)[None])


def png(pixels, colour):
    """Samples of 16 bits, which Pillow does not write; colour types 0, 2, 4, 6."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


def tiff(pixels, **tags):
    """Uncompressed, in one strip, with tags that Pillow does not write."""
    height, width, channels = pixels.shape
    found = {
        256: width,
        257: height,
        258: 8 * pixels.itemsize,
        259: 1,
        262: 2 if channels > 2 else 1,
    }
    found |= {273: 8, 277: channels, 278: height, 279: pixels.nbytes}
    found |= {int(key[1:]): value for key, value in tags.items()}
    content = bytearray(pixels.tobytes())
    entries = b""
    for tag, value in sorted(found.items()):
        count = channels if tag in (258, 339) else 1
        if count > 2:
            entries += struct.pack("<HHII", tag, 3, count, 8 + len(content))
            content += struct.pack(f"<{count}H", *[value] * count)
        else:
            entries += struct.pack(
                "<HHII", tag, 4 if count == 1 else 3, count, value * 65537 ** (count - 1)
            )
    start = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return start + content + struct.pack("<H", len(found)) + entries + bytes(4)


DEEP = np.arange(48, dtype="<u2").reshape(4, 4, 3) * 1001


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png(DEEP[..., 0], 0)),
        ("a.png", png(DEEP, 2)),
        ("a.png", png(DEEP[..., :2], 4)),
        ("a.png", png(np.concatenate([DEEP, DEEP[..., :1]], 2), 6)),
        ("a.ppm", b"P6 4 4 65535\n" + DEEP.astype(">u2").tobytes()),
        ("a.ppm", b"P6 4 4 1023\n" + (DEEP % 1024).astype(">u2").tobytes()),
        ("a.pgm", b"P5 4 4 65535\n" + DEEP[..., 0].astype(">u2").tobytes()),
        ("a.pgm", b"P5 4 4 300\n" + (DEEP[..., 0] % 300).astype(">u2").tobytes()),
        ("a.ppm", b"P3 1 1 65535 1 2 3\n"),
        ("a.tif", tiff(DEEP)),
        ("a.tif", tiff(DEEP[..., :1])),
        ("a.pnm", b"Pf 1 1 -1\n" + struct.pack("<f", 0.5)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_depth_is_not_dropped(tmp_path, name, content, mode):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*expected 8 bits per channel.*bins=65536"):
        load(tmp_path, mode=mode)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ppm", b"P6 4 4 255\n" + DEEP.astype("u1").tobytes()),
        ("a.tif", tiff(DEEP.astype("u1"))),
    ],
)
def test_eight_bits_are_read_as_they_are(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(load(tmp_path).values[0].numpy(), DEEP.astype("u1").transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("signed.tif", tiff(DEEP.astype("u1")[..., :1], t339=2)),
        ("more.tif", tiff(np.zeros((4, 4, 4), "u1"), t338=0)),
    ],
)
def test_channels_and_signs_are_not_dropped(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*expected grey or RGB"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colours_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif: .*grey or RGB .*, got {mode}"):
        load(tmp_path)


def sheer(mode, alpha=128):
    """Two pixels, one that can be seen through, and what is there before a background of 40."""
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([200, 100, 0, 10, 20, 30])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = bytes([alpha, 255])
        return image, [(200, 100, 0), (10, 20, 30)]
    if mode == "key":
        image = Image.new("RGB", (2, 1), (200, 100, 0))
        image.putpixel((1, 0), (10, 20, 30))
        image.info["transparency"] = (200, 100, 0)
        return image, [(200, 100, 0), (10, 20, 30)]
    grey = mode == "LA"
    image = Image.new(mode, (2, 1), (200, alpha) if grey else (200, 100, 0, alpha))
    image.putpixel((1, 0), (10, 255) if grey else (10, 20, 30, 255))
    return image, [(200, 200, 200), (10, 10, 10)] if grey else [(200, 100, 0), (10, 20, 30)]


@pytest.mark.parametrize(("mode", "alpha"), [("LA", 128), ("RGBA", 0), ("P", 128), ("key", 0)])
@pytest.mark.parametrize("background", [40, (0, 90, 255)])
def test_transparency_is_composited_or_refused(tmp_path, mode, alpha, background):
    image, (behind, opaque) = sheer(mode, alpha)
    image.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png: .*background=.*got alpha down to {alpha}"):
        load(tmp_path)
    values = load(tmp_path, background=background).values[0, :, 0].T.numpy()
    colour = np.broadcast_to(background, 3)
    wanted = (alpha * np.array(behind) + (255 - alpha) * colour) / 255
    assert np.abs(values[0] - wanted).max() <= 0.51
    assert values[1].tolist() == list(opaque)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_alpha_that_hides_nothing_is_no_loss(tmp_path, mode):
    image, colours = sheer(mode, 255)
    image.save(tmp_path / "a.png")
    assert load(tmp_path).values[0, :, 0].T.tolist() == [list(colour) for colour in colours]


@pytest.mark.parametrize(
    "background", [-1, 256, 0.5, True, "white", [1, 2], [0, 0, 300], [1.0] * 3]
)
def test_backgrounds_that_are_none(tmp_path, background):
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match="background: expected a shade of 0 to 255, or three"):
        load(tmp_path, background=background)


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.gif", "GIF"), ("a.png", "PNG"), ("a.tif", "TIFF"), ("a.webp", "WEBP"), ("a.jpg", "MPO")],
)
def test_frames_beyond_the_first_are_not_dropped(tmp_path, name, form):
    first, second = (Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 255))
    first.save(tmp_path / name, form, save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=rf"{name}: .*one frame .*frames='first'"):
        load(tmp_path)
    assert load(tmp_path, frames="first").values.max() == 0


def test_images_are_turned_as_they_were_taken(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    pixels = paint(tmp_path / "b.png")
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(load(tmp_path).values[0].numpy(), np.rot90(pixels, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("lazy", [False, True])
def test_subfolders_are_read_or_left_out_on_request(tmp_path, lazy):
    for folder in ("b", "a", ".hidden"):
        (tmp_path / folder).mkdir()
        paint(tmp_path / folder / "1.png")
    alone = pytest.raises(ValueError, match=r"in no subfolder, got a/1\.png \(subfolders=True")
    with alone:
        load(tmp_path)
    with pytest.raises(ValueError, match="a folder with images in it, got none"):
        load(tmp_path, subfolders=False)
    pixels = paint(tmp_path / "0 top.png")
    with alone:
        load(tmp_path, lazy=lazy)
    values = load(tmp_path, subfolders=True, lazy=lazy).read(slice(None)).numpy()
    assert np.array_equal(values[0], pixels.transpose(2, 0, 1))
    assert len(values) == 3
    assert len(load(tmp_path, subfolders=False, lazy=lazy)) == 1


@pytest.mark.parametrize("name", ["a.jp2", "a.TGA", "a.eps", "a.heic", "a.avif"])
def test_images_that_are_not_read_are_named(tmp_path, name):
    paint(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"images of BMP, GIF, .*, got {name}"):
        load(tmp_path)


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
    with pytest.raises(ValueError, match=r"aa\.png: .*8 bits per channel.*, got I;16"):
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


def test_images_together_may_cost_so_much(tmp_path):
    for i in range(9):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{i}.png")
    with limits.memory_limit(260_000):
        with pytest.raises(ValueError, match=f"{tmp_path.name}: expected at most"):
            load(tmp_path)
        assert len(load(tmp_path, lazy=True).read(slice(2))) == 2
    with (
        limits.memory_limit(200_000),
        pytest.raises(ValueError, match=r"0\.png: .*expected at most"),
    ):
        load(tmp_path, lazy=True)
    with pytest.raises(ValueError, match=r"expected at most 1 GiB"):
        load(tmp_path, size=100_000)


def test_a_tile_may_claim_no_more_than_an_image(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(DEEP.astype("u1"), t322=60_000, t323=60_000, t324=8))
    with pytest.raises(ValueError, match=r"a\.tif: expected at most 1 GiB"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_told_what_is(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: expected an image of BMP, .* got another"):
        load(tmp_path)
