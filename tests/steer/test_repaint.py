"""Repair: the original is a candidate, so nothing is ever made worse; seeds and blending as promised."""

import io

import numpy as np
import pytest
from PIL import Image

from rahf.core.errors import ImageError
from rahf.steer import repair
from rahf.steer.masks import MaskOptions
from tests.helpers.critic_maker import ColourCritic, plain

OPTIONS = MaskOptions(dilation=0)


@pytest.fixture
def damaged():
    """Green with a red square: the red is what the critic finds implausible."""
    image = plain(0, 200, 0, (16, 16))
    image[4:8, 4:8] = (255, 0, 0)
    return image


def painting(reds: dict[int, int], asked: list | None = None):
    """A generator that paints everything in a red that depends on the seed."""

    def generate(image, mask, prompt, seed):
        if asked is not None:
            asked.append((image.copy(), mask.copy(), prompt, seed))
        return plain(reds[seed], 100, 0, image.shape[:2])

    return generate


def test_the_best_of_n_inside_the_mask_only(damaged):
    asked = []
    before = damaged.copy()
    result = repair(
        painting({0: 90, 1: 10, 2: 50}, asked), damaged, "a leaf", 3, critic=ColourCritic(), options=OPTIONS
    )
    assert (result.chosen, result.seeds) == (2, [0, 1, 2]) and len(result.candidates) == 4
    np.testing.assert_array_equal(damaged, before)
    expected = before.copy()
    expected[4:8, 4:8] = (10, 100, 0)
    np.testing.assert_array_equal(result.image, expected)
    np.testing.assert_array_equal(result.mask.pixels, before[:, :, 0] > 0)
    share = 16 / 256
    plausibility = [1 - share, 1 - share * 90 / 255, 1 - share * 10 / 255, 1 - share * 50 / 255]
    np.testing.assert_allclose(result.scores[:, 0], plausibility, atol=1e-6)
    assert result.reason == "seed 1: plausibility 0.9975, the highest of 3 candidates; the original has 0.9375"
    for seed, (image, mask, prompt, given) in enumerate(asked):
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(mask, result.mask.pixels)
        assert (mask.dtype, prompt, given) == (np.bool_, "a leaf", seed)


def test_never_scored_worse(damaged):
    """Over random paintings, bad ones among them, with and without blending."""
    rng = np.random.default_rng(0)
    critic = ColourCritic()
    kept = 0
    for trial in range(20):

        def generate(image, mask, prompt, seed, trial=trial):
            stream = np.random.default_rng((trial, seed))
            return np.clip(image * 0.5 + stream.integers(0, 256) * rng.random(), 0, 255).astype(np.uint8)

        result = repair(generate, damaged, "a leaf", 2, critic=critic, options=OPTIONS, blend=bool(trial % 2))
        assert critic([result.image], "a leaf").scores[0, 0] >= critic([damaged], "a leaf").scores[0, 0]
        assert result.scores[result.chosen, 0] == result.scores[:, 0].max()
        kept += result.chosen == 0
    assert 0 < kept < 20  # both kinds occurred


def test_worse_and_equal_candidates_leave_the_original(damaged):
    worse = repair(painting({7: 255, 8: 255}), damaged, "a leaf", 2, critic=ColourCritic(), seed=7, options=OPTIONS)
    assert worse.chosen == 0 and worse.seeds == [7, 8]
    np.testing.assert_array_equal(worse.image, damaged)
    assert worse.reason == "unchanged: none of 2 candidates has a higher plausibility than the original's 0.9375"
    same = repair(lambda image, *_: image, damaged, "a leaf", 2, critic=ColourCritic(), options=OPTIONS)
    assert same.chosen == 0
    tie = repair(painting({0: 9, 1: 9}), damaged, "a leaf", 2, critic=ColourCritic(), options=OPTIONS)
    assert tie.chosen == 1


def test_nan_is_never_chosen(damaged):
    class Undecided(ColourCritic):
        def __call__(self, images, prompts, batch_size=None):
            prediction = super().__call__(images, prompts, batch_size)
            if len(images) > 1:
                prediction.scores[1, 0] = np.nan
            return prediction

    result = repair(painting({0: 0, 1: 200}), damaged, "a leaf", 2, critic=Undecided(), options=OPTIONS)
    assert result.chosen == 2


def test_nothing_to_repair_generates_nothing():
    def generate(*_):
        raise AssertionError

    clean = plain(20, 200, 0)
    result = repair(generate, clean, "a leaf", critic=ColourCritic())
    np.testing.assert_array_equal(result.image, clean)
    assert result.chosen == 0 and result.mask.empty and result.seeds == [] and result.scores.shape == (1, 4)
    assert result.reason.startswith(
        "unchanged: nothing to repair, no value reaches the threshold 0.3; the highest is 0.08"
    )


