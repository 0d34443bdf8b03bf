"""One example of a batch: its fields by hand, masks, words that do not fit, registered augmentations."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_pipelines.loading.examples import example
from rahf.config import AugmentConfig
from rahf.core.batch import spec
from tests.helpers.loader_maker import CONFIG, SIZE, encode, record


def test_fields_by_hand(tokenizer):
    fields = example(record(3 - 3), 7, CONFIG, SIZE, tokenizer)
    lengths = (CONFIG.max_prompt_tokens, CONFIG.max_target_tokens, CONFIG.max_words)
    for name, (shape, dtype) in spec(1, SIZE, *lengths).items():
        value = np.asarray(getattr(fields, name))
        assert value.shape == shape[1:] and value.dtype == dtype, name
    assert (fields.image == 0).all() and fields.index == 7 and fields.example_mask
    assert tokenizer.decode(fields.text_ids) == "a yellow cat, sitting"
    assert tokenizer.decode(fields.target_ids) == "a_0 yellow cat_0 sitting"
    assert tokenizer.decode(fields.prompt_ids) == "a yellow cat sitting"
    assert fields.target_mask.sum() == np.count_nonzero(fields.target_ids)
    for place, words in zip(fields.word_end[:4], ("a", "a yellow", "a yellow cat", "a yellow cat sitting")):
        assert tokenizer.decode(fields.prompt_ids[: place + 1]) == words
    assert fields.word_labels.tolist() == [0, 1, 0, 1, 0, 0]
    assert fields.word_mask.tolist() == [True] * 4 + [False] * 2 and (fields.word_end[4:] == -1).all()
    np.testing.assert_array_equal(fields.heatmaps[:11, :, 0], 255)  # implausibility first: the upper half
    np.testing.assert_array_equal(fields.heatmaps[13:, :, 0], 0)
    np.testing.assert_array_equal(fields.heatmaps[:, :11, 1], 255)  # misalignment: the left half
    np.testing.assert_array_equal(fields.heatmaps[:, 13:, 1], 0)
    np.testing.assert_allclose(fields.scores, [0.25, 0.5, 0.75, 0.0])
    assert fields.heatmap_mask.all() and fields.score_mask.all()


def test_missing_labels_are_masked(tokenizer):
    scores = np.array([np.nan, 0.5, np.nan, 1], np.float32)
    bare = record(0, word_labels=None, misalignment=None, scores=scores)
    fields = example(bare, 0, CONFIG, SIZE, tokenizer)
    assert not fields.target_mask.any() and not fields.word_mask.any() and not fields.word_labels.any()
    assert fields.text_mask.any() and (fields.word_end[:4] >= 0).all()  # words can still be scored
    assert fields.heatmap_mask.tolist() == [True, False] and not fields.heatmaps[..., 1].any()
    assert fields.score_mask.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(fields.scores, np.array([0, 0.5, 0, 1], np.float32))


def test_words_that_do_not_fit(tokenizer):
    full = example(record(2), 0, CONFIG, SIZE, tokenizer)  # six words
    few = example(record(2), 0, dataclasses.replace(CONFIG, max_words=4), SIZE, tokenizer)
    assert few.word_mask.tolist() == [True] * 4
    np.testing.assert_array_equal(few.word_end, full.word_end[:4])
    np.testing.assert_array_equal(few.target_ids, full.target_ids)
    length = int(full.word_end[3]) + 2  # four words and the end of sequence, not a piece more
    cut = example(record(2), 0, dataclasses.replace(CONFIG, max_target_tokens=length), SIZE, tokenizer)
    np.testing.assert_array_equal(cut.word_end, [*full.word_end[:4], -1, -1])
    assert cut.word_mask.all()  # they exist: metrics count them as not decoded
    assert cut.word_labels.tolist() == full.word_labels.tolist()


def test_label_count_must_fit(tokenizer):
    with pytest.raises(ValueError, match="4 words but 2 labels"):
        example(record(0, word_labels=(0, 1)), 0, CONFIG, SIZE, tokenizer)


def test_augmented_example_stays_registered(tokenizer):
    """A bright square in image and maps, off centre: after each crop all three lie in one place."""
    square = np.zeros((64, 64), np.uint8)
    square[24:36, 30:42] = 255
    marked = record(0, image=encode(np.repeat(square[..., None], 3, -1)), implausibility=encode(square),
                    misalignment=encode(np.asarray(Image.fromarray(square).resize((160, 96)))))  # fmt: skip
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(crop_probability=1.0))
    places = set()
    y, x = np.mgrid[:SIZE, :SIZE]
    for seed in range(20):
        fields = example(marked, 0, config, SIZE, tokenizer, np.random.default_rng(seed))
        layers = [fields.image.astype(float).mean(-1), fields.heatmaps[..., 0], fields.heatmaps[..., 1]]
        layers = [np.where(layer > 100, layer, 0.0) for layer in layers]
        points = [np.array([(m * x).sum(), (m * y).sum()]) / m.sum() for m in layers]
        np.testing.assert_allclose(points[1], points[0], atol=0.3)
        np.testing.assert_allclose(points[2], points[0], atol=0.3)
        places.add(tuple(points[0].round(1)))
    assert len(places) > 10  # the crops did differ
    plain = example(marked, 0, config, SIZE, tokenizer, None)
    np.testing.assert_array_equal(plain.image, example(marked, 0, CONFIG, SIZE, tokenizer).image)


def test_mirrored_with_its_maps_unless_the_prompt_names_a_side(tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    off = dict(crop_probability=0.0, photometric_probability=0.0, grey_probability=0.0)
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(**off, flip_probability=1.0))
    for prompt, mirrored in (("a cat", True), ("a bright copyrighted cat", True), ("a cat, Left of it", False),
                             ("the leftmost cat", False), ("a right-hand cat", False)):  # fmt: skip
        one = record(0, image=encode(pixels), prompt=prompt, word_labels=None)
        plain = example(one, 0, CONFIG, SIZE, tokenizer)
        flipped = example(one, 0, config, SIZE, tokenizer, np.random.default_rng(1))
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(flipped.image, plain.image[:, ::step], err_msg=prompt)
        np.testing.assert_array_equal(flipped.heatmaps, plain.heatmaps[:, ::step], err_msg=prompt)
        np.testing.assert_array_equal(flipped.text_ids, plain.text_ids)
    # At a probability of 0 nothing is drawn: runs of earlier versions go on with the same pictures.
    draws = [np.random.default_rng(2), np.random.default_rng(2)]
    example(one, 0, dataclasses.replace(CONFIG, augment=AugmentConfig(**off)), SIZE, tokenizer, draws[0])
    draws[1].random(3)
    assert draws[0].random() == draws[1].random()
