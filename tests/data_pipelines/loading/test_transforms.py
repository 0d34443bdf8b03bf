"""Augmentations: registration of image and maps, exact arithmetic, probabilities, nothing flipped."""

import colorsys
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.loading import transforms
from rahf import images
from rahf.config import AugmentConfig

ALWAYS = AugmentConfig(crop_probability=1.0)
OFF = AugmentConfig(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0)


def png(values) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def centroid(weights):
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum() / weights.shape[::-1]


def disc(height, width, x, y, radius):
    """A white disc, x and y in shares of width and height, radius in shares of both."""
    rows, columns = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    return np.where((rows - y) ** 2 + (columns - x) ** 2 < radius**2, 255, 0).astype(np.uint8)


def test_image_and_both_maps_stay_registered():
    """Three files of different sizes and shapes show the same disc; after any crop it lies in one place."""
    rng = np.random.default_rng(3)
    for _ in range(25):
        x, y = rng.uniform(0.35, 0.65, 2)
        picture = np.repeat(disc(300, 420, x, y, 0.06)[..., None], 3, -1)
        box = transforms.random_box(ALWAYS, rng)
        image = images.decode_resized(png(picture), 128, box)[..., 0].astype(float)
        shapes = ((512, 512), (200, 260))
        maps = [images.decode_map(png(disc(*shape, x, y, 0.06)), 128, box) for shape in shapes]
        expected = ((x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1]))
        for resized in (image, *maps):
            np.testing.assert_allclose(centroid(resized), expected, atol=0.25 / 128)  # a quarter of a pixel


def test_boxes_lie_inside_and_keep_what_is_asked():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_box(ALWAYS, rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1
    for share in (width, height):  # uniform on 0.8..1: mean 0.9, standard deviation 0.2 / sqrt(12) = 0.0577
        assert 0.8 <= share.min() < 0.801 and 0.999 < share.max() <= 1
        assert abs(share.mean() - 0.9) < 0.004 and abs(share.std() - 0.0577) < 0.002
    assert abs(np.corrcoef(width, height)[0, 1]) < 0.06  # drawn separately: the aspect ratio changes
    place = boxes[:, 0] / (1 - width)
    assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 0.2887) < 0.01  # uniform over what is free


def test_probabilities():
    rng = np.random.default_rng(1)
    boxes = [transforms.random_box(AugmentConfig(), rng) for _ in range(4000)]
    # Four standard deviations of a share at n = 4000: 0.032 at p = 0.5, 0.019 at p = 0.1.
    assert abs(np.mean([box != images.FULL for box in boxes]) - 0.5) < 0.032
    image = np.random.default_rng(2).integers(60, 200, (8, 8, 3), dtype=np.uint8)
    changed = greyed = both = 0
    for _ in range(4000):
        result = transforms.random_colours(image, AugmentConfig(), rng)
        is_grey = (result == result[..., :1]).all()
        photometric = not is_grey and (result != image).any()
        changed, greyed = changed + photometric, greyed + is_grey
        both += is_grey and not np.array_equal(result, transforms.grey(image))
    assert abs(greyed / 4000 - 0.1) < 0.019
    assert abs(changed / 4000 - 0.09) < 0.019  # 0.1 * 0.9: photometric and not grey as well
    assert abs(both / 4000 - 0.01) < 0.007


def test_seed_decides():
    image = np.random.default_rng(2).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    config = dataclasses.replace(ALWAYS, photometric_probability=1.0, grey_probability=0.5)

    def draw(seed):
        rng = np.random.default_rng(seed)
        return transforms.random_box(config, rng), transforms.random_colours(image, config, rng)

    before = image.copy()
    (box, first), (again, second), (other, _) = draw(5), draw(5), draw(6)
    assert box == again != other
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)  # the argument is not touched


def test_switched_off_is_identity():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for _ in range(50):
        assert transforms.random_box(OFF, rng) == images.FULL
        assert transforms.random_colours(image, OFF, rng) is image
    neutral = transforms.photometric(image, brightness=0.0, contrast=1.0, hue=0.0, saturation=1.0)
    np.testing.assert_array_equal(neutral, image)


def test_nothing_is_flipped():
    """Bright top left and dark bottom right stay where they are under every augmentation."""
    config = AugmentConfig(crop_probability=1.0, photometric_probability=1.0, grey_probability=0.5)
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    data, rng = png(np.repeat(ramp[..., None], 3, -1)), np.random.default_rng(0)
    for _ in range(100):
        image = images.decode_resized(data, 48, transforms.random_box(config, rng))
        image = transforms.random_colours(image, config, rng).astype(float).mean(-1)
        assert image[:, :24].mean() < image[:, 24:].mean() and image[:24].mean() < image[24:].mean()