def test_other_heatmap_other_score(damaged):
    damaged[12:, 12:] = (0, 0, 255)
    asked = []
    result = repair(
        painting({0: 0}, asked), damaged, "a leaf", 1, critic=ColourCritic(), options=OPTIONS,
        which="misalignment", score="aesthetics",
    )  # fmt: skip
    np.testing.assert_array_equal(asked[0][1], damaged[:, :, 2] > 0)
    assert result.chosen == 0  # the generator took the blue away


def test_feather_blends(damaged):
    options = MaskOptions(dilation=0, feather=0.25)  # 4 pixels
    result = repair(painting({0: 0}), damaged, "a leaf", 1, critic=ColourCritic(), options=options)
    assert result.chosen == 1
    # Two pixels left of the square the picture is half original, half painting.
    assert tuple(result.image[5, 2]) == (0, 150, 0) and tuple(result.image[5, 5]) == (0, 100, 0)
    assert tuple(result.image[5, 14]) == (0, 200, 0)


def test_any_kind_of_image_in_and_out(damaged):
    buffer = io.BytesIO()
    Image.fromarray(damaged).save(buffer, "PNG")

    def generate(image, mask, prompt, seed):
        painted = plain(10, 100, 0, (16, 16))
        return [Image.fromarray(painted), painted.astype(np.float32) / 255][seed]

    for source in (Image.fromarray(damaged), buffer.getvalue(), damaged / np.float32(255)):
        result = repair(generate, source, "a leaf", 2, critic=ColourCritic(), options=OPTIONS)
        np.testing.assert_array_equal(result.candidates[0], damaged)
        np.testing.assert_array_equal(result.candidates[1], result.candidates[2])
        assert result.image.dtype == np.uint8


def test_a_generator_cannot_change_the_original(damaged):
    before = damaged.copy()

    def vandal(image, mask, prompt, seed):
        image[:] = 0
        mask[:] = True
        return image

    result = repair(vandal, damaged, "a leaf", 2, critic=ColourCritic(), options=OPTIONS)
    np.testing.assert_array_equal(result.candidates[0], before)
    assert result.mask.pixels.sum() == 16


@pytest.mark.parametrize(
    "options, error",
    [
        (dict(n=0), "n: expected at least 1 candidate, found 0"),
        (dict(score="plausability"), "no score is called 'plausability'. Did you mean 'plausibility'?"),
        (dict(which="implausible"), "no heatmap is called 'implausible'. Did you mean 'implausibility'?"),
    ],
)
def test_bad_options(damaged, options, error):
    with pytest.raises(ValueError) as raised:
        repair(painting({0: 0}), damaged, "a leaf", critic=ColourCritic(), **options)
    assert str(raised.value) == error


def test_swapped_arguments(damaged, tmp_path):
    file = tmp_path / "leaf.png"
    Image.fromarray(damaged).save(file)
    with pytest.raises(ValueError, match=r"is an image file, not a text; write rahf\.steer\.repair\(generate, image, "):
        repair(painting({0: 0}), "a leaf", str(file), critic=ColourCritic())
    with pytest.raises(TypeError, match="found an image .* where text belongs"):
        repair(painting({0: 0}), "a leaf", damaged, critic=ColourCritic())


def test_what_the_generator_made_is_checked(damaged):
    run = lambda make: repair(lambda *_: make, damaged, "a leaf", 1, critic=ColourCritic(), options=OPTIONS)  # noqa: E731
    with pytest.raises(ValueError, match="a picture of 8 x 4 pixels for seed 0, the original has 16 x 16; resize it"):
        run(plain(0, 0, 0, (4, 8)))
    with pytest.raises(ImageError, match="what generate made of seed 0: floats from 0 to 200, expected 0..1"):
        run(plain(0, 200, 0).astype(np.float32))
    with pytest.raises(ImageError, match=r"seed 0: array of shape \(3, 16, 16\).*channels first"):
        run(np.zeros((3, 16, 16), np.uint8))
    free = repair(
        lambda *_: plain(0, 9, 0, (4, 8)), damaged, "a leaf", 1, critic=ColourCritic(), options=OPTIONS, blend=False
    )
    assert free.image.shape == (4, 8, 3)


def test_with_a_real_critic(tiny_critic, damaged):
    """Shapes, one call for all candidates, and the promise."""
    options = MaskOptions(threshold=0.05, min_area=0, warn_above=1)
    result = repair(lambda image, *_: 255 - image, damaged, "a red cat", 3, critic=tiny_critic, options=options)
    assert result.scores.shape == (4, 4) and result.mask.pixels.shape == (16, 16)
    assert result.scores[result.chosen, 0] >= result.scores[0, 0]
