"""Pictures of odd kinds through every step that meets them: none ends a job, and all agree on their pixels."""

import io
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data_pipelines.prepare.stored_images import storable
from rahf import images
from rahf.core.errors import NotRegularFile, RahfError
from rahf.core.files import open_regular
from rahf.critic import predict
from rahf.images import overlay
from rahf.images.pictures import picture
from tests.helpers.image_maker import encode, png16, smooth

ODD = {
    "wide grey": encode(Image.new("L", (70_000, 10), 128)),
    "high palette": encode(Image.new("P", (10, 70_000))),
    "wide RGBA": encode(Image.new("RGBA", (70_000, 3), (9, 99, 199, 128))),
    "one pixel": encode(Image.new("RGB", (1, 1), (3, 2, 1))),
    "1 bit": encode(Image.new("1", (9, 5), 1)),
    "16 bit": encode(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000),
    "16 bit colour": png16(np.full((4, 5, 4), 40_000, np.uint16)),
    "CMYK": encode(Image.new("CMYK", (20, 30), (10, 200, 30, 40)), "JPEG"),
    "YCbCr in TIFF": encode(Image.new("RGB", (20, 30), (10, 200, 30)), "TIFF", compression="jpeg"),
    "animated": encode(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
    "two pictures": encode(
        Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_stored_and_read(kind):
    data = ODD[kind]
    stored, shown = storable(data, "p"), picture(data, 16, 0, keep=True)
    header = images.check_header(stored)
    assert (header.height, header.width) == shown.size and header.format in ("JPEG", "PNG")
    np.testing.assert_array_equal(images.decode_resized(data, 16), shown.square)
    np.testing.assert_allclose(images.decode_resized(stored, 16).astype(int), shown.square, atol=4)
    np.testing.assert_array_equal(picture(Image.open(io.BytesIO(data)), 16, 0).square, shown.square)
    assert max(shown.shown.shape) <= 1024


def test_a_panel_of_a_wide_picture_is_no_wider_than_others():
    wide = np.zeros((10, 70_000, 3), np.uint8)
    tracemalloc.start()
    panel = overlay.panel([("wide", wide), ("high", wide.swapaxes(0, 1)), ("usual", smooth(40, 60))], 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert panel.height < 100 and panel.width < 3 * 64 + 1 + 96 + 40 and peak < 20e6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_at_once(tmp_path):
    fifo, text = tmp_path / "f.png", tmp_path / "p.txt"
    os.mkfifo(fifo)
    os.mkfifo(text)
    with pytest.raises(NotRegularFile, match="f.png: a FIFO, not a regular file; give a file") as raised:
        open_regular(fifo)
    assert isinstance(raised.value, (OSError, RahfError)) and "Errno" not in str(raised.value)
    for call in (images.load_rgb, lambda path: picture(path, 8, 0)):
        with pytest.raises(images.ImageError, match="f.png: a FIFO, not a regular file"):
            call(str(fifo))
    with pytest.raises(OSError, match="p.txt: a FIFO"):
        predict.given_prompts(["p.png"], None, text)
    (tmp_path / "p.png").write_bytes(encode(smooth(8, 8)))
    (error,) = predict.given_prompts([str(tmp_path / "p.png")], None, None)
    assert "its prompt cannot be read" in str(error) and "a FIFO" in str(error)
    with pytest.raises(NotRegularFile, match="a device"):
        open_regular("/dev/null")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
