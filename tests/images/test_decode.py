"""Decoding: every kind of file people have, every way in which a file is broken, and fast = exact."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rahf import images
from tests.helpers.image_maker import RGB, encode, expect_error, png16, slow, smooth


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(format):
    np.testing.assert_array_equal(images.load_rgb(encode(RGB, format)), RGB)


@pytest.mark.parametrize("format, options, most", [
    ("JPEG", {"quality": 95, "subsampling": 0}, 4.0), ("WEBP", {"quality": 95}, 6.0), ("GIF", {}, 25.0),
])  # fmt: skip
def test_lossy_formats_are_near(format, options, most):
    pixels = images.load_rgb(encode(RGB, format, **options))
    assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - RGB).mean() < most


def test_every_kind_of_source_gives_the_same(tmp_path):
    data = encode(RGB)
    file = tmp_path / "a picture.png"
    file.write_bytes(data)
    with open(file, "rb") as opened:
        pillow = Image.open(io.BytesIO(data))
        for source in (file, str(file), data, bytearray(data), io.BytesIO(data), opened, pillow):
            np.testing.assert_array_equal(images.load_rgb(source), RGB)
    assert images.load_rgb(data).flags.writeable


def test_grey_one_bit_and_palette():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(images.load_rgb(encode(grey)), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey).point(lambda v: 255 * (v > 127)).convert("1")
    np.testing.assert_array_equal(images.load_rgb(encode(bits))[..., 1], np.where(grey > 127, 255, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(images.load_rgb(encode(palette)), [[[10, 20, 30], [200, 100, 50]]])


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 102]]
    # 102/255 = 0.4: 0.4 * 100 + 0.6 * 255 = 193, 153, 233
    expected = [[[100, 0, 200], [255, 255, 255], [193, 153, 233]]]
    np.testing.assert_array_equal(images.load_rgb(encode(rgba)), expected)
    np.testing.assert_array_equal(images.load_rgb(encode(rgba, "WEBP", lossless=True, exact=True)), expected)
    np.testing.assert_array_equal(images.load_rgb(Image.fromarray(rgba)), expected)
    palette = Image.new("P", (3, 1))
    palette.putpalette([100, 0, 200, 100, 0, 200, 100, 0, 200])
    palette.putdata([0, 1, 2])
    data = encode(palette, transparency=bytes([255, 0, 102]))
    np.testing.assert_array_equal(images.load_rgb(data), expected)


def test_grey_with_alpha_and_transparent_colour():
    image = Image.new("LA", (3, 1))
    image.putdata([(100, 255), (100, 0), (100, 102)])
    np.testing.assert_array_equal(images.load_rgb(encode(image))[0, :, 0], [100, 255, 193])
    marked = Image.new("RGB", (2, 1), (1, 2, 3))
    marked.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(
        images.load_rgb(encode(marked, transparency=(9, 9, 9))), [[[1, 2, 3], [255, 255, 255]]]
    )


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.array([[0, 257, 25700, 32768, 65535]], np.uint16)  # v / 257
    expected = [0, 1, 100, 128, 255]
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(images.load_rgb(encode(grey, format))[0, :, 2], expected)
    colour = np.stack([grey, grey[:, ::-1], grey], -1)
    np.testing.assert_allclose(images.load_rgb(png16(colour))[0, :, 0], expected, atol=1)
    np.testing.assert_allclose(images.load_rgb(png16(colour))[0, :, 1], expected[::-1], atol=1)
    alpha = np.concatenate([colour, np.full((1, 5, 1), 0, np.uint16)], -1)
    assert (images.load_rgb(png16(alpha)) == 255).all()
    np.testing.assert_array_equal(images.load_grey(encode(grey))[0], expected)


def test_floating_point_is_refused_in_words():
    words = "x.tif: pixels of floating point from 0.0 to 2.5; expected 8 or 16"
    with pytest.raises(images.ImageError, match=words):
        images.load_rgb(encode(np.array([[0, 2.5]], np.float32), "TIFF"), what="x.tif")


def test_cmyk_jpeg_plain_and_adobe_inverted():
    image = Image.fromarray(RGB).convert("CMYK")
    data = encode(image, "JPEG", quality=98, subsampling=0)  # Pillow writes as Adobe: inverted, marked
    assert b"Adobe" in data
    assert np.abs(images.load_rgb(data).astype(int) - RGB).mean() < 4
    # The same bytes without the marker are the plain kind: their values mean the opposite.
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    plain = data[:start] + data[start + 2 + length :]
    stored = 255 - np.asarray(image).astype(int)
    expected = (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255
    assert np.abs(images.load_rgb(plain).astype(int) - expected).mean() < 4
    square = images.decode_resized(data, 32)
    assert np.abs(square.astype(int) - slow(data, 32)).max() == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, format):
    # How each value stores an upright picture (EXIF 2.3, table of tag 0x0112): row 0 is …, column 0 is …
    upright = np.zeros((24, 48, 3), np.uint8)
    upright[:8, :16] = (255, 0, 0)  # red top left
    upright[16:, 32:] = (0, 0, 255)  # blue bottom right
    upright[:8, 32:] = (0, 255, 0)  # green top right
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    data = encode(np.ascontiguousarray(stored), format, exif=exif, **options)
    pixels = images.load_rgb(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 2
    fast = images.decode_resized(data, 24, (0.5, 0.0, 1.0, 0.5))
    np.testing.assert_allclose(fast, slow(data, 24, (0.5, 0.0, 1.0, 0.5)), atol=1)


def test_broken_exif_does_not_cost_the_picture():
    data = encode(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x01garbage")
    assert images.load_rgb(data).shape == RGB.shape


def test_of_several_frames_the_first():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(images.load_rgb(data).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_any_size(size):
    picture = smooth(*size)
    np.testing.assert_array_equal(images.load_rgb(encode(picture)), picture)
    for format in ("PNG", "JPEG"):
        assert images.decode_resized(encode(picture, format), 16).shape == (16, 16, 3)


# --- what is broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated(format, share):
    data = encode(smooth(200, 300), format)
    expect_error(data[: int(share * len(data))], "truncated or damaged")


def test_truncated_gif():
    data = encode(smooth(200, 300), "GIF")
    expect_error(data[: len(data) // 2], "truncated or damaged GIF")


def test_empty_and_not_an_image():
    expect_error(b"", "the file is empty")
    expect_error(b"<!doctype html><title>404</title>" * 30, "not an image")
    expect_error(b"\xff\xd8\xff", "not an image")
    expect_error(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image")


def test_names_the_file(tmp_path):
    with pytest.raises(images.ImageError, match="none.png: No such file"):
        images.load_rgb(tmp_path / "none.png")
    with pytest.raises(images.ImageError, match="directory"):
        images.load_rgb(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(images.ImageError, match="empty.png: the file is empty"):
        images.load_rgb(tmp_path / "empty.png")
    (tmp_path / "bad.jpg").write_bytes(encode(RGB, "JPEG")[:500])
    words = "bad.jpg: truncated"
    with open(tmp_path / "bad.jpg", "rb") as file, pytest.raises(images.ImageError, match=words):
        images.load_rgb(file)


def test_without_pixels():
    with pytest.raises(images.ImageError, match="image: has no pixels"):
        images.load_rgb(Image.new("RGB", (0, 5)))
    empty = png16(np.zeros((1, 1, 3), np.uint16)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 0, 1))
    with pytest.raises(images.ImageError):
        images.load_rgb(empty)


@pytest.mark.parametrize("side, words", [(9000, "9000 x 9000 = 81.0 megapixels, more than the limit of 64.0"),
                                         (12000, "144.0 megapixels"), (20000, "20000 = 400.0 megapixels")])  # fmt: skip
def test_decompression_bombs_are_refused_by_their_header(side, words):
    # The pixels do not exist: if anything were decoded, the error would say "truncated".
    small = encode(np.zeros((1, 1), np.uint8))
    header = struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = small[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
    expect_error(bomb, words)
    with pytest.raises(images.ImageError, match="picture: "):
        images.check_header(bomb, what="picture")


def test_limit_can_be_set_and_holds_for_every_way():
    data = encode(RGB, "JPEG")
    for call in (
        lambda n: images.load_rgb(data, max_pixels=n),
        lambda n: images.load_rgb(Image.fromarray(RGB), max_pixels=n),
        lambda n: images.decode_resized(data, 8, max_pixels=n),
        lambda n: images.decode_map(data, 8, max_pixels=n),
        lambda n: images.check_header(data, max_pixels=n),
    ):
        call(2400)
        with pytest.raises(images.ImageError, match="60 x 40"):
            call(2399)


def test_header():
    assert images.check_header(encode(RGB, "WEBP")) == ("WEBP", 60, 40)
    assert images.check_header(encode(RGB, "JPEG")) == images.Header("JPEG", 60, 40)


def test_pillow_is_left_as_it_was():
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    bomb_data = [encode(RGB, f)[:-20] for f in ("PNG", "TIFF", "JPEG")] + [encode(RGB)]
    palette = Image.fromarray(RGB).quantize(8)
    bomb_data.append(encode(palette, transparency=bytes(range(8))))  # Pillow warns about such palettes

    def work():
        for data in bomb_data * 20:
            try:
                images.load_rgb(data)
            except images.ImageError:
                pass

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not heard
    assert Image.MAX_IMAGE_PIXELS == limit and warnings.filters == filters
