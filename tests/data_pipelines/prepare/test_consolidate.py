"""Consolidation of annotators: hand-computed values, a slow reference, and the rehearsal records exactly."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.prepare.consolidate import RawAnnotation, consolidate, draw_discs, vote_heatmap
from rahf.core.batch import SCORES
from rahf.text import split_words


def annotation(implausible=(), misaligned=(), scores=(3, 3, 3, 3), words=()):
    return RawAnnotation(implausible, misaligned, dict(zip(SCORES, scores)), words)


def slow_discs(points, width, height, map_size):
    """Asks of every pixel and point whether the pixel's centre lies within height / 20 of the point."""
    columns, rows = (width, height) if map_size is None else (map_size, map_size)
    marked = np.zeros((rows, columns), bool)
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
            marked[row, column] = any((x - a) ** 2 + (y - b) ** 2 <= (height / 20) ** 2 for a, b in points)
    return marked


@pytest.mark.parametrize("side, pixels", [(512, 2056), (128, 124)])
def test_one_disc_covers_the_known_number_of_pixels(side, pixels):
    assert draw_discs([(side / 2, side / 2)], side, side).sum() == pixels


def test_a_picture_of_any_size_gives_the_same_disc_on_the_same_map():
    assert draw_discs([(168.0, 168.0)], 336, 336, 512).sum() == 2056


def test_a_pixel_whose_centre_lies_on_the_border_belongs():
    # Radius 5 around the centre of pixel (50, 50): (3, 4, 5) is a right triangle.
    marked = draw_discs([(50.5, 50.5)], 100, 100)
    assert marked[50 + 4, 50 + 3] and marked[50, 55] and not marked[50, 56]


@pytest.mark.parametrize("width, height, map_size", [(40, 40, None), (70, 44, None), (48, 60, 32), (60, 30, 50)])
def test_discs_agree_with_a_slow_reference(width, height, map_size):
    rng = np.random.default_rng(width)
    # Some points lie outside; none is a simple fraction, so rounding cannot decide about a border pixel.
    points = rng.uniform(-0.3, 1.05, (12, 2)) * (width, height) + 0.0137
    expected = slow_discs(points, width, height, map_size)
    assert expected.any()
    np.testing.assert_array_equal(draw_discs(points, width, height, map_size), expected)


def test_a_disc_in_the_corner_is_clipped_to_a_quarter():
    assert 4 * draw_discs([(0, 0)], 512, 512).sum() == draw_discs([(256, 256)], 512, 512).sum()
    assert not draw_discs([(-300, 20)], 512, 512).any()


def test_on_an_oblong_picture_the_disc_is_scaled_with_the_picture():
    # 200 x 100 pixels, radius 5; on a 100 x 100 map 2.5 to the side and 5 up and down.
    marked = draw_discs([(100, 50)], 200, 100, 100)
    assert marked.any(axis=0).sum() == 4 and marked.any(axis=1).sum() == 10


def test_an_annotator_counts_once_and_annotators_add_up():
    here, beside, far = (32.0, 32.0), (33.0, 32.0), (10.0, 10.0)
    heatmap = vote_heatmap([[here, here, beside], [here], [far]], 64, 64)
    assert heatmap.dtype == np.uint8
    assert heatmap[32, 32] == 170 and heatmap[10, 10] == 85
    assert set(np.unique(heatmap)) == {0, 85, 170}
    assert vote_heatmap([[here]] * 3, 64, 64).max() == 255


@pytest.mark.parametrize("count, levels", [(1, {0, 255}), (2, {0, 128}), (4, {0, 64}), (5, {0, 51})])
def test_any_number_of_annotators(count, levels):
    heatmap = vote_heatmap([[(32.0, 32.0)]] + [[]] * (count - 1), 64, 64)
    assert set(np.unique(heatmap)) == levels