def test_mass_that_a_crop_keeps():
    values = np.zeros((10, 20), np.uint8)
    values[2, 3], values[8, 15] = 100, 50
    assert transforms.kept_mass(values, images.FULL) == 1
    assert transforms.kept_mass(values, (0.0, 0.0, 0.5, 0.5)) == pytest.approx(100 / 150)
    assert transforms.kept_mass(values, (0.5, 0.5, 1.0, 1.0)) == pytest.approx(50 / 150)
    assert transforms.kept_mass(np.zeros((4, 4), np.uint8), (0.2, 0.2, 0.3, 0.3)) == 1


def test_crops_that_lose_mass_are_refused():
    corner = np.zeros((100, 100), np.uint8)
    corner[:12, :12] = 255  # most crops cut this corner
    strict = dataclasses.replace(ALWAYS, crop_keeps_mass=0.9)
    rng = np.random.default_rng(0)
    kept = [transforms.kept_mass(corner, transforms.random_box(strict, rng, [corner])) for _ in range(300)]
    assert min(kept) >= 0.9
    free = [transforms.kept_mass(corner, transforms.random_box(ALWAYS, rng, [corner])) for _ in range(300)]
    assert np.mean(np.array(free) < 0.9) > 0.5
    frame = np.full((100, 100), 255, np.uint8)  # all crops lose something: the image stays whole
    impossible = dataclasses.replace(ALWAYS, crop_keeps_mass=1.0, crop_keep=(0.8, 0.9))
    assert transforms.random_box(impossible, rng, [frame]) == images.FULL


def test_brightness_and_contrast_by_hand():
    image = np.array([[[100, 50, 10], [200, 50, 30]]], np.uint8)
    np.testing.assert_array_equal(  # + 25.5, rounded up
        transforms.photometric(image, 0.1, 1.0, 0.0, 1.0), [[[126, 76, 36], [226, 76, 56]]]
    )
    np.testing.assert_array_equal(  # means 150, 50, 20
        transforms.photometric(image, 0.0, 0.8, 0.0, 1.0), [[[110, 50, 12], [190, 50, 28]]]
    )
    np.testing.assert_array_equal(  # clipped, not wrapped
        transforms.photometric(image, 0.5, 1.0, 0.0, 1.0)[0, 1], [255, 178, 158]
    )
    np.testing.assert_array_equal(transforms.photometric(image, -0.5, 1.0, 0.0, 1.0)[0, 0], [0, 0, 0])


def test_saturation_and_hue():
    luma = np.array([0.299, 0.587, 0.114])
    rng = np.random.default_rng(0)
    image = rng.integers(60, 190, (32, 32, 3), dtype=np.uint8)
    gone = transforms.photometric(image, 0.0, 1.0, 0.1, 0.0)
    np.testing.assert_allclose(gone, np.repeat((image @ luma)[..., None], 3, -1), atol=1)
    turned = transforms.photometric(image, 0.0, 1.0, 0.025, 0.9)
    np.testing.assert_allclose(turned @ luma, image @ luma, atol=1.5)  # luma stays
    np.testing.assert_allclose(transforms.colour_matrix(0.3, 0.7) @ [1, 1, 1], [1, 1, 1], atol=1e-3)
    two, three = transforms.colour_matrix(0.02, 1.0), transforms.colour_matrix(0.03, 1.0)
    np.testing.assert_allclose(two @ three, transforms.colour_matrix(0.05, 1.0), atol=1e-6)  # turns add up
    # The direction agrees with the hue of HSV: red turns towards yellow for positive turns.
    hue = lambda rgb: colorsys.rgb_to_hsv(*np.asarray(rgb, float) / 255)[0]  # noqa: E731
    red = np.full((1, 1, 3), (180, 60, 60), np.uint8)
    moved = hue(transforms.photometric(red, 0.0, 1.0, 0.025, 1.0)[0, 0])
    assert 0.01 < moved < 0.05


def test_grey_by_hand():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7], [255, 255, 255]]], np.uint8)
    expected = [[76, 150, 29, 7, 255]]
    np.testing.assert_array_equal(transforms.grey(image), np.repeat(np.array(expected)[..., None], 3, -1))


def test_jpeg_loses_more_at_lower_quality():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    losses = [np.abs(transforms.through_jpeg(image, q).astype(int) - image).mean() for q in (30, 70, 100)]
    assert losses[0] > losses[1] > losses[2] > 0


@pytest.mark.parametrize("field, value", [
    ("crop_probability", 1.5), ("crop_keep", (0.9, 0.8)), ("crop_keep", (0.0, 1.0)), ("hue", 0.6),
    ("contrast", (-0.1, 1.0)), ("jpeg_quality", (0, 50)), ("brightness", -0.1), ("crop_keeps_mass", 2.0),
])  # fmt: skip
def test_impossible_ranges_are_named(field, value):
    transforms.check(AugmentConfig())
    with pytest.raises(ValueError, match=f"augment.{field}: expected"):
        transforms.check(dataclasses.replace(AugmentConfig(), **{field: value}))
