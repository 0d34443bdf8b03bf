"""The reference set in the real file formats: everything joins, and follows from the raw annotations."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.richhf18k.prepare import prepare
from tests.helpers.richhf18k_maker import kinds


@pytest.fixture(scope="module")
def rehearsal(shared, tmp_path_factory):
    """Its small splits against all shards; the records of `train` are left out for speed."""
    folder = tmp_path_factory.mktemp("rehearsal")
    source = shared / "data" / "rehearsal"
    for split in ("dev", "test"):
        shutil.copy(source / f"{split}.tfrecord", folder)
    spiece = shared / "data" / "t5" / "spiece.model"
    summary = prepare(folder, [source / "pickapic"], folder / "out", tokenizer=spiece, progress=False)
    return source, folder / "out", summary


def test_every_reference_record_is_joined(rehearsal):
    source, out, summary = rehearsal
    assert kinds(summary, "test") == {"records": 250, "joined": 250}
    assert kinds(summary, "dev") == {"records": 250, "joined": 250, "picture found again": 3}
    assert summary.moved_share == 0
    assert store.tokenizer_path(out).read_bytes() == (source.parent / "t5" / "spiece.model").read_bytes()


def test_reference_records_follow_from_the_annotations(rehearsal):
    source, out, _ = rehearsal
    with open(source / "annotations.jsonl") as file:
        annotations = {line["uid"]: line for line in map(json.loads, file)}
    for split in ("dev", "test"):
        for index, record in enumerate(store.open_split(out, split)):
            raw = annotations[record.uid]
            assert record.prompt == raw["prompt"]
            raters = raw["annotators"]
            ratings = [[r["scores"][n] for n in ("plausibility", "alignment", "aesthetics", "overall")] for r in raters]
            np.testing.assert_allclose(record.scores, (np.mean(ratings, 0) - 1) / 4, atol=1e-6)
            votes = np.sum([r["word_labels"] for r in raters], 0)
            assert record.word_labels == tuple((votes >= 2).astype(int))
            if index % 50 == 0:
                for name, points in (
                    ("implausibility", "points_implausible"),
                    ("misalignment", "points_misaligned"),
                ):
                    expected = sum(discs(r[points], raw["width"], raw["height"]) for r in raters) * 85
                    stored = np.asarray(Image.open(io.BytesIO(getattr(record, name))))
                    np.testing.assert_array_equal(stored, expected)


def discs(points, width, height):
    """Union of discs of radius 512/20 around the points, at 512x512; pixel centres decide."""
    y, x = np.mgrid[:512, :512] + 0.5
    marked = np.zeros((512, 512), bool)
    for px, py in points:
        marked |= (x - px * 512 / width) ** 2 + (y - py * 512 / height) ** 2 <= 25.6**2
    return marked.astype(int)
