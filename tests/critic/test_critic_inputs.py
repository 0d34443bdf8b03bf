"""What a critic accepts: every kind of source gives the same; what it cannot use is named with a remedy."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.core.batch import Prediction
from rahf.core.errors import ImageError
from rahf.images import inputs
from rahf.images.pictures import eight_bit, picture
from tests.helpers.critic_maker import assert_same
from tests.helpers.image_maker import encode, smooth


def test_every_kind_of_source_gives_the_same(critic, pictures, tmp_path):
    array = pictures[0]
    path = tmp_path / "picture.png"
    path.write_bytes(encode(array))
    sources = [
        path, str(path), path.read_bytes(), Image.fromarray(array), array, array[None], iter([array]),
        jnp.asarray(array), [array], (array,), np.asfortranarray(array),
    ]  # fmt: skip
    expected = critic(array, "a cat")
    for source in sources:
        assert_same(critic(source, "a cat"), expected, atol=1e-7)
    floats = array.astype(np.float32) / 255
    for same in (floats, floats.astype(np.float64), jnp.asarray(floats)):
        assert_same(critic(same, "a cat"), expected, atol=1e-7)
    square = pictures[1]
    mixed = critic([square, square.astype(np.float32) / np.float32(255)], "a cat", batch_size=1)
    assert_same(Prediction(*(f[:1] for f in mixed)), critic(square, "a cat"), atol=1e-5)


def test_floats_are_rounded_to_the_square_of_bytes(pictures):
    for array in pictures:
        expected = picture(array, 32, 0).square
        for floats in (array / 255.0, array.astype(np.float32) / 255, jnp.asarray(array, jnp.bfloat16) / 255):
            exact = "bfloat16" not in str(floats.dtype)
            np.testing.assert_allclose(picture(floats, 32, 0).square, expected, atol=0 if exact else 2)
    levels = np.array([[[-0.0005, 0.4999 / 255, 0.5001 / 255], [254.49 / 255, 254.51 / 255, 1.0005]]])
    np.testing.assert_array_equal(eight_bit(levels, "x"), [[[0, 0, 1], [254, 255, 255]]])


def test_grey_array_is_grey_rgb(critic):
    grey = smooth(40, 60)[..., 0]
    assert_same(critic(grey, "a cat"), critic(np.stack([grey] * 3, -1), "a cat"), atol=0)


def test_iterate_goes_on_after_bad_images(critic, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    images = [bad, pictures[0], b"", pictures[1], bad, bad, pictures[2]]
    failed = []
    prompts = [f"{i} cats" for i in range(7)]

    def on_error(at, error):
        failed.append((at, str(error)))

    feedback = dict(critic.iterate(images, prompts, batch_size=2, on_error=on_error))
    assert [at for at, _ in failed] == [0, 2, 4, 5] and list(feedback) == [1, 3, 6]
    assert failed[0][1].startswith(f"{bad}: not an image") and failed[1][1] == "image 2: the file is empty"
    for at, one in feedback.items():
        assert one.prompt == prompts[at]
        np.testing.assert_allclose(list(one.scores.values()), critic(images[at], prompts[at]).scores[0], atol=1e-5)
    with pytest.raises(ImageError, match="bad.png: not an image"):
        list(critic.iterate(images, prompts))


FLOAT = np.zeros((6, 8, 3), np.float32)


@pytest.mark.parametrize("image, message", [
    (np.full((6, 8, 3), 200.0), "floats from 200 to 200, expected 0..1; pixels in 0..255 given as float"),
    (FLOAT - 1, r"floats from -1 to -1, expected 0..1; pixels in -1..1\? Use \(x \+ 1\) / 2"),
    (FLOAT + np.nan, "pixels are not finite"),
    (np.ma.masked_array(FLOAT, FLOAT > 0.5), "image 0: a masked array"),
    (FLOAT + 1.5, "floats from 1.5 to 1.5, expected 0..1; clip"),
    (np.zeros((3, 64, 48), np.uint8), r"shape \(3, 64, 48\), expected \[h,w,3\]; .*channels first \(CHW\)"),
    (np.zeros((2, 3, 64, 48), np.uint8), r"image 0: .*channels first \(CHW\)"),
    (np.zeros((6, 8, 4), np.uint8), r"alpha, give a Pillow image"),
    (np.zeros((6, 8, 1), np.uint8), r"grey pixels, drop the last axis"),
    (np.zeros((6, 8, 2), np.uint8), r"height, width, RGB"),
    (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
    (np.zeros((6, 8, 3), np.uint16), "pixels of type uint16; expected uint8"),
    (np.zeros((6, 8, 3), np.int64), "pixels of type int64; expected uint8"),
    (np.zeros((6, 8, 3), np.int8), "pixels of type int8; expected uint8"),
    (np.zeros((6, 8, 3), bool), "pixels of type bool; expected uint8"),
    ([None], "image 0: expected a path, bytes, a Pillow image or an array, found NoneType"),
    ("nowhere.png", "nowhere.png: No such file or directory"),
    (b"\x89PNG\r\n\x1a\n", "image 0: "),
])  # fmt: skip
def test_bad_images_are_named(critic, image, message):
    with pytest.raises(ImageError, match=message):
        critic(image, "a cat")


def test_tracers_are_named(critic):
    with pytest.raises(ImageError, match="inside of jax.jit, jax.grad or jax.vmap use critic.scores"):
        jax.jit(lambda x: critic(x, "a cat").scores)(np.zeros((8, 8, 3), np.uint8))


def test_bad_lists_and_prompts(critic):
    image = smooth(8, 8)
    with pytest.raises(ValueError, match="images: there are none"):
        critic([], "a cat")
    with pytest.raises(ValueError, match="2 images but 3 prompts; give one for all, or one per image"):
        critic([image, image], ["a", "b", "c"])
    with pytest.raises(ValueError, match="the prompt is empty; give the text"):
        critic(image, "  \n")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        critic([image, image], ["a", ""])
    with pytest.raises(ValueError, match="the prompt is not valid Unicode"):
        critic(image, "a \udcff cat")
    with pytest.raises(TypeError, match="prompts: expected one text or one per image, found NoneType"):
        critic(image, None)
    with pytest.raises(TypeError, match="prompt 0: expected text, found int"):
        critic(image, [3])
    with pytest.raises(TypeError, match="images: expected paths.*found int"):
        critic(3, "a cat")
    with pytest.raises(ValueError, match="prompts: there are none"):
        critic.tokens([])
    with pytest.raises(TypeError, match="found dict; give the texts alone, in the order of the images: list"):
        critic(image, {"prompt": "a cat"})
    with pytest.raises(TypeError, match="found set, which has no order; give a list"):
        critic(image, {"a cat"})


def test_open_files_and_floats_of_another_byte_order(critic, pictures):
    import io

    with pytest.raises(TypeError, match=r"found an open file .BytesIO.; give its path, or its bytes: file.read"):
        critic(io.BytesIO(encode(smooth(8, 8))), "a cat")
    with pytest.raises(ImageError, match=r"image 0: expected a path.*found BytesIO; give its path, or its bytes"):
        critic([io.BytesIO(b"")], "a cat")
    grey = picture(np.full((8, 8, 3), 0.5, ">f4"), 8, 0).square
    np.testing.assert_array_equal(grey, np.full((8, 8, 3), 128, np.uint8))
    assert picture(np.zeros((8, 8), ">f8"), 4, 0).square.max() == 0


def test_inputs_need_no_jax():
    modules = "rahf, rahf.images.inputs, rahf.critic.feedback, rahf.critic.predict"
    code = f"import sys, {modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pillow_images_are_named_by_their_file(critic, tmp_path):
    path = tmp_path / "cut.png"
    data = encode(smooth(64, 64))
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as opened, pytest.raises(ImageError, match="cut.png: truncated or damaged PNG"):
        critic(opened, "a cat")
    with pytest.raises(ImageError, match="image 1: truncated or damaged PNG"):
        critic([smooth(8, 8), Image.open(io.BytesIO(data[: len(data) // 2]))], "a cat")


def test_one_opened_picture_with_many_prompts():
    """Pillow decodes an opened file when its pixels are first read: not in two threads at once."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    for _ in range(5):
        opened = Image.open(io.BytesIO(file.getvalue()))
        ((rows, pictures),) = inputs.decoded([opened] * 8, 32, 8)
        assert rows == list(range(8))
        assert all(np.array_equal(one.square, pictures[0].square) for one in pictures)