def test_scores_are_averaged_and_standardised():
    result = consolidate([annotation(scores=s) for s in ((1, 5, 3, 2), (1, 5, 4, 2), (2, 5, 5, 5))], 32, 32, ())
    # Means 4/3, 5, 4, 3 minus one, over four.
    np.testing.assert_allclose(result.scores, [1 / 12, 1, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(result.maxdiff, np.float32([0.25, 0, 0.5, 0.75]))
    assert result.scores.dtype == np.float32 and result.annotators == 3


def test_words_go_by_majority():
    words = ("a", "red", "cat", "sits")
    three = [annotation(words=w) for w in ((1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0))]
    result = consolidate(three, 32, 32, words)
    assert result.word_labels == (1, 1, 0, 0)
    np.testing.assert_allclose(result.word_votes, [1, 2 / 3, 1 / 3, 0])


def test_a_tie_of_words_is_aligned():
    two = [annotation(words=(1, 0)), annotation(words=(0, 0))]
    assert consolidate(two, 32, 32, ("red", "cat")).word_labels == (1, 0)
    assert consolidate(two * 2, 32, 32, ("red", "cat")).word_labels == (1, 0)


def test_maps_are_in_the_order_of_the_batch():
    result = consolidate([annotation([(8.0, 8.0)], [(24.0, 24.0)])], 32, 32, (), map_size=64)
    assert result.heatmaps.shape == (64, 64, 2)
    assert result.heatmaps[16, 16].tolist() == [255, 0]
    assert result.heatmaps[48, 48].tolist() == [0, 255]


def test_bad_annotations_are_refused_by_name():
    with pytest.raises(ValueError, match="at least one annotator"):
        consolidate([], 32, 32, ())
    with pytest.raises(ValueError, match="annotator 1: score 'aesthetics' is 6"):
        consolidate([annotation(), annotation(scores=(1, 1, 6, 1))], 32, 32, ())
    with pytest.raises(ValueError, match="annotator 0: score 'overall' is None"):
        consolidate([annotation(scores=(1, 1, 1))], 32, 32, ())
    with pytest.raises(ValueError, match="annotator 0: 1 word labels for 2 words"):
        consolidate([annotation(words=(1,))], 32, 32, ("red", "cat"))
    with pytest.raises(ValueError, match="expected 0"):
        consolidate([annotation(words=(1, 2))], 32, 32, ("red", "cat"))
    with pytest.raises(ValueError, match="finite"):
        consolidate([annotation([(float("nan"), 1.0)])], 32, 32, ())
    with pytest.raises(ValueError, match="0x32"):
        consolidate([annotation()], 0, 32, ())
    tree = annotation()._asdict()
    assert RawAnnotation.from_dict(tree) == annotation()
    with pytest.raises(ValueError, match=r"line 3: .*missing: scores, unknown: score"):
        RawAnnotation.from_dict({**{k: v for k, v in tree.items() if k != "scores"}, "score": 1}, "line 3")


@pytest.mark.parametrize("split, count", [("train", 60), ("dev", 30), ("test", 30)])
def test_rehearsal_records_follow_exactly_from_the_raw_annotations(shared, split, count):
    from data_pipelines.richhf18k import tfrecord

    raw = {}
    with open(shared / "data" / "rehearsal" / "annotations.jsonl") as file:
        for line in file:
            tree = json.loads(line)
            raw[tree["uid"]] = tree
    records = tfrecord.read_examples(shared / "data" / "rehearsal" / f"{split}.tfrecord")
    for entry in itertools.islice(records, count):
        example = entry.features
        tree = raw[example["filename"][0].decode().split("/")[1].removesuffix(".jpg")]
        annotations = [RawAnnotation.from_dict(one) for one in tree["annotators"]]
        words = split_words(tree["prompt"])
        result = consolidate(annotations, tree["width"], tree["height"], words, map_size=512)
        for channel, name in enumerate(("artifact_map", "misalignment_map")):
            stored = np.asarray(Image.open(io.BytesIO(example[name][0])))
            np.testing.assert_array_equal(result.heatmaps[..., channel], stored)
        names = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
        assert result.scores.tolist() == [np.float32(example[name][0]) for name in names]
        assert " ".join(map(str, result.word_labels)).encode() == example["prompt_misalignment_label"][0]


@pytest.mark.parametrize("size", [1, 8, 12, 16])
def test_a_click_marks_a_pixel_of_a_map_of_any_size(size):
    points = np.random.default_rng(0).uniform(0, 512, (200, 2))
    assert all(draw_discs([tuple(point)], 512, 512, size).any() for point in points)
    for corner in ((0, 0), (512, 0), (0, 512), (512, 512)):
        assert draw_discs([corner], 512, 512, size).sum() >= 1


def test_more_annotators_than_a_byte_counts():
    assert vote_heatmap([[(50, 50)]] * 300, 100, 100)[50, 50] == 255
    assert vote_heatmap([[(50, 50)]] * 260 + [[]] * 40, 100, 100)[50, 50] == 221
    assert vote_heatmap([[(50, 50)]] + [[]] * 599, 100, 100)[50, 50] == 1  # one mark of 600 is no empty map
