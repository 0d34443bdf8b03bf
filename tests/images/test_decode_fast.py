"""One picture is one square, whatever its file and whoever decodes it; heatmaps keep their values."""

import io
import pathlib
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pipelines.prepare.stored_images import storable
from rahf import images
from rahf.images import huffman, jpeg
from rahf.images.pictures import picture
from tests.helpers.image_maker import RGB, encode, expect_error, slow, smooth

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    b"</x:xmpmeta>"
)


def blocks(side: int) -> np.ndarray:
    """Random colours in 12 x 12 blocks: fine detail, which reduced decoding would move."""
    cells = np.random.default_rng(side).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST))


def exif(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


def comments(data: bytes) -> bytes:
    """A JPEG with 130 kB of comments before its metadata."""
    segment = b"\xff\xfe" + struct.pack(">H", 65002) + b"x" * 65000
    return data[:2] + 2 * segment + data[2:]


@pytest.fixture(params=["simplejpeg", "Pillow alone"])
def decoder(request, monkeypatch):
    """With and without the package that the reader of exported files need not have."""
    if request.param != "simplejpeg":
        monkeypatch.setattr(jpeg, "simplejpeg", None)


@pytest.mark.parametrize("side", [40, 96, 256, 1100])
def test_a_jpeg_is_one_square_on_every_way(decoder, tmp_path, side):
    data, tagged = encode(blocks(side), "JPEG", quality=95), encode(blocks(side), "JPEG", quality=95, exif=exif(1))
    (tmp_path / "p.jpg").write_bytes(data)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    expected = picture(pixels, 64, 0).square
    sources = [
        data, tagged, str(tmp_path / "p.jpg"), Image.open(io.BytesIO(data)), Image.fromarray(pixels), pixels / 255.0,
        encode(pixels), comments(tagged),
    ]  # fmt: skip
    for source in sources:
        np.testing.assert_array_equal(picture(source, 64, 0).square, expected)
        np.testing.assert_array_equal(picture(source, 64, 0, keep=True).square, expected)
    for one in (data, tagged, encode(pixels)):
        np.testing.assert_array_equal(images.decode_resized(one, 64), expected)
        np.testing.assert_array_equal(images.decode_resized(one, 64, on_damage=pytest.fail), expected)


@pytest.mark.parametrize("box", [None, (0.1, 0.05, 0.95, 0.9), (0.503, 0.25, 0.8, 1.0)])
@pytest.mark.parametrize("shape, size", [((336, 336), 384), ((700, 500), 96), ((90, 64), 64)])
def test_a_crop_of_the_square(shape, size, box):
    for format, options in (("JPEG", {}), ("JPEG", {"progressive": True, "subsampling": 0}), ("PNG", {}), ("WEBP", {})):
        data = encode(smooth(*shape, seed=shape[0]), format, **options)
        np.testing.assert_array_equal(images.decode_resized(data, size, box), slow(data, size, box or images.FULL))


@pytest.mark.parametrize("stored", ["late EXIF", "XMP", "PNG with XMP", "PNG with EXIF", "WebP with XMP"])
def test_orientation_is_decided_once(decoder, stored):
    array = np.full((80, 120, 3), 200, np.uint8)
    array[:20], array[:, :20] = (255, 0, 0), (0, 255, 0)
    if stored == "late EXIF":
        data = comments(encode(array, "JPEG", quality=95, exif=exif(6)))
    elif stored.startswith("PNG"):
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        data = encode(array, pnginfo=info) if "XMP" in stored else encode(array, exif=exif(6))
    else:
        data = encode(array, "WEBP" if "WebP" in stored else "JPEG", quality=95, xmp=XMP)
    upright = np.rot90(array, -1).astype(int)  # 6: turn it clockwise
    shown = picture(data, 64, 0, keep=True)
    assert shown.size == (120, 80) and np.abs(shown.shown - upright).mean() < 2
    np.testing.assert_array_equal(images.decode_resized(data, 64), shown.square)
    np.testing.assert_array_equal(picture(Image.open(io.BytesIO(data)), 64, 0).square, shown.square)
    assert np.abs(shown.square - picture(upright.astype(np.uint8), 64, 0).square.astype(int)).mean() < 3
    stored_bytes = storable(data)
    assert images.check_header(stored_bytes)[1:] == (80, 120)
    assert np.abs(images.decode_resized(stored_bytes, 64).astype(int) - shown.square).mean() < 3


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


def test_damage_in_the_middle_is_refused_on_every_way(decoder):
    data = damaged(encode(blocks(256), "JPEG", quality=90))
    expect_error(data, "truncated or damaged JPEG (")
    for refuse in (lambda: picture(Image.open(io.BytesIO(data)), 64, 0), lambda: storable(data)):
        with pytest.raises(images.ImageError, match="damaged JPEG .*orrupt JPEG data"):
            refuse()
    cmyk = damaged(encode(Image.fromarray(blocks(256)).convert("CMYK"), "JPEG"))
    expect_error(cmyk, "damaged JPEG")
    # The training loader notes it and takes it as libjpeg repairs it: what version 0 has stored must not end a run.
    notes = []
    repaired = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode_resized(data, 256, on_damage=notes.append), repaired)
    np.testing.assert_array_equal(images.load_rgb(data, on_damage=notes.append), repaired)
    images.decode_resized(cmyk, 64, on_damage=notes.append)
    assert len(notes) == 3 and all("damaged JPEG" in str(note) for note in notes)


@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"subsampling": 0, "optimize": True}, {"restart_marker_blocks": 3},
    {"progressive": True, "subsampling": 0, "restart_marker_rows": 1},
])  # fmt: skip
def test_the_walk_over_huffman_codes_finds_what_libjpeg_finds(options):
    rng = np.random.default_rng(0)
    noisy = (smooth(75, 50) // 2 + rng.integers(0, 120, (75, 50, 3))).astype(np.uint8)
    verdicts = []
    for values in (noisy, noisy[..., 0], noisy[:17, :9]):
        data = encode(values, "JPEG", quality=80, **options)
        huffman.check(data)  # intact
        start = data.index(b"\xff\xda") + 14
        for number in range(20):
            at = int(rng.integers(start, len(data) - 40))
            changed = bytearray(data)
            if number % 2:
                changed[at] ^= 1 << int(rng.integers(8))  # most of these give other valid codes
            else:
                changed[at : at + 30] = rng.bytes(30) if number % 4 else bytes(30)
            verdicts.append((finds(simplejpeg.decode_jpeg, bytes(changed)), finds(huffman.check, bytes(changed))))
    agree = np.mean([ours == theirs for theirs, ours in verdicts])
    assert agree > 0.9 and 0.2 < np.mean(verdicts) < 0.95  # libjpeg misses a few bytes that it has read ahead


def finds(check, data: bytes) -> bool:
    """Whether a check refuses a file."""
    try:
        check(data)
    except (ValueError, huffman.DamagedScan):
        return True
    return False


def test_grey_jpeg_and_truncated_jpeg(decoder):
    grey = encode(RGB[..., 1], "JPEG", quality=95)
    np.testing.assert_array_equal(images.decode_resized(grey, 40), slow(grey, 40))
    data = encode(smooth(300, 300), "JPEG")
    expect_error(data[: len(data) // 2], "truncated or damaged JPEG")
    noted = []
    with pytest.raises(images.ImageError, match="truncated or damaged JPEG"):
        images.decode_resized(data[: len(data) // 2], 16, on_damage=noted.append)
    assert not noted


def test_bad_box():
    for box in [(0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.2, 1.0), (0.6, 0.0, 0.5, 1.0)]:
        with pytest.raises(ValueError, match="crop"):
            images.decode_resized(encode(RGB), 8, box)


def test_map_keeps_values_and_place():
    values = np.zeros((512, 512), np.uint8)
    values[100:140, 300:340] = 170
    data = encode(values)
    np.testing.assert_array_equal(images.load_grey(data), values)
    np.testing.assert_array_equal(images.decode_map(data, 512), values)
    half = images.decode_map(data, 256)
    np.testing.assert_array_equal(half[52:68, 152:168], 170)  # inside, away from the soft edge
    assert abs(half.astype(float).mean() - values.mean()) < 0.02 and half.max() == 170
    crop = images.decode_map(data, 64, (0.5, 0.125, 0.75, 0.375))  # pixels 256..384 and 64..192
    rows, columns = np.nonzero(crop > 85)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 37, 22, 41)
    assert not images.decode_map(encode(np.zeros((9, 9), np.uint8)), 32).any()


def test_map_from_colour_and_broken_map():
    coloured = encode(np.full((4, 4, 3), 85, np.uint8))
    np.testing.assert_array_equal(images.load_grey(coloured), np.full((4, 4), 85))
    with pytest.raises(images.ImageError, match="heat: truncated"):
        images.decode_map(encode(smooth(99, 99)[..., 0])[:-200], 8, what="heat")


INSIDE = np.zeros((8, 8), bool)
INSIDE[2:5, 3:6] = True
MARK = INSIDE.astype(np.uint8) * 255


@pytest.mark.parametrize("map", [
    MARK, Image.fromarray(INSIDE), INSIDE.astype(np.uint16) * 65535, np.stack([MARK] * 3, -1),
    Image.fromarray(MARK).convert("P"), np.dstack([MARK] * 3 + [np.full((8, 8), 255, np.uint8)]),
])  # fmt: skip
def test_maps_of_other_kinds_that_are_clear(map):
    np.testing.assert_array_equal(images.load_map(encode(map)), MARK)


def palette_of_colours() -> Image.Image:
    image = Image.fromarray(INSIDE.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 200, 30, 30])
    return image


@pytest.mark.parametrize("map, words", [
    (INSIDE.astype(np.uint16) * 255, "no value above 255, and 65535 means marked; save it with 8 bits"),
    (INSIDE.astype(np.uint8), "highest value is 1, and 255 means marked; multiply a mask of 0 and 1 by 255"),
    (np.dstack([np.full((8, 8, 3), 255, np.uint8), MARK]), "transparent pixels"),
    (np.dstack([np.full((8, 8), 255, np.uint8), MARK]), "transparent pixels"),
    (palette_of_colours(), "colours"),
    (np.dstack([MARK, 0 * MARK, 0 * MARK]), "colours"),
    (INSIDE.astype(np.int32) * 255, "no value above 255"),
    (INSIDE.astype(np.int32) * 10**6, "expected 8 or 16 bits"),
    (INSIDE.astype(np.float32), "floating point"),
])  # fmt: skip
def test_maps_that_are_not_clear_are_refused(map, words):
    format = "TIFF" if getattr(map, "dtype", None) in (np.int32, np.float32) else "PNG"
    with pytest.raises(images.ImageError, match=f"^m: .*{words}"):
        images.load_map(encode(map, format), what="m")


def test_does_not_import_jax():
    import subprocess
    import sys

    code = "import sys, rahf.images; assert not {'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
